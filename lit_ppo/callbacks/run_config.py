"""RunConfig: the settings of a run, beside its checkpoints and inside them."""

from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, SaveConfigCallback

from lit_ppo.errors import CheckpointError

CONFIG_KEY = "lit_ppo_config"  # of a checkpoint


class RunConfig(SaveConfigCallback):
    """Writes `config.yaml` into the checkpoint directory and the same settings, as plain data, into every checkpoint.

    Args:
        parser, config: As LightningCLI passes them.
    """

    def __init__(self, parser: LightningArgumentParser, config: Any, **kwargs: Any) -> None:
        super().__init__(parser, config, save_to_log_dir=False, **kwargs)
        self._text = parser.dump(config, skip_none=False)
        self._settings: dict[str, Any] = yaml.safe_load(self._text)
        self._settings.pop("ckpt_path", None)  # not a setting of the run: where it was resumed from

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Nothing yet: the directory may be another run's until `RunCheckpoint` has locked it in its own `setup`."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the settings."""
        if trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            self.save_config(trainer, pl_module, "fit")

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write beside the checkpoints; a run without checkpoints has no directory of its own.

        Raises:
            CheckpointError: The file cannot be written.
        """
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, ModelCheckpoint) and callback.dirpath is not None:
                path = Path(callback.dirpath) / "config.yaml"
                try:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_text(self._text, encoding="utf-8")
                except OSError as error:
                    raise CheckpointError(f"{path}: cannot be written: {error.strerror} (errno {error.errno})") from error

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint[CONFIG_KEY] = self._settings
