"""Which checkpoint a training command starts from, and the settings that follow from it."""

import sys
from pathlib import Path
from typing import Any

from lit_ppo import elastic, interrupts
from lit_ppo.checkpoint_io import is_of_its_directory
from lit_ppo.commands.run_place import directory_of_restart, runs_dir_of
from lit_ppo.foreign_settings import refuse_foreign
from lit_ppo.resume_settings import differences, refuse_fixed, resumed, saved_settings
from lit_ppo.run_choice import CheckpointChoice, chosen_checkpoint
from lit_ppo.standard_streams import say


def choice_of_checkpoint(command: str, settings: Any) -> CheckpointChoice | None:
    """The checkpoint that a training command starts from; None for a new run.

    Args:
        command: `fit`, `validate` or `test`.
        settings: As they were parsed.

    Raises:
        CheckpointError: No run is found.
    """
    given, dirpath = settings.ckpt_path, settings.checkpoint.dirpath
    if command == "fit" and (path := _of_restart(settings)) is not None:
        return CheckpointChoice(path, f"checkpoint: {path}, of the run that torchrun restarts")
    if given is None and command == "fit":
        return None
    if dirpath is not None and given in (None, "last", "best"):
        path = Path(dirpath) / f"{given or 'best'}.ckpt"
        return CheckpointChoice(path, f"checkpoint: {path}" if given is None else "")
    return chosen_checkpoint(given, "last" if command == "fit" else "best", runs_dir_of(settings), settings.run)


def _of_restart(settings: Any) -> Path | None:
    """The last checkpoint of the run that torchrun restarts; None if it restarts none, or that has no checkpoint.

    Raises:
        ConfigError: As in `directory_of_restart`.
    """
    directory = directory_of_restart(settings.checkpoint.dirpath, runs_dir_of(settings))
    path = None if directory is None else directory / "last.ckpt"
    return path if path is not None and elastic.was_written_meanwhile(path) else None


def settings_from(path: Path, typed: dict[str, Any]) -> dict[str, Any]:
    """The settings of a checkpoint's run, and the typed ones, which win.

    Raises:
        ConfigError: The checkpoint comes from elsewhere, and what it sets is not for it to decide.
        CheckpointError: The checkpoint holds no settings.
    """
    return resumed(_accepted_settings(path, typed), typed)


def _accepted_settings(path: Path, typed: dict[str, Any]) -> dict[str, Any]:
    saved = saved_settings(path)
    refuse_foreign(path, saved, typed, is_own=typed.get("trust_checkpoint") is True or is_of_its_directory(path))
    return saved


def settings_of_continuation(path: Path, given: str, typed: dict[str, Any], makes_own_optimizer: bool) -> dict[str, Any]:
    """The settings of a run that goes on from a checkpoint; says which differ, and how to go on if it is interrupted.

    Args:
        path: Of the checkpoint.
        given: What was typed for it.
        typed: Settings.
        makes_own_optimizer: As in `differences`.

    Raises:
        ConfigError: A typed setting cannot change on resume; or as in `settings_from`.
        CheckpointError: The checkpoint holds no settings.
    """
    saved = _accepted_settings(path, typed)
    interrupts.advise(interrupts.continue_from(given))
    refuse_fixed(saved, typed)
    for line in differences(saved, typed, makes_own_optimizer):
        say(f"changed since {path}: {line}", file=sys.stderr)
    return resumed(saved, typed)
