"""What the settings in a checkpoint must be: every key known, and its value of the type that the constructor announces.

They are checked before any of them is used. Their ranges are checked where the objects are made.
"""

import inspect
import types
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Callable as CallableType
from dataclasses import is_dataclass
from typing import Any, Final, Literal, Union, get_args, get_origin, get_type_hints

from lit_ppo.bridge.settings import BridgeSettings
from lit_ppo.callbacks.curve_export import CurveExport
from lit_ppo.callbacks.greedy_evaluation import GreedyEvaluation
from lit_ppo.callbacks.run_checkpoint import RunCheckpoint
from lit_ppo.callbacks.stop_when_solved import StopWhenSolved
from lit_ppo.checkpoint_structure import saved_spec
from lit_ppo.data import RolloutDataModule
from lit_ppo.errors import CheckpointError, shown
from lit_ppo.ppo_settings import PPOSettings

_NEEDED_OF_MODEL: Final = {"learning_rate_decay", "clip_decay"}  # a subclass may have no options for the others
_OF_RUN: Final[dict[str, Any]] = {"seed_everything": int, "total_env_steps": int | None, "preset": str | None}
_OF_TRAINER: Final[dict[str, Any]] = {
    "max_epochs": int | None,
    "max_steps": int,
    "precision": str | int | None,
    "deterministic": bool | Literal["warn"] | None,
    "logger": dict | list[Any] | bool | None,
}
_NEEDED_OF_PARAMETERS: Final = {"spec", "seed", "total_env_steps"}
_CALLBACKS: Final[dict[str, type]] = {
    "evaluation": GreedyEvaluation,
    "solved": StopWhenSolved,
    "curve": CurveExport,
    "checkpoint": RunCheckpoint,
}


def require_settings(checkpoint: Mapping[str, Any], config_key: str) -> None:
    """Refuse the settings of a checkpoint if a key is missing or unknown, or a value has another type.

    Args:
        checkpoint: As `read_checkpoint` returns it.
        config_key: Where the settings of a run of the command line are.

    Raises:
        CheckpointError: Names the key, and says what was expected there.
    """
    of_data = {**_types_of(RolloutDataModule.__init__), **_types_of(BridgeSettings)}
    of_model = _types_of(PPOSettings)
    if config_key in checkpoint:
        config = _mapping(checkpoint[config_key], config_key)
        for section in ("model", "data", "trainer"):
            _mapping(config.get(section), f"{config_key}.{section}")
        _require(config, _OF_RUN, {*_OF_RUN, *_CALLBACKS}, config_key, has_more=True)
        _require(config["trainer"], _OF_TRAINER, set(), f"{config_key}.trainer", has_more=True)
        _require(config["data"], of_data, set(of_data) - {"seed"}, f"{config_key}.data")
        _require(config["model"], of_model, _NEEDED_OF_MODEL, f"{config_key}.model", has_more=True)
        for section, callback in _CALLBACKS.items():
            kinds = _types_of(inspect.getattr_static(callback, "__init__"))
            _require(config[section], kinds, set(), f"{config_key}.{section}")
    if "datamodule_hyper_parameters" in checkpoint:
        _require(checkpoint["datamodule_hyper_parameters"], of_data, set(of_data), "datamodule_hyper_parameters", has_more=True)
    if "hyper_parameters" in checkpoint:
        parameters = checkpoint["hyper_parameters"]
        _require(parameters, of_model, _NEEDED_OF_PARAMETERS, "hyper_parameters", has_more=True)
        saved_spec(checkpoint)


def _types_of(function: Any) -> dict[str, Any]:
    """The annotations of a dataclass's fields, or of a function's arguments."""
    return {name: kind for name, kind in get_type_hints(function).items() if name != "return"}


def _mapping(value: Any, key: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise CheckpointError(f"the checkpoint's {key}: expected a mapping, got {shown(value)}")
    return value


def _require(value: Any, kinds: Mapping[str, Any], needed: set[str], key: str, *, has_more: bool = False) -> None:
    settings = _mapping(value, key)
    if missing := sorted(needed - settings.keys()):
        raise CheckpointError(f"the checkpoint's {key}: expected {missing[0]!r}, which is missing")
    for name, setting in settings.items():
        if type(name) is not str:
            raise CheckpointError(f"the checkpoint's {key}: expected names, got {shown(name)}")
        if name in kinds:
            if not _is_of(setting, kinds[name]):
                expected = str(kinds[name]).replace("typing.", "").replace("<class '", "").replace("'>", "")
                raise CheckpointError(f"the checkpoint's {key}.{name}: expected {expected}, got {shown(setting)}")
        elif not has_more:
            raise CheckpointError(f"the checkpoint's {key}: {shown(name)} is none of its keys")


def _is_of(value: Any, kind: Any) -> bool:
    """Whether plain data stands for a value of an annotated type."""
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return True
    if origin in (Union, types.UnionType):
        return any(_is_of(value, part) for part in arguments)
    if origin is Literal:
        return any(type(value) is type(choice) and value == choice for choice in arguments)
    if origin in (list, Sequence, tuple):
        return type(value) in (list, tuple) and all(_is_of(item, arguments[0]) for item in value)
    if origin is CallableType or kind is Callable:  # a user's own code, by its import path
        return type(value) is str or (isinstance(value, dict) and type(value.get("class_path")) is str)
    if is_dataclass(kind):
        parts = _types_of(kind)
        return isinstance(value, dict) and value.keys() == parts.keys() and all(_is_of(value[key], parts[key]) for key in parts)
    if kind is float:
        return type(value) in (int, float)
    return type(value) is (origin or kind)
