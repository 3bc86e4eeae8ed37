"""Which preset a run takes, and what is said of it."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from lit_ppo import presets


class PresetChoice(NamedTuple):
    """The preset of a run.

    Attributes:
        preset: Its settings stand in for the defaults; None for none.
        about: First line of output; empty if there is nothing to say.
    """

    preset: presets.Preset | None = None
    about: str = ""

    @property
    def name(self) -> str:
        """As the settings of a run have it."""
        return presets.NONE if self.preset is None else self.preset.name


def chosen_preset(typed: Mapping[str, Any], default_env_id: str) -> PresetChoice:
    """The typed preset, or that of the environment.

    Args:
        typed: Settings, section by section.
        default_env_id: Of the environment, if no other is typed.

    Raises:
        ConfigError: There is no preset of the typed name.
    """
    name, data = typed.get("preset"), typed.get("data", {})
    if name == presets.NONE:
        return PresetChoice()
    preset = presets.preset_for(data.get("env_id", default_env_id)) if name is None else presets.preset_named(name)
    if preset is None:
        return PresetChoice()
    if name is None and (changed := preset.changed_by(data)):
        return PresetChoice(
            about=f"preset: none, since that of {preset.name} is for another data.{changed[0]}; "
            f"--preset={preset.name} takes it all the same"
        )
    return PresetChoice(preset, f"preset: {preset.name}, in place of the defaults (--preset=none for these)")
