"""`python -m benchmarks.learning [ROW...]`: run what has no result yet, and print the table."""

import argparse
import importlib.util
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from benchmarks.learning.results import RESULTS, RowResults, table
from benchmarks.learning.rows import JUDGING_SEEDS, QUICK_SEED, ROWS, Row
from benchmarks.learning.runs import RUNNERS, RunFailed
from benchmarks.report import peers_python

_AT_A_TIME: Final = 2  # runs, each of which has a process for its environments


def main() -> int:
    options = _options()
    rows = [row for row in ROWS if row.name in options.rows or (not options.rows and (row.is_quick or not options.quick))]
    seeds = options.seeds or ([QUICK_SEED] if options.quick else list(JUDGING_SEEDS))
    if problem := _missing(rows):
        print(problem, file=sys.stderr)
        return 2
    try:
        results = [RowResults(row, RESULTS.with_name("learning-quick") if options.quick else RESULTS) for row in rows]
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    tasks = [
        (found, who, seed)
        for who in RUNNERS  # ours first: a peer may take several times as long
        for found in results
        for seed in seeds
        if not found.of(who, seed) and (who == "lit_ppo" or found.row.has_peer)
    ]
    lock = threading.Lock()

    def run(task: tuple[RowResults, str, int]) -> bool:
        found, who, seed = task
        name = f"{found.row.name}, {who}, seed {seed}"
        try:
            result = {"seed": seed, **RUNNERS[who](found.row, seed)}
        except RunFailed as error:
            print(f"{name}: {error}", file=sys.stderr, flush=True)
            return False
        with lock:
            found.add(result)
        best, last = result["best"]["mean"], result["last"]["mean"]
        print(f"{name}: best {best:.4g}, last {last:.4g}, {result['wall_s']:.0f} s", file=sys.stderr, flush=True)
        return True

    with ThreadPoolExecutor(_AT_A_TIME) as pool:
        finished = list(pool.map(run, tasks))
    print(table(results, seeds))
    return 0 if all(finished) else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.learning", description=__doc__)
    names = [row.name for row in ROWS]
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"rows to run, default all: {', '.join(names)}")
    parser.add_argument("--seeds", nargs="+", type=int, help=f"default: {' '.join(map(str, JUDGING_SEEDS))}")
    parser.add_argument("--quick", action="store_true", help="quick rows only, with one seed that judges nothing")
    options = parser.parse_args()
    if unknown := set(options.rows) - set(names):
        parser.error(f"unknown rows: {', '.join(sorted(unknown))}")
    return options


def _missing(rows: list[Row]) -> str | None:
    """What has to be installed first, in one line; None if nothing is missing."""
    extras = sorted({extra for row in rows for extra in row.extras if importlib.util.find_spec(extra) is None})
    if extras:
        return f"{' and '.join(extras)}: not installed; run pip install -c constraints.txt -e '.[{','.join(extras)}]'"
    try:
        peers_python()
    except FileNotFoundError:
        return "the peers are not installed; run sh benchmarks/setup_peers.sh"
    return None


if __name__ == "__main__":
    sys.exit(main())
