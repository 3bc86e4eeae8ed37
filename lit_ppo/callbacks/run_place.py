"""The directory that the callbacks of a run write to."""

from pathlib import Path
from weakref import WeakKeyDictionary

from lightning.pytorch import Trainer

from lit_ppo.callbacks.greedy_evaluation import data_of
from lit_ppo.run_directory import RUNS_DIR, new_run, run_of

_DIRECTORIES: WeakKeyDictionary[Trainer, Path] = WeakKeyDictionary()


def place_run(trainer: Trainer, directory: Path) -> None:
    """Let the run of a Trainer have this directory."""
    _DIRECTORIES[trainer] = directory


def place_of(trainer: Trainer) -> Path:
    """The directory of a Trainer's run.

    Unless `place_run` has said it, that is the one of the checkpoint from which the run goes on, or a new one in
    `trainer.default_root_dir`. Call it on the first rank only, and not before `on_fit_start`.

    Raises:
        CheckpointError: The directory cannot be made.
    """
    if trainer not in _DIRECTORIES:
        checkpoint = trainer.ckpt_path
        directory = None if checkpoint is None else run_of(Path(checkpoint))
        root = Path(trainer.default_root_dir)
        runs_dir = Path(RUNS_DIR) if root == Path.cwd() else root / RUNS_DIR
        _DIRECTORIES[trainer] = directory or new_run(runs_dir, data_of(trainer).environment.env_id)
    return _DIRECTORIES[trainer]
