"""A checkpoint's policy and the settings of its run, for the commands that use a policy."""

from collections.abc import Mapping
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from lit_ppo.data import RolloutDataModule
from lit_ppo.errors import ConfigError
from lit_ppo.foreign_settings import refuse_foreign
from lit_ppo.module import PPOModule
from lit_ppo.resume_settings import checkpoint_at, saved_settings
from lit_ppo.run_directory import RUNS_DIR, directory_without_run, run_of, with_run


class SavedPolicy(NamedTuple):
    """What a checkpoint has of a policy.

    Attributes:
        module: With the trained parameters, on the CPU.
        data: The run's settings of the environments, as arguments of `RolloutDataModule`.
    """

    module: PPOModule
    data: dict[str, Any]

    def make_data(self, **other: Any) -> RolloutDataModule:
        """The environments of the run, except for other settings.

        Raises:
            ConfigError: A setting is invalid.
        """
        return RolloutDataModule(**{**self.data, **other})


def load(path: str | Path, typed: Mapping[str, Any] | None = None, trust_checkpoint: bool = False) -> SavedPolicy:
    """Read a checkpoint.

    Args:
        path: Of the file.
        typed: Settings of the environments that will replace the checkpoint's.
        trust_checkpoint: Take what a checkpoint that no run of its directory wrote says of programs, paths, code and guards.

    Raises:
        CheckpointError: There is no such checkpoint, or it is damaged or holds no settings.
        ConfigError: Its torso cannot be imported; or it comes from elsewhere, and what it sets is not for it to decide.
    """
    path = checkpoint_at(Path(path))
    settings = saved_settings(path)
    data = settings["data"]
    used = {"data": data, "model": {"torso": settings["model"].get("torso")}}  # the other parts are not imported
    refuse_foreign(path, used, {"data": typed or {}}, trust_checkpoint)
    directory = run_of(path) or directory_without_run(Path(RUNS_DIR), data["env_id"])
    torso = settings["model"].get("torso")
    parts = {} if torso is None else {"torso": _imported(torso)}
    return SavedPolicy(PPOModule.load_from_checkpoint(path, "cpu", weights_only=True, **parts), with_run(data, directory))


def _imported(description: dict[str, Any]) -> Any:
    """A torso that the settings of a run name by its import path."""
    module, _, name = description["class_path"].rpartition(".")
    try:
        return partial(getattr(import_module(module), name), **(description.get("init_args") or {}))
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"model.torso={description['class_path']}: cannot be imported: {error}") from error
