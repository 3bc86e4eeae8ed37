"""RunCheckpoint: `best.ckpt` by evaluation return and `last.ckpt`, in a directory that stays the same."""

import logging
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from lit_ppo import interrupts
from lit_ppo.callbacks.greedy_evaluation import GreedyEvaluation, data_of
from lit_ppo.callbacks.run_place import place_of, place_run
from lit_ppo.callbacks.stop_when_solved import StopWhenSolved
from lit_ppo.compat_lightning import save_checkpoint
from lit_ppo.errors import CheckpointError, ConfigError
from lit_ppo.module import PPOModule
from lit_ppo.run_directory import discard_unused, shortest
from lit_ppo.run_lock import RunLock

log = logging.getLogger(__name__)


class RunCheckpoint(ModelCheckpoint):
    """Saves at the end of an update: the best policy when an evaluation finds one, the last every few updates and at the end.

    A policy that solved the run counts as better than any that did not; of two equal policies the later counts as better.
    Lightning's own rules would compare the last known return in every epoch, evaluated or not, and do not know `solved`.

    Args:
        dirpath: Directory of the checkpoints, which is the run's: a new run overwrites those of the run before. None for a new
            directory `runs/<environment>/<number>` in `trainer.default_root_dir`, or that of the run which goes on.
        every_n_updates: Updates between two `last.ckpt`.

    Raises:
        ConfigError: A setting is out of its range.
    """

    def __init__(self, dirpath: str | None = None, every_n_updates: int = 10) -> None:
        if every_n_updates < 1:
            raise ConfigError(f"checkpoint.every_n_updates={every_n_updates}: expected at least 1")
        super().__init__(
            dirpath=dirpath, filename="best", monitor="eval/return", mode="max", save_last=True, enable_version_counter=False
        )
        self.every_n_updates = every_n_updates
        self._best: tuple[bool, float] | None = None
        self._last_update = -1  # -1: training has not begun
        self._lock: RunLock | None = None
        self._is_placed_by_itself = dirpath is None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Lock the directory; not Lightning's `setup`, which warns in every second run that the directory is not empty."""
        if stage == "fit" and not self._is_placed_by_itself:
            self.lock(trainer)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lock a directory that was not named: only now does the Trainer say from which checkpoint the run goes on."""
        if self._is_placed_by_itself:
            self.lock(trainer)
            self.dirpath = trainer.strategy.broadcast(self.dirpath)  # the first rank has chosen it

    def lock(self, trainer: Trainer) -> None:
        """Lock the directory; may be called before `fit`, so that a run that is refused leaves no directory of a logger.

        Raises:
            ConfigError: Another run holds it.
            CheckpointError: The directory cannot be written.
        """
        if self._lock is None and trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            directory = place_of(trainer) if self.dirpath is None else Path(self.dirpath)
            self._lock = RunLock(directory)
            place_run(trainer, shortest(directory))
            self.dirpath = str(directory.absolute())
            for unfinished in Path(self.dirpath).glob(".*.ckpt.*.tmp"):  # of a run that was killed while it saved
                unfinished.unlink(missing_ok=True)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._release()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save the last boundary, unless the parameters are half way through an update."""
        is_locked = self._lock is not None or not trainer.is_global_zero
        if not is_locked or self._last_update == -1:  # nothing has been learnt
            self._release()
            return
        assert isinstance(pl_module, PPOModule)
        update, data = data_of(trainer).boundary_update, data_of(trainer)
        # every rank has a part of the boundary, so all must have come here
        is_whole = trainer.world_size == 1 or data.failed_together is exception
        if is_whole and self._last_update != update and not pl_module.is_updating:
            try:
                self._save_last(trainer, update)
                log.warning("saved update %d to %s", update, self.last_model_path)
            except CheckpointError as error:  # the exception that ended the run matters more
                log.warning("update %d could not be saved: %s", update, error)
        self._release()

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None
            if self._is_placed_by_itself:
                assert self.dirpath is not None
                discard_unused(Path(self.dirpath))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._last_update = data_of(trainer).update

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: the update is saved after its evaluation."""

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Nothing: there is no validation during fit."""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save what is due."""
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        update = data_of(trainer).update
        score = self._score(trainer)
        if score is not None and (self._best is None or score >= self._best):
            self._best = score
            self.best_model_path = self.format_checkpoint_name({}, "best")
            self.best_model_score = self.current_score = torch.tensor(score[1])
            save_checkpoint(self, trainer, self.best_model_path)
        # not only in `on_train_end`, before which WeightAveraging replaces the weights that a resumed run goes on with
        if update % self.every_n_updates == 0 or trainer.should_stop or _is_last(trainer):
            self._save_last(trainer, update)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the last update."""
        update = data_of(trainer).update
        if not trainer.fast_dev_run and update != self._last_update:  # type: ignore[attr-defined]
            self._save_last(trainer, update)

    def _score(self, trainer: Trainer) -> tuple[bool, float] | None:
        """Whether the newest policy solved the run, and its mean return; None if it was not evaluated."""
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        for callback in callbacks:
            if isinstance(callback, GreedyEvaluation) and callback.is_fresh(trainer):
                assert callback.latest is not None
                solved = any(isinstance(other, StopWhenSolved) and other.solved_at is not None for other in callbacks)
                return solved, callback.latest.results.mean
        return None

    def _save_last(self, trainer: Trainer, update: int) -> None:
        self._last_update = update
        self.last_model_path = self.format_checkpoint_name({}, self.CHECKPOINT_NAME_LAST)
        save_checkpoint(self, trainer, self.last_model_path)
        interrupts.advise(interrupts.continue_from(str(shortest(Path(self.last_model_path)))))

    def state_dict(self) -> dict[str, Any]:
        return {"best": None if self._best is None else list(self._best), "best_model_path": self.best_model_path}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if state_dict["best"] is not None:
            solved, mean = state_dict["best"]
            self._best = (bool(solved), float(mean))
        self.best_model_path = state_dict["best_model_path"]


def _is_last(trainer: Trainer) -> bool:
    """Whether the update that ends now is the last one that `max_epochs` and `max_steps` allow."""
    return trainer.current_epoch + 1 == trainer.max_epochs or 0 <= trainer.max_steps <= trainer.global_step
