"""RunProgress: what a run shows while it trains: one progress bar, or a line from time to time."""

import math
import sys
from time import perf_counter
from typing import Any, Final

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.utilities.types import STEP_OUTPUT
from tqdm.auto import tqdm  # in a notebook a bar of HTML

from lit_ppo.callbacks.greedy_evaluation import GreedyEvaluation, data_of
from lit_ppo.callbacks.stop_when_solved import StopWhenSolved
from lit_ppo.errors import ConfigError
from lit_ppo.module import PPOModule
from lit_ppo.standard_streams import say

_REFRESHES_PER_S = 10
_IN_NOTEBOOK: Final = any(base.__module__ == "tqdm.notebook" for base in tqdm.__mro__)
# shorter than tqdm's own: with the numbers behind it, it fits 80 columns
_BAR: Final = "{n_fmt}/{total_fmt} |{bar}| {elapsed}<{remaining}{postfix}"
_BAR_WITHOUT_END: Final = "{n_fmt} updates {elapsed}{postfix}"


class RunProgress(ProgressBar):
    """Shows update, env steps, steps per second, returns and threshold.

    A line at the start says what is trained. If standard error is a terminal, and in a notebook, one bar follows for the whole
    run; elsewhere, such as in a log file, a line every few seconds. Lines go to standard output, which leaves standard error to
    errors and warnings.

    Args:
        interval_s: Seconds between two lines where there is no bar; at the next end of an update.

    Raises:
        ConfigError: A setting is out of its range.
    """

    def __init__(self, interval_s: float = 10.0) -> None:
        if not interval_s >= 0:
            raise ConfigError(f"progress.interval_s={interval_s}: expected at least 0 s")
        super().__init__()
        self.interval_s = interval_s
        self._bar: tqdm[Any] | None = None
        self._enabled = True
        self._start = self._line_at = 0.0
        self._steps_at_start = 0
        self._return: float | None = None  # the latest mean return of episodes that ended in a rollout

    def disable(self) -> None:
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say what is trained, before the first environment steps; of several ranks the first shows everything."""
        self._enabled = self._enabled and trainer.is_global_zero
        data = data_of(trainer)
        length = _env_steps_of_the_run(trainer, pl_module)
        parts = [
            data.environment.env_id,
            "1 environment" if data.num_envs == 1 else f"{data.num_envs} environments",
            f"up to {length:,} env steps" if length is not None else "no limit of env steps",
        ]
        if threshold := _threshold(trainer):
            parts.append(f"solved at a return of {threshold}")
        if data.env_steps:
            parts.append(f"continued at {data.env_steps:,}")
        self._print(", ".join(parts))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start, self._steps_at_start = perf_counter(), data_of(trainer).env_steps
        self._line_at = self._start
        if not self._enabled or not (_IN_NOTEBOOK or (sys.stderr is not None and sys.stderr.isatty())):
            return
        total = _updates_of_the_run(trainer, pl_module)
        self._bar = tqdm(
            total=total,
            initial=data_of(trainer).update,
            mininterval=1 / _REFRESHES_PER_S,
            dynamic_ncols=True,
            bar_format=_BAR_WITHOUT_END if total is None else _BAR,
        )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        """Advance by one update."""
        self._return = data_of(trainer).metrics.get("episodes/return", self._return)
        if self._bar is not None:
            self._bar.total = _updates_of_the_run(trainer, pl_module)
            if self._bar.update():
                self._bar.set_postfix_str(self._shortly(trainer), refresh=False)
        elif perf_counter() - self._line_at >= self.interval_s:
            self._line_at = perf_counter()
            self._print(self._in_full(trainer, pl_module))

    def _print(self, line: str) -> None:
        if self._enabled and sys.stdout is not None:
            say(line)

    def _steps_per_s(self, trainer: Trainer) -> float:
        return (data_of(trainer).env_steps - self._steps_at_start) / max(perf_counter() - self._start, 1e-9)

    def _shortly(self, trainer: Trainer) -> str:
        """Behind the bar."""
        steps, rate = (tqdm.format_sizeof(count) for count in (data_of(trainer).env_steps, self._steps_per_s(trainer)))
        return " ".join([f"{steps} steps", f"{rate}/s", *self._returns(trainer)])

    def _in_full(self, trainer: Trainer, module: LightningModule) -> str:
        data, total = data_of(trainer), _updates_of_the_run(trainer, module)
        of_total = "" if total is None else f"/{total:,}"
        parts = [
            f"{tqdm.format_interval(self._line_at - self._start)} update {data.update:,}{of_total}",
            f"{data.env_steps:,} env steps",
            f"{self._steps_per_s(trainer):,.0f} steps/s",
            *self._returns(trainer),
        ]
        return ", ".join(parts)

    def _returns(self, trainer: Trainer) -> list[str]:
        """The latest training and evaluation returns, and the threshold."""
        parts = [] if self._return is None else [f"return {self._return:.4g}"]
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, GreedyEvaluation) and callback.latest is not None:
                threshold = _threshold(trainer)
                parts.append(f"eval {callback.latest.results.mean:.4g}" + (f" of {threshold}" if threshold else ""))
        return parts

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the bar full, and with the last returns: those of the last update come after its own end."""
        if self._bar is not None:
            self._bar.total = self._bar.n  # a run that is solved early has not failed, as a notebook's bar would show it
            self._bar.set_postfix_str(self._shortly(trainer), refresh=False)
        self._close_bar()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._close_bar()

    def _close_bar(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _threshold(trainer: Trainer) -> str:
    """The return at which the run counts as solved; empty if there is none, or none that is finite."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, StopWhenSolved):
            threshold = callback.threshold_for(trainer)
            return f"{threshold:g}" if threshold is not None and math.isfinite(threshold) else ""
    return ""


def _env_steps_of_the_run(trainer: Trainer, module: LightningModule) -> int | None:
    """Env steps until `total_env_steps` or `trainer.max_epochs`, whichever comes first; None if the run is unlimited."""
    assert isinstance(module, PPOModule)
    data, updates, total = data_of(trainer), _updates_of_the_run(trainer, module), module.settings.total_env_steps
    budgets = [] if total is None else [total]
    if updates is not None:
        budgets.append(data.env_steps + (updates - data.update) * data.num_envs * data.horizon)
    return min(budgets, default=None)


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
