"""A checkpoint's policy and the settings of its run, for the commands that use a policy."""

import dataclasses
import sys
from collections.abc import Mapping
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from lit_ppo.checkpoint_io import is_of_its_directory, read_checkpoint
from lit_ppo.data import RolloutDataModule
from lit_ppo.errors import CheckpointError, ConfigError
from lit_ppo.foreign_settings import refuse_foreign
from lit_ppo.module import PPOModule
from lit_ppo.ppo_settings import PPOSettings
from lit_ppo.resume_settings import checkpoint_at, saved_settings
from lit_ppo.run_directory import RUNS_DIR, directory_without_run, run_of, with_run
from lit_ppo.standard_streams import say


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
        return RolloutDataModule(**{"seed": 0, **self.data, **other})


def load(
    path: str | Path,
    typed: Mapping[str, Any] | None = None,
    trust_checkpoint: bool = False,
    module_class: type[PPOModule] = PPOModule,
) -> SavedPolicy:
    """Read a checkpoint.

    Args:
        path: Of the file.
        typed: Settings of the environments that will replace the checkpoint's.
        trust_checkpoint: Take what a checkpoint that no run of its directory wrote says of programs, paths, code and guards.
        module_class: Class of the module. The policy of a subclass is read as that of `PPOModule` if it has the same
            parameters, with a message.

    Raises:
        CheckpointError: There is no such checkpoint, it is damaged or holds no settings, or its policy is another class's.
        ConfigError: Its torso cannot be imported; or it comes from elsewhere, and what it sets is not for it to decide.
        NonFiniteUpdate: A parameter is NaN or infinite.
    """
    path = checkpoint_at(Path(path))
    settings, checkpoint = saved_settings(path), read_checkpoint(path)
    data, torso = settings["data"], settings["model"].get("torso")
    used = {"data": data, "model": {"torso": torso}}  # the other parts are not imported
    refuse_foreign(path, used, {"data": typed or {}}, is_own=trust_checkpoint or is_of_its_directory(path))
    directory = run_of(path) or directory_without_run(Path(RUNS_DIR), data["env_id"])
    arguments = dict(checkpoint["hyper_parameters"])
    if torso is not None:
        arguments["torso"] = _imported(torso)
    if module_class is PPOModule:
        arguments = _without_own(arguments, path)
    try:
        module = module_class(**arguments)
    except (MemoryError, OverflowError, RuntimeError) as error:
        raise CheckpointError(f"{path}: its hyper_parameters describe no policy that can be made here: {error}") from error
    module.on_load_checkpoint(checkpoint)
    try:
        module.load_state_dict(checkpoint["state_dict"])
    except RuntimeError as error:
        raise CheckpointError(
            f"{path}: its parameters are not those of {module_class.__name__}; "
            "if its module is a subclass, use lit_ppo.saved_policy.load(path, module_class=...) from Python"
        ) from error
    return SavedPolicy(module, with_run(data, directory))


def _without_own(arguments: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Without the arguments of a subclass's own constructor, such as those of its optimizer; a message names them."""
    known = {"spec", *(field.name for field in dataclasses.fields(PPOSettings))}
    if own := sorted(set(arguments) - known):
        say(f"{path}: read as a PPOModule, without its subclass's own settings {', '.join(own)}", file=sys.stderr)
    return {name: value for name, value in arguments.items() if name in known}


def _imported(description: dict[str, Any]) -> Any:
    """A torso that the settings of a run name by its import path."""
    module, _, name = description["class_path"].rpartition(".")
    try:
        return partial(getattr(import_module(module), name), **(description.get("init_args") or {}))
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"model.torso={description['class_path']}: cannot be imported: {error}") from error
