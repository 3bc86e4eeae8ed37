"""RunStatus: what a run has come to, as a small file that the command `runs` reads."""

import logging
import math
import os
import time

from lightning.pytorch import Callback, LightningModule, Trainer

from lit_ppo import elastic
from lit_ppo.callbacks.curve_export import CurveExport
from lit_ppo.callbacks.graceful_exit import GracefulExit
from lit_ppo.callbacks.greedy_evaluation import GreedyEvaluation, data_of
from lit_ppo.callbacks.run_place import place_of
from lit_ppo.callbacks.stop_when_solved import StopWhenSolved
from lit_ppo.errors import CheckpointError, RunInterrupted
from lit_ppo.module import PPOModule
from lit_ppo.run_directory import directory_name, point_latest
from lit_ppo.run_status import STATUS_NAME, State, Status

log = logging.getLogger(__name__)


class RunStatus(Callback):
    """Writes `run.json` into the run's directory: at the start, after each evaluation, and when the run ends.

    From the start on, `latest` beside the directory is a link to it.
    """

    def __init__(self) -> None:
        self._started = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._started = time.time()
        self._write(trainer, pl_module, "running")
        if trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            directory = place_of(trainer)
            if directory.absolute().parent.name == directory_name(data_of(trainer).environment.env_id):
                point_latest(directory)  # it stands among the runs of its environment

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if any(isinstance(other, GreedyEvaluation) and other.is_fresh(trainer) for other in trainer.callbacks):  # type: ignore[attr-defined]
            self._write(trainer, pl_module, "running")

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._write(trainer, pl_module, "finished")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if self._started:
            is_signal = isinstance(exception, RunInterrupted | KeyboardInterrupt)
            try:
                self._write(trainer, pl_module, "interrupted" if is_signal else "failed")
            except CheckpointError as error:  # the exception that ended the run matters more
                log.warning("%s", error)

    def _write(self, trainer: Trainer, module: LightningModule, state: State) -> None:
        if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        directory = place_of(trainer)
        try:
            self._status(trainer, module, state).write(directory)
        except OSError as error:
            raise CheckpointError(f"{directory / STATUS_NAME}: cannot be written: {error}") from error

    def _status(self, trainer: Trainer, module: LightningModule, state: State) -> Status:
        assert isinstance(module, PPOModule)
        data, best, last, threshold, solved_at = data_of(trainer), None, None, None, None
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, GreedyEvaluation) and callback.latest is not None:
                last = callback.latest.results.mean
            elif isinstance(callback, CurveExport):
                best = callback.best_return
            elif isinstance(callback, StopWhenSolved):
                threshold, solved_at = callback.threshold_for(trainer), callback.solved_at
            elif isinstance(callback, GracefulExit) and callback.received is not None and state == "finished":
                state = "interrupted"
        return Status(
            env_id=data.environment.env_id,
            seed=data.seed,
            started=self._started,
            updated=time.time(),
            env_steps=data.env_steps,
            updates=data.update,
            total_env_steps=module.run_env_steps,
            best_return=_finite(best),
            last_return=_finite(last),
            threshold=_finite(threshold),
            solved_at=solved_at,
            state="solved" if solved_at is not None and state == "finished" else state,
            pid=os.getpid(),
            launch=elastic.launch(),
        )


def _finite(value: float | None) -> float | None:
    """As JSON has it: there is no threshold that is infinite, which never ends a run."""
    return value if value is not None and math.isfinite(value) else None
