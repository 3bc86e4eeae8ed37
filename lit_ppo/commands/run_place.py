"""Where the run of a training command is: which directory `{run}` stands for in its settings."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from lightning.pytorch.utilities import rank_zero_only

from lit_ppo import elastic
from lit_ppo.errors import ConfigError
from lit_ppo.run_choice import run_of_launch
from lit_ppo.run_directory import RUNS_DIR, directory_without_run, discard_unused, new_run, run_of, with_run
from lit_ppo.run_status import STATUS_NAME


def is_first_rank() -> bool:
    """Whether this process is the one of the run that writes its files."""
    return getattr(rank_zero_only, "rank", 0) == 0


def runs_dir_of(settings: Any) -> Path:
    """The directory of all runs.

    Args:
        settings: Of the command.
    """
    if settings.runs_dir is not None:
        return Path(settings.runs_dir)
    return Path(settings.trainer.default_root_dir or "") / RUNS_DIR


def directory_of_restart(dirpath: str | None, runs_dir: Path) -> Path | None:
    """The directory of the run that torchrun restarts; None if it restarts none, or the run had not begun to train.

    Args:
        dirpath: `checkpoint.dirpath`, if it was typed.
        runs_dir: Directory of all runs.

    Raises:
        ConfigError: Nothing would tell the nodes which run that is.
    """
    launch = elastic.launch()
    if elastic.may_restart() and dirpath is None and launch is None:
        raise ConfigError("torchrun: --max-restarts on several nodes: expected --rdzv-id=NAME, by which they find the run")
    if not elastic.is_restart():
        return None
    directory = Path(dirpath) if dirpath is not None else run_of_launch(launch, runs_dir)
    # an earlier launch may have had the same name
    return directory if directory is not None and elastic.was_written_meanwhile(directory / STATUS_NAME) else None


class RunPlace(NamedTuple):
    """The directory of a run.

    Attributes:
        directory: Its path.
        is_new: Whether it was made for this run, so that it goes again if the run is refused.
    """

    directory: Path
    is_new: bool

    def end(self) -> None:
        """Remove the directory if the run was refused before it wrote anything."""
        if self.is_new:
            discard_unused(self.directory)

    def placed(self, settings: Any) -> Any:
        """A copy of a command's settings with the directory in the place of `{run}`, but for that of the curve.

        `CurveExport` looks for `{run}` itself: only a curve in the run's directory is linked to.
        """
        placed = settings.clone()
        placed.checkpoint.dirpath = str(self.directory)
        placed.data.report_dir = with_run(placed.data.report_dir, self.directory)
        placed.trainer.logger, placed.trainer.callbacks = (
            _with_run_in_classes(classes, self.directory) for classes in (placed.trainer.logger, placed.trainer.callbacks)
        )
        return placed


def _with_run_in_classes(classes: Any, directory: Path) -> Any:
    """The same for classes with their arguments, one or a list of them."""
    if isinstance(classes, list):
        return [_with_run_in_classes(one, directory) for one in classes]
    if getattr(classes, "init_args", None) is None:
        return classes
    placed = classes.clone()  # those of the settings that are saved stay as they are
    for name, value in vars(placed.init_args).items():
        setattr(placed.init_args, name, with_run(value, directory))
    return placed


def place_for(command: str, settings: Any, typed: Mapping[str, Any], checkpoint: Path | None) -> RunPlace:
    """Choose the directory of a run, and make it if it is a new one.

    A typed `checkpoint.dirpath` is the run's directory. Otherwise a run that goes on stays in its own, unless `run` names
    another, and so does one that torchrun starts again before its first checkpoint; a new run gets a new one.

    Args:
        command: `fit`, `validate` or `test`.
        settings: Of the command; those of the checkpoint and of what was typed.
        typed: The typed ones.
        checkpoint: That the command starts from, if any.

    Raises:
        ConfigError: Another run has this directory or name.
        CheckpointError: The directory cannot be made.
    """
    runs_dir, env_id, dirpath = runs_dir_of(settings), settings.data.env_id, settings.checkpoint.dirpath
    own = None if checkpoint is None else run_of(checkpoint)
    if command != "fit":
        return RunPlace(own or directory_without_run(runs_dir, env_id), False)
    is_typed = typed.get("checkpoint", {}).get("dirpath") is not None
    if dirpath is not None and (is_typed or checkpoint is None):  # not that of the checkpoint's run, which may have been moved
        if settings.run is not None:
            raise ConfigError(f"run={settings.run}: checkpoint.dirpath={dirpath} is the run's directory; leave out one of them")
        _require_free(Path(dirpath), checkpoint)
        return RunPlace(Path(dirpath), False)
    if (restarted := directory_of_restart(None, runs_dir)) is not None:
        return RunPlace(restarted, False)
    if own is not None and settings.run in (None, own.name):
        return RunPlace(own, False)
    if not is_first_rank():
        return RunPlace(directory_without_run(runs_dir, env_id), False)
    return RunPlace(new_run(runs_dir, env_id, settings.run), True)


def _require_free(directory: Path, checkpoint: Path | None) -> None:
    last = directory / "last.ckpt"
    if last.is_file() and (checkpoint is None or checkpoint.resolve().parent != directory.resolve()):
        raise ConfigError(
            f"checkpoint.dirpath={directory}: another run is there; go on with --ckpt_path={last}, or choose another directory"
        )
