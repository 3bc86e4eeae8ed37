"""`python -m benchmarks.learning ROW...`: run Stable-Baselines3 or sb3-contrib with the settings of lit_ppo's rows.

Its runs are kept beside ours, in `results/ROW.json`. It makes no checkpoints: a run that was killed starts again.
"""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Final

from benchmarks.learning.results import SB3, RowResults
from benchmarks.learning.rows import FIRST_SEED, Row, read_row
from benchmarks.learning.translation import NoCounterpart, to_sb3
from benchmarks.report import ROOT, peers_python
from lit_ppo.errors import CheckpointError, ConfigError
from lit_ppo.run_scheduler import RECORD, Run, make_runs

_TASK: Final = "task.json"


def main() -> int:
    options = _options()
    try:
        rows = [read_row(options.rows_dir / f"{name}.yaml") for name in options.rows]
        runs = [run for row in rows for run in _runs_of(row, options)]
        failures = make_runs(runs, options.jobs, lambda line: print(line, file=sys.stderr, flush=True))
    except (ConfigError, CheckpointError, NoCounterpart, FileNotFoundError) as error:
        print(error, file=sys.stderr)
        return 2
    return 1 if failures else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.learning", description=__doc__)
    parser.add_argument("rows", nargs="+", metavar="ROW", help="rows whose runs are wanted")
    parser.add_argument("--seeds", type=int, help="number of seeds (default: as many as the row says, which may be none)")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="runs at a time")
    parser.add_argument("--rows_dir", type=Path, default=ROOT / "configs" / "rows")
    parser.add_argument("--results_dir", type=Path, default=ROOT / "results")
    parser.add_argument("--runs_dir", type=Path, default=ROOT / "data" / "reproduce")
    return parser.parse_args()


def _runs_of(row: Row, options: argparse.Namespace) -> list[Run]:
    results = RowResults(row, options.results_dir)
    num_seeds = row.sb3_seeds if options.seeds is None else options.seeds
    seeds = range(FIRST_SEED, FIRST_SEED + num_seeds)
    python, settings = peers_python(), sb3_settings(row)

    def command(seed: int, directory: Path) -> list[str]:
        task = {"settings": settings, "seed": seed, "num_episodes": row.num_episodes}
        (directory / _TASK).write_text(json.dumps(task, indent=1))
        return [python, "-m", "benchmarks.learning.peer", str(directory / _TASK), str(directory / RECORD)]

    return results.missing(SB3, seeds, options.runs_dir.absolute(), command)


def sb3_settings(row: Row) -> dict[str, object]:
    """The settings of a row in SB3's terms, with the length and the evaluations of its runs.

    Raises:
        NoCounterpart: Stable-Baselines3 cannot run with them.
    """
    evaluation = {
        "every_env_steps": row.env_steps // row.evaluation.times,
        "num_episodes": row.evaluation.num_episodes,
    }
    return {**to_sb3(row.settings), "env_steps": row.env_steps, "evaluation": evaluation}


if __name__ == "__main__":
    sys.exit(main())
