"""`python -m lit_ppo plot PATH...`: training curves as a picture."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from lit_ppo import exit_codes
from lit_ppo.curve import TrainLog


def plot(curves: Sequence[tuple[str, TrainLog]], output: Path) -> None:
    """Draw several curves on one pair of axes.

    Args:
        curves: Name and curve of each run.
        output: The picture; its suffix says the format.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    from matplotlib.figure import Figure  # no pyplot: it looks for a display

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for number, (name, curve) in enumerate(curves):
        for line in curve.series:
            label = f"{name}: {line.name}" if len(curves) > 1 or len(curve.series) > 1 else line.name
            # one run keeps the colours of its file; of several, each needs one of its own
            axes.plot(curve.steps, line.values, marker=".", label=label, color=line.color if len(curves) == 1 else f"C{number}")
    axes.set_xlabel("env steps")
    axes.set_ylabel("return")
    axes.set_title(curves[0][1].title if len({curve.title for _, curve in curves}) == 1 else "training curves")
    axes.grid(alpha=0.3)
    axes.legend()
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=120)


def main(arguments: Sequence[str]) -> None:
    """The `plot` subcommand."""
    parser = argparse.ArgumentParser(prog="python -m lit_ppo plot", description=__doc__)
    parser.add_argument("path", nargs="+", type=Path, help="curves as the CurveExport callback writes them")
    parser.add_argument("--output", type=Path, default=Path("curve.png"), help="the picture (default: curve.png)")
    options = parser.parse_args(arguments)
    try:
        plot([(path.stem, TrainLog.read(path)) for path in options.path], options.output)
    except ModuleNotFoundError as error:
        if error.name != "matplotlib":
            raise
        _fail("plot needs matplotlib: pip install 'lit_ppo[plot]'")
    except (OSError, ValueError) as error:
        _fail(str(error))
    print(options.output)


def _fail(message: str) -> None:
    print(f"lit_ppo: error: {message}", file=sys.stderr)
    sys.exit(exit_codes.USAGE)
