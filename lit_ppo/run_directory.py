"""The directory of a run: `runs/<environment>/<number>/`, or with a name in the place of the number.

It holds `best.ckpt`, `last.ckpt`, `config.yaml`, `run.json` (what the run has come to), `curve.json`, `logs/` and `reports/`.
`runs/<environment>/latest` is a link to the run that was started or continued last. A path in the settings may begin with
`{run}`, which stands for the run's directory, so the settings of a run name no directory and can be used for another run.

Nothing here imports torch: `runs` and `plot` read small files only.
"""

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from lit_ppo.errors import CheckpointError, ConfigError
from lit_ppo.run_lock import LOCK_NAME

RUNS_DIR: Final = "runs"
RUN: Final = "{run}"  # the run's directory, in a setting
CONFIG_NAME: Final = "config.yaml"
CURVE_NAME: Final = "curve.json"
LATEST: Final = "latest"
_NO_RUN: Final = "other"
_RESERVED: Final = (LATEST, _NO_RUN, "last", "best", "none", "null")
_LONGEST_NAME: Final = 100


def directory_name(env_id: str) -> str:
    """The environment's id as the name of a directory: `ALE/Pong-v5` is `ALE-Pong-v5`, `my_env:make` is `my_env-make`."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", env_id).strip(".-")[:_LONGEST_NAME] or "environment"


def new_run(runs_dir: Path, env_id: str, name: str | None = None) -> Path:
    """Make the directory of a new run; of two processes that ask at once, each gets one of its own.

    Args:
        runs_dir: Directory of all runs.
        env_id: Of the run's environment.
        name: Of the run; None for the next number.

    Raises:
        ConfigError: The name cannot be that of a run, or another run has it.
        CheckpointError: The directory cannot be made.
    """
    if name is not None and (name in _RESERVED or not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}", name)):
        raise ConfigError(
            f"run={name}: expected letters, digits, `_`, `.` and `-`, and none of {', '.join(_RESERVED)}; choose another name"
        )
    parent = runs_dir / directory_name(env_id)
    try:
        return _made(parent, name)
    except FileExistsError:
        if name is None or not (parent / name).is_dir():
            raise CheckpointError(f"{parent}: cannot be written: a file is in its place") from None
        raise ConfigError(
            f"run={name}: {parent / name} is there already; go on with --ckpt_path={name} or choose another name"
        ) from None
    except OSError as error:
        raise CheckpointError(f"{parent}: cannot be written: {error.strerror} (errno {error.errno})") from error


def _made(parent: Path, name: str | None) -> Path:
    number = max((int(entry) for entry in _entries(parent) if entry.isdecimal()), default=0)
    while True:
        number += 1
        directory = parent / (name or str(number))
        parent.mkdir(parents=True, exist_ok=True)
        try:
            directory.mkdir()  # atomic: it fails if another process was faster
            return directory
        except FileExistsError:
            if name is not None:
                raise
        except FileNotFoundError:  # another run that was refused has removed the empty parent
            number -= 1


def _entries(directory: Path) -> list[str]:
    try:
        return os.listdir(directory)
    except OSError:  # none, or not for this user
        return []


def directory_without_run(runs_dir: Path, env_id: str) -> Path:
    """Where a command writes that belongs to no run, such as a test of a checkpoint that was copied here."""
    return runs_dir / directory_name(env_id) / _NO_RUN


def discard_unused(directory: Path) -> None:
    """Remove the directory of a run that was refused before it wrote anything, and its parents if nothing else is in them."""
    if set(_entries(directory)) <= {LOCK_NAME}:
        (directory / LOCK_NAME).unlink(missing_ok=True)
        try:
            for path in (directory, directory.parent, directory.parent.parent):
                path.rmdir()
        except OSError:
            pass  # it holds something else


def run_of(checkpoint: Path) -> Path | None:
    """The directory of the run that a checkpoint belongs to: the one that it lies in; None if that is no run's."""
    directory = checkpoint.resolve().parent
    return shortest(directory) if (directory / LOCK_NAME).is_file() else None


def shortest(path: Path) -> Path:
    """A path below the working directory as a relative one; Lightning makes it absolute."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def point_latest(directory: Path) -> None:
    """Let `latest` beside a run's directory be a link to it; a directory of that name, as a copy of runs may have, stays.

    Raises:
        CheckpointError: The link cannot be made.
    """
    link = directory.parent / LATEST
    if link.is_symlink() or not link.exists():
        replace_link(link, Path(directory.name))


def replace_link(link: Path, target: Path) -> None:
    """Let `link` be a symbolic link to `target`, as a whole or not at all; parents are made.

    Raises:
        CheckpointError: It cannot be made.
    """
    temporary = link.with_name(f".{link.name}.{os.getpid()}.tmp")
    try:
        link.parent.mkdir(parents=True, exist_ok=True)
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(target)
        os.replace(temporary, link)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise CheckpointError(f"{link}: cannot be written: {error.strerror} (errno {error.errno})") from error


def all_runs(runs_dir: Path) -> Iterator[Path]:
    """The directories of all runs, by environment, then by number and name."""
    for env in sorted(_entries(runs_dir)):
        for name in sorted(_entries(runs_dir / env), key=_by_number):
            path = runs_dir / env / name
            if name not in (_NO_RUN, LATEST) and path.is_dir() and not path.is_symlink():
                yield path


def directories_below(directory: Path, file: str) -> Iterator[Path]:
    """The directories below one that have this file, and are no links."""
    found = {path.parent for path in directory.rglob(file)}
    yield from sorted((path for path in found if not path.is_symlink()), key=lambda path: (path.parent, _by_number(path.name)))


def _by_number(name: str) -> tuple[int, int, str]:
    return (0, int(name), "") if name.isdecimal() else (1, 0, name)


def with_run(settings: Any, directory: Path) -> Any:
    """Settings as plain data, with the run's directory in the place of `{run}`."""
    if isinstance(settings, dict):
        return {key: with_run(value, directory) for key, value in settings.items()}
    if isinstance(settings, list):
        return [with_run(value, directory) for value in settings]
    return settings.replace(RUN, str(directory)) if isinstance(settings, str) else settings
