"""What the settings of a checkpoint mean for a run that resumes it: which it keeps, which may change, which are refused."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from lit_ppo import presets
from lit_ppo.callables import in_words
from lit_ppo.callbacks.run_config import CONFIG_KEY
from lit_ppo.checkpoint_io import previous_of, read_checkpoint, verified_bytes
from lit_ppo.checkpoint_structure import RUN_LENGTH_KEY
from lit_ppo.errors import CheckpointError, ConfigError
from lit_ppo.ppo_settings import PARTS
from lit_ppo.settings_structure import require_settings
from lit_ppo.standard_streams import say

# A checkpoint's settings that replace the defaults.
_SECTIONS_OF_A_RUN: Final = (
    "seed_everything",
    "total_env_steps",
    "preset",
    "model",
    "data",
    "evaluation",
    "solved",
    "curve",
    "checkpoint",
)
_TRAINER_KEYS_OF_A_RUN: Final = ("max_epochs", "max_steps", "precision", "deterministic", "logger")
# Settings that cannot change on resume: the saved episodes or parameters would not fit.
_FIXED_ON_RESUME: Final = (
    "preset",
    "data.env_id",
    "data.env_kwargs",
    "data.wrappers",
    "data.max_episode_steps",
    "data.frame_stack",
    "data.remake_each_episode",
    "data.obs_keys",
    "data.action_mask",
    "data.num_envs",
    "data.vectorization",
    "model.actor_hidden_sizes",
    "model.critic_hidden_sizes",
    "model.activation",
    "model.shared_torso",
    "model.image_network",
    "model.image_channels",
    "model.memory",
    "model.memory_size",
    "model.normalize_observations",
    "model.normalize_rewards",
    "model.log_std",
    "model.gsde",
    "model.adam_epsilon",  # the optimizer's saved state would win
    *(f"model.{part}" for part in PARTS),
)
# The same for rates that are not ours to set: those of one's own optimizer, or of a scheduler.
_FIXED_RATES: Final = ("model.learning_rate", "model.learning_rate_decay")


def checkpoint_at(path: Path) -> Path:
    """The checkpoint to resume; the previous one, with a message, if that file is damaged.

    Args:
        path: Of the checkpoint.

    Raises:
        CheckpointError: There is no undamaged checkpoint.
    """
    if not path.is_file():
        raise CheckpointError(f"ckpt_path={path}: expected a checkpoint, found none")
    try:
        verified_bytes(path)
    except CheckpointError as error:
        previous = previous_of(path)
        if not previous.is_file():
            raise
        verified_bytes(previous)
        say(f"{error}; falling back to {previous}", file=sys.stderr)
        return previous
    return path


def saved_settings(path: Path) -> dict[str, Any]:
    """The settings of a checkpoint's run that its continuation keeps unless others are typed.

    Raises:
        CheckpointError: The checkpoint holds no settings, or something else in their place.
    """
    checkpoint = read_checkpoint(path)
    require_settings(checkpoint, CONFIG_KEY)
    settings = checkpoint.get(CONFIG_KEY) or _settings_from_python(checkpoint, path)
    saved = {key: settings[key] for key in _SECTIONS_OF_A_RUN if key in settings}
    saved["trainer"] = {key: settings["trainer"][key] for key in _TRAINER_KEYS_OF_A_RUN if key in settings["trainer"]}
    for section, linked in (("data", {"seed"}), ("model", {"seed", "total_env_steps"})):
        saved[section] = {key: value for key, value in saved[section].items() if key not in linked}
    return saved


def _settings_from_python(checkpoint: dict[str, Any], path: Path) -> dict[str, Any]:
    """The settings of a run that a Python program made: those that Lightning saves of module and datamodule.

    Raises:
        CheckpointError: They are not there, or the command line has no options for them.
    """
    model, data = (checkpoint.get(key) for key in ("hyper_parameters", "datamodule_hyper_parameters"))
    if not model or not data:
        raise CheckpointError(
            f"{path}: expected the settings of its run, found none: it has no PPOModule and RolloutDataModule"
        )
    if model["seed"] != data["seed"]:
        raise CheckpointError(
            f"{path}: its module has seed {model['seed']} and its data seed {data['seed']}; the command line has one for both; "
            "use it from Python"
        )
    length = model["total_env_steps"] or checkpoint.get(RUN_LENGTH_KEY)
    # as a configuration file would have them: lists, not tuples
    model, data = (json.loads(json.dumps(settings)) for settings in (model, data))
    del model["spec"]
    return {
        "seed_everything": data["seed"],
        "total_env_steps": length,
        "preset": presets.NONE,
        "model": model,
        "data": data,
        "trainer": {},
    }


def resumed(saved: dict[str, Any], typed: dict[str, Any]) -> dict[str, Any]:
    """The settings of the continuation: the typed ones, and the saved ones that they do not replace.

    A typed `total_env_steps` or `trainer.max_epochs` replaces both saved ones. One that is null, as in a printed configuration
    file, sets no length and replaces nothing.
    """
    if _has_length(typed):
        return _merged(_without_length(saved), typed)
    return _merged(saved, _without_length(typed))


def differences(saved: dict[str, Any], typed: dict[str, Any], makes_own_optimizer: bool) -> list[str]:
    """Each typed setting that differs from the saved one, as `key: saved -> typed`, and a new length of the run.

    If the length belongs to a schedule, it is left out: `PPOModule` warns of it.

    Args:
        saved, typed: Settings.
        makes_own_optimizer: Whether the module's class does, so that the learning rate decays only if it is set to.
    """
    before = dict(_leaves(_without_length(saved)))
    changed = {key: value for key, value in _leaves(_without_length(typed)) if key in before}
    lines = [f"{key}: {before[key]} -> {value}" for key, value in changed.items() if before[key] != value]
    settings = resumed(saved, typed)
    lengths = _length(saved), _length(settings)
    if lengths[0] != lengths[1] and not (_decays(settings["model"], makes_own_optimizer) and lengths[0] is not None):
        old, new = (f"{length:,}" if length is not None else "unlimited" for length in lengths)
        lines.append(f"length: {old} -> {new} env steps")
    return lines


def _length(settings: dict[str, Any]) -> int | None:
    """Env steps of a run, as in `PPOModule`: `total_env_steps`, else `trainer.max_epochs` rollouts; None if unlimited."""
    total, updates = settings.get("total_env_steps"), settings.get("trainer", {}).get("max_epochs")
    if total is None and updates is not None and updates >= 0:
        return int(updates * settings["data"]["num_envs"] * settings["data"]["horizon"])
    return total


def _decays(model: dict[str, Any], makes_own_optimizer: bool) -> bool:
    is_default = model["learning_rate_decay"] is None and not _has_own_rates(model) and not makes_own_optimizer
    return is_default or "linear" in (model["learning_rate_decay"], model["clip_decay"])


def _has_own_rates(model: dict[str, Any]) -> bool:
    return model.get("optimizer") is not None or model.get("lr_scheduler") is not None


def _has_length(settings: dict[str, Any]) -> bool:
    return any(
        length is not None for length in (settings.get("total_env_steps"), settings.get("trainer", {}).get("max_epochs"))
    )


def _without_length(settings: dict[str, Any]) -> dict[str, Any]:
    trainer = {key: value for key, value in settings.get("trainer", {}).items() if key != "max_epochs"}
    return {key: value for key, value in settings.items() if key != "total_env_steps"} | {"trainer": trainer}


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Settings of `base`, with those of `over` in their place, section by section; of another class as a whole."""
    result = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        is_other = both and "class_path" in value and value["class_path"] != result[key].get("class_path")
        result[key] = _merged(result[key], value) if both and not is_other else value
    return result


def refuse_fixed(saved: dict[str, Any], typed: dict[str, Any]) -> None:
    """Refuse typed settings that cannot change on resume.

    Raises:
        ConfigError: There is one that differs from the saved setting.
    """
    fixed = _FIXED_ON_RESUME + (_FIXED_RATES if _has_own_rates(saved["model"]) else ())
    for key in fixed:
        section, _, name = key.rpartition(".")
        before, now = (settings.get(section, {}) if section else settings for settings in (saved, typed))
        if name in now and not _agrees(now[name], before.get(name)):
            raise ConfigError(
                f"{key}={_shown(now[name])}: the checkpoint's run has {_shown(before.get(name))}, which cannot change on resume"
            )


def _agrees(typed: Any, saved: Any) -> bool:
    """Whether a typed value is the saved one; of a class and its arguments, whether those that are typed are."""
    if isinstance(typed, dict) and isinstance(saved, dict) and "class_path" in typed:
        before, now = dict(_leaves(saved)), dict(_leaves(typed))
        return all(key in before and before[key] == value for key, value in now.items())
    return bool(typed == saved)


def _shown(value: Any) -> Any:
    """A class and its arguments as in Python, any other value as it is."""
    is_class = isinstance(value, dict) and "class_path" in value
    return in_words({"init_args": None, **value}) if is_class else value


def _leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict) and value and key != "env_kwargs":
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
