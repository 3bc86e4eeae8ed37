"""Callbacks of a user, named in a command line."""

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class ReadsAbsentFile(Callback):
    """Raises an OSError that is no logger's."""

    def on_train_start(self, *args: Any) -> None:
        Path("absent").read_text()


class StopsAfterOneUpdate(Callback):
    """Ends the run at the first boundary."""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.should_stop = True
