"""Which run, and which checkpoint of it, is meant by what was typed: nothing, `last`, `best`, a run's name, or a path."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, Literal, NamedTuple

from lit_ppo.errors import CheckpointError
from lit_ppo.run_directory import LATEST, all_runs, shortest
from lit_ppo.run_status import Status, read_status

Which = Literal["best", "last"]
_CHECKPOINTS: Final = ("best", "last")


class CheckpointChoice(NamedTuple):
    """The checkpoint that is meant.

    Attributes:
        path: Of the file, which need not be there.
        about: What to say of the choice; empty if the path was typed.
    """

    path: Path
    about: str


def chosen_checkpoint(given: str | None, which: Which, runs_dir: Path, run: str | None = None) -> CheckpointChoice:
    """The checkpoint that was typed.

    Args:
        given: `last` or `best`, a run's name such as `3`, `baseline` or `CartPole-v1/3`, a path of a checkpoint or of a run's
            directory; None for the checkpoint `which`.
        which: Checkpoint of a run that is meant as a whole; if the run lacks it, its other one is taken.
        runs_dir: Directory of all runs.
        run: Name of the run whose `last` or `best` is meant; None for the newest run that has a checkpoint.

    Raises:
        CheckpointError: There is no such run, or several have the name.
    """
    if given in (None, *_CHECKPOINTS):
        wanted = _CHECKPOINTS if given is None else (given,)
        directory = newest_run(runs_dir, wanted) if run is None else run_named(run, runs_dir, "run=")
        path = directory / f"{given}.ckpt" if given is not None else _of_run(directory, which)
        return CheckpointChoice(path, f"checkpoint: {path}" + ("" if run else ", of the newest run"))
    assert given is not None
    if Path(given).is_file():
        return CheckpointChoice(Path(given), "")
    if given.endswith(".ckpt"):
        raise CheckpointError(f"ckpt_path={given}: expected a checkpoint at {given}, found none")
    path = _of_run(run_named(given, runs_dir, "ckpt_path="), which)
    return CheckpointChoice(path, f"checkpoint: {path}")


def _of_run(directory: Path, which: Which) -> Path:
    """The checkpoint `which` of a run, or the other one if that is missing."""
    paths = [directory / f"{name}.ckpt" for name in sorted(_CHECKPOINTS, key=lambda name: name != which)]
    return next((path for path in paths if path.is_file()), paths[0])


def run_named(name: str, runs_dir: Path, option: str = "") -> Path:
    """The directory of a run.

    Args:
        name: Its number or name, with the environment in front if several have it, or a path.
        runs_dir: Directory of all runs.
        option: What the name was typed for, such as `run=`.

    Raises:
        CheckpointError: There is no such run, or several have the name.
    """
    if Path(name).is_dir():
        return Path(name)
    found = list(_named(name, runs_dir))
    if not found:
        raise CheckpointError(
            f"{option}{name}: expected a path, or the name of a run in {runs_dir}, which has none of this name; "
            "`python -m lit_ppo runs` lists them"
        )
    if len(found) > 1:
        listed = ", ".join(str(path.relative_to(runs_dir)) for path in found[:5])
        raise CheckpointError(f"{option}{name}: several runs have this name; write one of {listed}")
    return found[0]


def _named(name: str, runs_dir: Path) -> Iterator[Path]:
    for path in all_runs(runs_dir):
        if name in (path.name, f"{path.parent.name}/{path.name}"):
            yield path
    link = runs_dir / name
    if link.name == LATEST and link.is_dir():  # CartPole-v1/latest
        yield shortest(link.resolve())


def newest_run(runs_dir: Path, wanted: Sequence[str] = _CHECKPOINTS) -> Path:
    """The run that was started or continued last, of those that have a checkpoint.

    Args:
        runs_dir: Directory of all runs.
        wanted: Names of checkpoints, of which it must have one.

    Raises:
        CheckpointError: There is none.
    """
    runs = [path for path in all_runs(runs_dir) if any((path / f"{name}.ckpt").is_file() for name in wanted)]
    if not runs:
        raise CheckpointError(
            f"ckpt_path: expected a run with {' or '.join(f'{name}.ckpt' for name in wanted)} in {runs_dir}, found none; "
            "make one with `python -m lit_ppo fit`, or name a path"
        )
    return max(runs, key=_started)


def run_of_launch(launch: str | None, runs_dir: Path) -> Path | None:
    """The newest run of a launch by torchrun; None if none says that it belongs to it.

    Args:
        launch: As `elastic.launch` names it.
        runs_dir: Directory of all runs.
    """
    runs = [path for path in all_runs(runs_dir) if (status := _status_of(path)) is not None and status.launch == launch]
    return max(runs, key=_started, default=None)


def _started(directory: Path) -> tuple[float, float]:
    """When a run was started or continued; one whose status cannot be read counts as older than any other."""
    status = _status_of(directory)
    return (0.0 if status is None else status.started), directory.stat().st_mtime


def _status_of(directory: Path) -> Status | None:
    """What a run has come to; None if it cannot be read."""
    try:
        return read_status(directory)
    except (ValueError, OSError):
        return None
