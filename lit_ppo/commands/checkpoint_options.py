"""The options that name a checkpoint, for the commands that use a policy."""

import argparse
from pathlib import Path

from lit_ppo.run_choice import chosen_checkpoint
from lit_ppo.run_directory import RUNS_DIR
from lit_ppo.standard_streams import say

CKPT_PATH_HELP = "checkpoint: last, best, a run's name or a path (default: the best of the newest run)"


def add_runs_dir_option(parser: argparse.ArgumentParser) -> None:
    """Add `--runs_dir`, in which runs are looked for."""
    parser.add_argument("--runs_dir", type=Path, default=Path(RUNS_DIR), help=f"directory of all runs (default: {RUNS_DIR})")


def add_trust_option(parser: argparse.ArgumentParser, of: str = "checkpoint") -> None:
    """Add `--trust_checkpoint`, or that of another file which holds settings."""
    parser.add_argument(
        f"--trust_{of}",
        choices=("true", "false"),
        default="false",
        help=f"take all settings from a {of} that no run of its directory wrote, also those that name programs, paths or "
        "code, or lower a guard (default: false)",
    )


def typed_checkpoint(options: argparse.Namespace) -> Path:
    """The checkpoint that is meant; says which, unless its path was typed.

    Raises:
        CheckpointError: There is no such run.
    """
    choice = chosen_checkpoint(options.ckpt_path, "best", options.runs_dir)
    if choice.about:
        say(choice.about)
    return choice.path
