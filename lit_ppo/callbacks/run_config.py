"""RunConfig: the settings of a run, in its directory and inside its checkpoints."""

from typing import Any, Final

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, SaveConfigCallback

from lit_ppo import strict_yaml
from lit_ppo.callbacks.run_place import place_of
from lit_ppo.errors import CheckpointError
from lit_ppo.run_directory import CONFIG_NAME

_NOT_OF_THE_RUN: Final = (
    "ckpt_path",
    "trust_checkpoint",
    "run",
    "runs_dir",
)  # where it goes on from and where it is: another run has another place
CONFIG_KEY = "lit_ppo_config"  # of a checkpoint


class RunConfig(SaveConfigCallback):
    """Writes `config.yaml` into the run's directory and the same settings, as plain data, into every checkpoint.

    Args:
        parser, config: As LightningCLI passes them.
    """

    def __init__(self, parser: LightningArgumentParser, config: Any, **kwargs: Any) -> None:
        super().__init__(parser, config, save_to_log_dir=False, **kwargs)
        settings = config.clone()
        for key in _NOT_OF_THE_RUN:
            if key in settings:
                settings[key] = None
        self._text = parser.dump(settings, skip_none=False)
        self._settings: dict[str, Any] = strict_yaml.load_own(self._text)
        for key in _NOT_OF_THE_RUN:
            self._settings.pop(key, None)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Nothing yet: the directory may be another run's until `RunCheckpoint` has locked it in its own `setup`."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the settings."""
        if trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            self.save_config(trainer, pl_module, "fit")

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write into the run's directory.

        Raises:
            CheckpointError: The file cannot be written.
        """
        path = place_of(trainer) / CONFIG_NAME
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(self._text, encoding="utf-8")
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be written: {error.strerror} (errno {error.errno})") from error

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint[CONFIG_KEY] = self._settings
