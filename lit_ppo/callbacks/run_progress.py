"""RunProgress: one progress bar for the whole run."""

import math
import sys
from time import perf_counter
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.utilities.types import STEP_OUTPUT
from tqdm import tqdm

from lit_ppo.callbacks.greedy_evaluation import GreedyEvaluation, data_of
from lit_ppo.callbacks.stop_when_solved import StopWhenSolved
from lit_ppo.module import PPOModule

_REFRESHES_PER_S = 10


class RunProgress(ProgressBar):
    """Shows update, env steps, steps per second, returns and threshold; on a terminal only."""

    def __init__(self) -> None:
        super().__init__()
        self._bar: tqdm[Any] | None = None
        self._enabled = True

    def disable(self) -> None:
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start, self._steps_at_start = perf_counter(), data_of(trainer).env_steps
        self._bar = tqdm(
            total=_updates_of_the_run(trainer, pl_module),
            initial=data_of(trainer).update,
            unit="update",
            desc=data_of(trainer).environment.env_id,
            disable=not self._enabled or sys.stderr is None or not sys.stderr.isatty(),
            mininterval=1 / _REFRESHES_PER_S,
            dynamic_ncols=True,
        )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        """Advance by one update."""
        assert self._bar is not None
        self._bar.total = _updates_of_the_run(trainer, pl_module)
        if self._bar.update() and not self._bar.disable:
            self._bar.set_postfix_str(self._postfix(trainer), refresh=False)

    def _postfix(self, trainer: Trainer) -> str:
        data = data_of(trainer)
        rate = (data.env_steps - self._steps_at_start) / (perf_counter() - self._start)
        parts = [f"{data.env_steps:,} env steps", f"{rate:,.0f} steps/s"]
        if "episodes/return" in data.metrics:
            parts.append(f"return {data.metrics['episodes/return']:.1f}")
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, GreedyEvaluation) and callback.latest is not None:
                parts.append(f"eval {callback.latest.results.mean:.1f}")
            if isinstance(callback, StopWhenSolved) and callback.threshold_for(trainer) is not None:
                parts[-1] += f" of {callback.threshold_for(trainer):g}"
        return ", ".join(parts)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close_bar()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._close_bar()

    def _close_bar(self) -> None:
        if self._bar is not None:
            self._bar.close()


def _updates_of_the_run(trainer: Trainer, module: LightningModule) -> int | None:
    """Updates until `total_env_steps` or `trainer.max_epochs`, whichever comes first; None if the run is unlimited.

    Rollouts with dropped rows are smaller, so the rest is computed anew from the env steps so far.
    """
    assert isinstance(module, PPOModule)
    data, total = data_of(trainer), module.settings.total_env_steps
    budgets = (
        [] if total is None else [data.update + math.ceil(max(0, total - data.env_steps) / (data.num_envs * data.horizon))]
    )
    if trainer.max_epochs is not None and trainer.max_epochs >= 0:
        budgets.append(trainer.max_epochs)
    return min(budgets, default=None)
