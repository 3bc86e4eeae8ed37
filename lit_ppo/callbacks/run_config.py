"""RunConfig: what a run was started with, beside its checkpoints and inside them."""

from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, SaveConfigCallback

CONFIG_KEY = "lit_ppo_config"  # of a checkpoint


class RunConfig(SaveConfigCallback):
    """Writes `config.yaml` into the checkpoint directory and the same settings, as plain data, into every checkpoint.

    Args:
        parser, config: As the CLI hands them over.
    """

    def __init__(self, parser: LightningArgumentParser, config: Any, **kwargs: Any) -> None:
        super().__init__(parser, config, save_to_log_dir=False, **kwargs)
        self._text = parser.dump(config, skip_none=False)
        self._settings: dict[str, Any] = yaml.safe_load(self._text)
        self._settings.pop("ckpt_path", None)  # where a run was resumed from is no setting of the run

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Beside the checkpoints; without checkpoints there is no directory of the run's own."""
        if stage != "fit":
            return
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, ModelCheckpoint) and callback.dirpath is not None:
                path = Path(callback.dirpath) / "config.yaml"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(self._text, encoding="utf-8")

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint[CONFIG_KEY] = self._settings
