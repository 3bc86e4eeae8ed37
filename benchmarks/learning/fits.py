"""Our own runs of a row: each is one `python -m lit_ppo fit`, which goes on from its last checkpoint, bit for bit."""

import math
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

from benchmarks.learning.results import LIT_PPO, RowResults
from benchmarks.learning.rows import FIRST_SEED, Row
from lit_ppo import strict_yaml
from lit_ppo.run_scheduler import RECORD, Failure, Run, make_runs

_CONFIG: Final = "config.yaml"


def fit_config(row: Row, seed: int, directory: Path) -> dict[str, Any]:
    """All options of `fit` for one seed: the row's settings, and what is the same for every row.

    Args:
        row: The row.
        seed: Of the run.
        directory: Of the run.
    """
    record = {
        "class_path": "benchmarks.learning.run_record.RunRecord",
        "init_args": {"path": str(directory / RECORD), "num_episodes": row.num_episodes},
    }
    trainer, data = row.settings.get("trainer", {}), row.settings["data"]
    return row.settings | {
        "preset": "none",
        "seed_everything": seed,
        "torch_threads": 1,
        # one process for each run: the seeds use the cores
        "data": {"num_workers": 1, "evaluation_envs": row.evaluation.num_episodes} | data | {"report_dir": str(directory)},
        "trainer": trainer | {"logger": False, "callbacks": [*trainer.get("callbacks", []), record]},
        "evaluation": {
            "every_env_steps": max(1, row.env_steps // row.evaluation.times),
            "num_episodes": row.evaluation.num_episodes,
        },
        "solved": {"threshold": math.inf},  # trains for all of its env steps
        "curve": {"path": None},
        "checkpoint": {"dirpath": str(directory / "checkpoints")},
    }


def _command(row: Row, seed: int, directory: Path) -> list[str]:
    """`python -m lit_ppo fit`, from the run's last checkpoint if there is one."""
    config = directory / _CONFIG
    config.write_text(strict_yaml.dump(fit_config(row, seed, directory)), encoding="utf-8")
    resume = ["--ckpt_path=last"] if (directory / "checkpoints" / "last.ckpt").is_file() else []
    return [sys.executable, "-m", "lit_ppo", "fit", "--config", str(config), *resume]


def reproduce(
    rows: Sequence[Row],
    *,
    seeds: int | None = None,
    first_seed: int = FIRST_SEED,
    jobs: int | None = None,
    results_dir: Path = Path("results"),
    runs_dir: Path = Path("data/reproduce"),
    say: Callable[[str], None] = print,
) -> list[Failure]:
    """Make all runs of some rows that have no result yet.

    Args:
        rows: What to run, in this order.
        seeds: Number of runs of each row; None for as many as the row says.
        first_seed: Their first seed.
        jobs: Runs at a time; None for one on each core.
        results_dir: Directory of the results, one JSON for each row.
        runs_dir: Directory of the runs, with checkpoints.
        say: As in `make_runs`.

    Returns:
        The runs that failed.

    Raises:
        ConfigError: A row has results with other settings, or another process runs it.
        CheckpointError: A file cannot be read or written.
    """
    runs: list[Run] = []
    for row in rows:
        results = RowResults(row, results_dir)
        wanted = range(first_seed, first_seed + (seeds or row.seeds))
        runs += results.missing(LIT_PPO, wanted, runs_dir, partial(_command, row))
    return make_runs(runs, jobs or len(os.sched_getaffinity(0)), say)
