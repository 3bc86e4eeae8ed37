"""Callbacks that hold a run in the middle of something until a signal has come; named in a command line."""

import signal
from pathlib import Path
from time import monotonic
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from tests.patience import patient

DEADLINE_S = patient(60.0)


class _Hold(Callback):
    """Holds once.

    Args:
        marker: A file that is made when the run is held.
    """

    def __init__(self, marker: str) -> None:
        self.marker = Path(marker)

    def _hold(self, trainer: Trainer) -> None:
        if self.marker.exists():
            return
        self.marker.touch()
        deadline = monotonic() + DEADLINE_S
        while not trainer.should_stop and monotonic() < deadline:  # GracefulExit's handler sets it
            signal.sigtimedwait([], 0.005)


class HoldUpdate(_Hold):
    """Holds before the first optimizer step."""

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        self._hold(trainer)


class HoldSave(_Hold):
    """Holds in the first save."""

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._hold(trainer)
