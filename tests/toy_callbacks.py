"""Callbacks of a user, named in a command line."""

import os
import signal
import threading
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger

from lit_ppo.callbacks.greedy_evaluation import data_of


class ReadsAbsentFile(Callback):
    """Raises an OSError that is no logger's."""

    def on_train_start(self, *args: Any) -> None:
        Path("absent").read_text()


class Unfit(CSVLogger):
    """A logger that cannot be made here."""

    def __init__(self, save_dir: str = "logs") -> None:
        raise ValueError("expected another machine")


class StopsAfterOneUpdate(Callback):
    """Ends the run at the first boundary."""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.should_stop = True


class HangsInRank(Callback):
    """Waits for ever in the main thread of one rank.

    Args:
        number: Of the rank.
        update: At whose end.
    """

    def __init__(self, number: int, update: int) -> None:
        self.number, self.update = number, update

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_rank == self.number and data_of(trainer).update == self.update:
            threading.Event().wait()


class KillsTheCommand(Callback):
    """Kills the process that has started this one, once, and notes where the run starts.

    Args:
        update: At whose end.
        once: File that is removed first; without it nothing is killed.
        starts: File that gets a line with the number of updates before each start.
    """

    def __init__(self, update: int, once: str, starts: str) -> None:
        self.update, self.once, self.starts = update, once, starts

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        with open(self.starts, "a") as file:
            file.write(f"{data_of(trainer).update}\n")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if data_of(trainer).update == self.update:
            try:
                Path(self.once).unlink()
            except FileNotFoundError:  # done already
                return
            os.kill(os.getppid(), signal.SIGKILL)
            signal.pause()  # the kernel ends this process as well
