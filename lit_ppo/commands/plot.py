"""`python -m lit_ppo plot RUN...`: training curves as a picture."""

import argparse
import sys
from collections.abc import Iterator
from glob import glob
from pathlib import Path
from typing import TYPE_CHECKING

from lit_ppo.errors import CheckpointError
from lit_ppo.exit_codes import CHECKPOINT, USAGE, fail
from lit_ppo.run_choice import run_named
from lit_ppo.run_directory import CONFIG_NAME, CURVE_NAME, RUNS_DIR, directories_below
from lit_ppo.run_status import STATUS_NAME
from lit_ppo.standard_streams import say

if TYPE_CHECKING:
    from lit_ppo.run_curves import RunCurve

SUMMARY = "Draw the curves of runs as a picture: seeds of one configuration as their mean and a band."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "path",
        nargs="+",
        help="a run's name or directory, a directory of runs, a curve as JSON, a CSV such as metrics.csv, or a pattern",
    )
    parser.add_argument("--runs_dir", type=Path, default=Path(RUNS_DIR), help=f"directory of all runs (default: {RUNS_DIR})")
    parser.add_argument(
        "--output",
        nargs="+",
        type=Path,
        default=[Path("curve.png")],
        metavar="FILE",
        help="the picture; its suffix is the format, several files give several formats (default: curve.png)",
    )


def run(options: argparse.Namespace) -> None:
    """Draw the curves and print where the picture is; what cannot be read is named, and the rest is drawn."""
    curves = _curves(options)
    from lit_ppo.plot import plot

    try:
        plot(curves, options.output)
    except ModuleNotFoundError as error:
        if error.name != "matplotlib":
            raise
        fail("plot needs matplotlib: pip install -e '.[plot]' in lit_ppo's directory", USAGE)
    except OSError as error:
        fail(f"--output={error.filename}: cannot be written: {error.strerror} (errno {error.errno})", CHECKPOINT)
    except ValueError as error:  # of matplotlib, for a format that it does not know
        fail(f"--output={' '.join(map(str, options.output))}: {error}", USAGE)
    for output in options.output:
        say(str(output))


def _curves(options: argparse.Namespace) -> "list[RunCurve]":
    """The curves that can be read.

    Raises:
        CheckpointError: There is none.
    """
    from lit_ppo.run_curves import read_curve

    curves, problems = [], []
    for given in options.path:
        try:
            paths = list(_paths(given, options.runs_dir))
        except CheckpointError as error:
            problems.append(str(error))
            continue
        for path in paths:
            try:
                curves.append(read_curve(path, problems.append))
            except CheckpointError as error:
                problems.append(str(error))
    curves = list({Path(curve.name).resolve(): curve for curve in reversed(curves)}.values())[::-1]
    if not curves:
        raise CheckpointError(problems[0])
    for problem in problems:
        say(f"lit_ppo: {problem}", file=sys.stderr)
    return curves


def _paths(given: str, runs_dir: Path) -> Iterator[Path]:
    """Directories of runs, and files.

    Raises:
        CheckpointError: There is nothing of this name.
    """
    matches = [Path(given)] if Path(given).exists() else [Path(match) for match in sorted(glob(given))]
    if not matches and (Path(given).suffix or ("/" in given and not (runs_dir / given).exists())):
        raise CheckpointError(f"{given}: cannot be read: No such file or directory (errno 2)")
    for path in matches or [run_named(given, runs_dir)]:
        if path.is_dir() and not any((path / name).is_file() for name in (STATUS_NAME, CURVE_NAME, CONFIG_NAME)):
            yield from directories_below(path, STATUS_NAME)
        else:
            yield path
