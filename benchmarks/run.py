"""All parts, one after the other, one table: `python -m benchmarks.run [--quick]`; the data go to benchmarks/results/.

Each part is a process of its own, so that a peer that fails ends only its own part. A part can be run by itself, as in
`python -m benchmarks.training --quick`.
"""

import argparse
import json
import os
import subprocess
import sys
import warnings
from dataclasses import asdict
from time import perf_counter, strftime
from typing import Final

from benchmarks.report import ROOT, Row, machine, parse, peers_python, peers_versions, table, versions

PARTS: Final = ("stepping", "rows", "scaling", "framework_tax", "training", "solving")
_DEADLINE_S: Final = 3600


def run_part(part: str, quick: bool) -> list[Row]:
    """Rows of one part; one row that says what went wrong, if it failed."""
    try:
        # the peers' interpreter can host the bridge as well, so that all vector envs share one process
        python = peers_python() if part == "stepping" else sys.executable
    except FileNotFoundError as error:
        warnings.warn(str(error), stacklevel=1)
        python = sys.executable
    command = [python, "-W", "ignore", "-m", f"benchmarks.{part}", *(["--quick"] if quick else [])]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=_DEADLINE_S, check=False
        )
    except subprocess.TimeoutExpired:
        return [Row(part, "all", "", note=f"not done within {_DEADLINE_S} s")]
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return [Row(part, "all", "", note=f"failed with status {done.returncode}: {last}"[:200])]
    return parse(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="under three minutes; few rounds, so look at the ranges")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    options = parser.parse_args()
    described: dict[str, object] = {**machine(), "at": strftime("%Y-%m-%d %H:%M"), "versions": versions()}
    described |= {f"versions, {venv}": found for venv, found in peers_versions().items()}
    rows: list[Row] = []
    for part in options.parts:
        start = perf_counter()
        rows += run_part(part, options.quick)
        print(f"{part}: {perf_counter() - start:.0f} s", file=sys.stderr)
    name = "quick" if options.quick else "full"
    if set(options.parts) != set(PARTS):
        name += "-" + "-".join(options.parts)
    path = ROOT / "benchmarks" / "results" / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({**described, "rows": [asdict(row) for row in rows]}, indent=1) + "\n", encoding="utf-8")
    for key, value in described.items():
        print(f"{key}: {value}")
    print("torch threads: as in the name of a competitor; 1 everywhere else. Worker processes: 1 thread.\n")
    print(table(rows))
    print(f"\n{path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
