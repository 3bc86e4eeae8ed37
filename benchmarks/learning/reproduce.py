"""`python -m benchmarks.learning.reproduce ROW...`: published scores, run again with the settings that were published.

Several seeds run side by side; the results are JSON files, and `--report` makes a page of all rows.
"""

import argparse
import sys
from functools import partial
from pathlib import Path

from benchmarks.learning.fits import reproduce
from benchmarks.learning.results import LIT_PPO, RowResults
from benchmarks.learning.rows import Row, read_row
from lit_ppo import interrupts, standard_streams
from lit_ppo.errors import CheckpointError, ConfigError
from lit_ppo.exit_codes import USAGE, fail, of
from lit_ppo.standard_streams import say


def command_parser() -> argparse.ArgumentParser:
    """The parser of the command's options."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.learning.reproduce", description=__doc__)
    parser.add_argument("rows", nargs="*", metavar="ROW", help="file in --rows_dir without its suffix; none lists all rows")
    parser.add_argument("--seeds", type=int, help="number of seeds (default: as many as the row says)")
    parser.add_argument("--first_seed", type=int, default=101, help="first of them (default: 101)")
    parser.add_argument("--jobs", type=int, help="runs at a time (default: one on each core)")
    parser.add_argument("--report", action="store_true", help="write results.md and its plots into --docs_dir")
    parser.add_argument("--rows_dir", type=Path, default=Path("configs/rows"), help="rows (default: configs/rows)")
    parser.add_argument("--results_dir", type=Path, default=Path("results"), help="results as JSON (default: results)")
    parser.add_argument("--runs_dir", type=Path, default=Path("data/reproduce"), help="checkpoints (default: data/reproduce)")
    parser.add_argument("--docs_dir", type=Path, default=Path("docs"), help="the report (default: docs)")
    return parser


def main(arguments: list[str] | None = None) -> None:
    """Make the runs without a result, then the report if it is wanted; without either, list the rows.

    Args:
        arguments: Rows and options; None for those of the process.
    """
    options = command_parser().parse_args(arguments)
    try:
        _run(options)
    except (ConfigError, CheckpointError) as error:
        fail(str(error), of(error) or USAGE)


def _run(options: argparse.Namespace) -> None:
    for name in ("seeds", "jobs"):
        value = getattr(options, name)
        if value is not None and value < 1:
            fail(f"--{name}={value}: expected at least 1", USAGE)
    if options.first_seed < 0:
        fail(f"--first_seed={options.first_seed}: expected at least 0", USAGE)
    rows = [read_row(options.rows_dir / f"{name}.yaml") for name in options.rows]
    interrupts.advise("the same command goes on from the last checkpoints")
    failures = reproduce(
        rows,
        seeds=options.seeds,
        first_seed=options.first_seed,
        jobs=options.jobs,
        results_dir=options.results_dir,
        runs_dir=options.runs_dir,
        say=partial(say, file=sys.stderr),
    )
    every_row = [] if rows and not options.report else [read_row(path) for path in sorted(options.rows_dir.glob("*.yaml"))]
    if not rows and not every_row:
        fail(f"--rows_dir={options.rows_dir}: expected a directory with rows (*.yaml), found none", USAGE)
    if options.report:
        _report(every_row, options)
    elif not rows:
        say(*_listed(every_row, options.results_dir))
    if failures:
        fail(
            f"{len(failures)} runs failed, the first, {failures[0].name}, with: {failures[0].message}; "
            "the same command goes on from the last checkpoints",
            failures[0].code,
        )


def _report(rows: list[Row], options: argparse.Namespace) -> None:
    from benchmarks.learning.results_report import write_report  # here, since it needs matplotlib

    try:
        for path in write_report(rows, options.results_dir, options.docs_dir):
            say(str(path))
    except ModuleNotFoundError as error:
        if error.name != "matplotlib":
            raise
        fail("the plots need matplotlib: pip install -e '.[plot]' in lit_ppo's directory", USAGE)


def _listed(rows: list[Row], results_dir: Path) -> list[str]:
    lines = []
    for row in rows:
        num_done = len(RowResults(row, results_dir).by(LIT_PPO))
        lines.append(f"{row.name:<34} {row.env_steps:>10,} env steps  {num_done} of {row.seeds} seeds  {row.source}")
    return lines


if __name__ == "__main__":
    standard_streams.prepare()
    interrupts.install()
    main()
