"""`python -m benchmarks.learning.wall_time ROW...`: seconds of lit_ppo and Stable-Baselines3 on shortened rows.

Both train for the same env steps with the row's settings and evaluate as often for each env step as the row does. They take
turns, one process at a time, so that what else the machine does changes both alike. Starting, compiling and the judging
episodes do not count. Each row of the table has the speed-up as its ratio.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

import yaml

from benchmarks.report import ROOT, Row, table

_FIRST_SEED: Final = 101  # of a row's seeds


def main() -> int:
    options = _options()
    table_rows = []
    for name in options.rows:
        with tempfile.TemporaryDirectory() as directory:
            speeds = _speeds(_shortened(name, options), Path(directory), options.rounds)
        table_rows += [
            Row(name, "lit_ppo", "env steps/s", speeds["lit_ppo"], against="sb3", target=">= 2"),
            Row(name, "sb3", "env steps/s", speeds["sb3"]),
        ]
        print(table(table_rows[-2:]), file=sys.stderr, flush=True)
    print(table(table_rows))
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.learning.wall_time", description=__doc__)
    parser.add_argument("rows", nargs="+", metavar="ROW", help="rows in configs/rows")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each of both")
    parser.add_argument("--env_steps", type=int, default=65_536, help="env steps of each run")
    parser.add_argument("--compile", action="store_true", help="compile lit_ppo's update, which rows don't")
    return parser.parse_args()


def _speeds(row: dict[str, Any], directory: Path, rounds: int) -> dict[str, list[float]]:
    """Env steps per second of each run, for both."""
    name, rows_dir = "shortened", directory / "rows"
    rows_dir.mkdir()
    (rows_dir / f"{name}.yaml").write_text(yaml.safe_dump(row, sort_keys=False))
    for turn in range(rounds):
        ours = ["benchmarks.learning.reproduce", name, f"--first_seed={_FIRST_SEED + turn}", "--seeds=1"]
        peer = ["benchmarks.learning", name, f"--seeds={turn + 1}"]  # those before have a result, and are left out
        for command in (ours, peer) if turn % 2 == 0 else (peer, ours):
            places = [f"--rows_dir={rows_dir}", f"--results_dir={directory}", f"--runs_dir={directory / 'runs'}", "--jobs=1"]
            subprocess.run([sys.executable, "-m", *command, *places], cwd=ROOT, env=dict(os.environ), check=True)
    runs = json.loads((directory / f"{name}.json").read_text())["runs"]
    speeds: dict[str, list[float]] = {"lit_ppo": [], "sb3": []}
    for run in sorted(runs, key=lambda run: run["seed"]):
        speeds[run["who"]].append(run["env_steps"] / run["wall_s"])
    return speeds


def _shortened(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """A row with fewer env steps and as many evaluations for each of them. No published score: it would be another one's."""
    row: dict[str, Any] = yaml.safe_load((ROOT / "configs" / "rows" / f"{name}.yaml").read_text())
    settings = row["settings"]
    share = options.env_steps / settings["total_env_steps"]
    settings["total_env_steps"] = options.env_steps
    settings["model"]["compile"] = options.compile
    row["evaluation"]["times"] = max(1, round(row["evaluation"]["times"] * share))
    row.pop("published", None)
    return row | {"num_episodes": 10, "seeds": options.rounds, "sb3_seeds": options.rounds}


if __name__ == "__main__":
    sys.exit(main())
