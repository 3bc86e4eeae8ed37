"""Which checkpoint a training command starts from, and the settings that follow from it."""

import sys
from pathlib import Path
from typing import Any

from lit_ppo import interrupts
from lit_ppo.resume_settings import differences, refuse_fixed, resumed, saved_settings


def settings_from(path: Path, typed: dict[str, Any]) -> dict[str, Any]:
    """The settings of a checkpoint's run, and the typed ones, which win."""
    return resumed(saved_settings(path), typed)


def settings_of_continuation(path: Path, given: str, typed: dict[str, Any], makes_own_optimizer: bool) -> dict[str, Any]:
    """The settings of a run that goes on from a checkpoint; says which differ, and how to go on if it is interrupted.

    Args:
        path: Of the checkpoint.
        given: What was typed for it.
        typed: Settings.
        makes_own_optimizer: As in `differences`.

    Raises:
        ConfigError: A typed setting cannot change on resume.
        CheckpointError: The checkpoint holds no settings.
    """
    saved = saved_settings(path)
    interrupts.advise(interrupts.continue_from(given))
    refuse_fixed(saved, typed)
    for line in differences(saved, typed, makes_own_optimizer):
        print(f"changed since {path}: {line}", file=sys.stderr)
    return resumed(saved, typed)
