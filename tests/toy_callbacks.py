"""Callbacks of a user, named in a command line."""

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback


class ReadsAbsentFile(Callback):
    """Raises an OSError that is no logger's."""

    def on_train_start(self, *args: Any) -> None:
        Path("absent").read_text()
