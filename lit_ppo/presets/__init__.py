"""Presets: settings for known environments, which stand in for the defaults.

Each YAML file beside this one is a preset, named as the file is. It holds the ids that it is for (`env_ids`, where `*` stands
for any text), where its settings come from (`source`), the score that was measured with them (`score`, null if none was), and
the settings as a configuration file has them (`settings`).
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from importlib.resources import files
from typing import Any, Final

from lit_ppo import strict_yaml
from lit_ppo.errors import ConfigError

NONE: Final = "none"  # typed for no preset
# Settings of `data` that make another environment of the same id.
_OF_THE_ENVIRONMENT: Final = ("env_kwargs", "wrappers", "max_episode_steps", "frame_stack", "obs_keys", "action_mask")
# Settings of `model` that a part of the user's own replaces.
_REPLACED_BY: Final = {
    "optimizer": ("learning_rate", "adam_epsilon"),
    "lr_scheduler": ("learning_rate_decay",),
    "torso": ("actor_hidden_sizes", "critic_hidden_sizes"),
}


@dataclass(frozen=True)
class Preset:
    """Settings for one environment, or for a family of them.

    Attributes:
        name: What is typed as `--preset`.
        env_ids: Ids of the environments; `*` stands for any text.
        source: Where the settings come from.
        score: What was measured with them; None if nothing was yet.
        settings: As in a configuration file, with the length of the run as `total_env_steps`.
    """

    name: str
    env_ids: tuple[str, ...]
    source: str
    score: str | None
    settings: dict[str, Any]

    @property
    def total_env_steps(self) -> int:
        """Length of the run in env steps, if no other is typed."""
        return int(self.settings["total_env_steps"])

    def is_for(self, env_id: str) -> bool:
        """Whether it is for the environment of this id."""
        return any(fnmatchcase(env_id, pattern) for pattern in self.env_ids)

    def changed_by(self, data: Mapping[str, Any]) -> list[str]:
        """Names of the typed settings of `data` that make another environment than that of the preset."""
        own = self.settings.get("data", {})
        return [name for name in _OF_THE_ENVIRONMENT if name in data and data[name] != own.get(name)]

    def defaults_beside(self, typed: Mapping[str, Any]) -> dict[str, Any]:
        """The settings that stand in for defaults, as `section.name: value`, without the length of the run.

        Settings that what is typed replaces as a whole are left out: those of another class, and those of Adam or of the hidden
        layers where the user's own part stands in their place.

        Args:
            typed: Settings, section by section.
        """
        sections = {section: values for section, values in self.settings.items() if section != "total_env_steps"}
        return {
            f"{section}.{name}": value
            for section, values in sections.items()
            for name, value in values.items()
            if not _is_replaced(section, name, value, typed.get(section, {}))
        }


def _is_replaced(section: str, name: str, value: Any, typed: Mapping[str, Any]) -> bool:
    if section == "model" and any(name in names and typed.get(part) for part, names in _REPLACED_BY.items()):
        return True
    classes = [block.get("class_path") for block in (value, typed.get(name)) if isinstance(block, dict)]
    return len(classes) == 2 and classes[1] is not None and classes[0] != classes[1]


@cache
def all_presets() -> tuple[Preset, ...]:
    """All presets, in the order of their names."""
    paths = sorted((path for path in files(__name__).iterdir() if path.name.endswith(".yaml")), key=lambda path: path.name)
    found = []
    for path in paths:
        content = strict_yaml.load_own(path.read_text(encoding="utf-8"))
        name = path.name.removesuffix(".yaml")
        found.append(Preset(name, tuple(content["env_ids"]), content["source"], content["score"], content["settings"]))
    return tuple(found)


def preset_named(name: str) -> Preset:
    """The preset of this name.

    Raises:
        ConfigError: There is none; the message names the most similar one.
    """
    presets = {preset.name: preset for preset in all_presets()}
    if name not in presets:
        similar = difflib.get_close_matches(name, [*presets, NONE], n=1)
        hint = f" (did you mean {similar[0]}?)" if similar else ""
        raise ConfigError(f"preset={name}: expected {NONE}, or a name that `python -m lit_ppo presets` lists{hint}")
    return presets[name]


def preset_for(env_id: str) -> Preset | None:
    """The preset for an environment; None if there is none."""
    return next((preset for preset in all_presets() if preset.is_for(env_id)), None)
