"""`python -m lit_ppo plot PATH...`: training curves as a picture."""

import argparse
from pathlib import Path

from lit_ppo.curve import TrainLog
from lit_ppo.exit_codes import USAGE, fail

SUMMARY = "Draw training curves as a picture."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", nargs="+", type=Path, help="curve of a run, such as data/rl/ppo_cartpole_trainlog.json")
    parser.add_argument("--output", type=Path, default=Path("curve.png"), help="the picture (default: curve.png)")


def run(options: argparse.Namespace) -> None:
    """Draw the curves and print where the picture is."""
    from lit_ppo.plot import plot

    try:
        plot([(path.stem, TrainLog.read(path)) for path in options.path], options.output)
    except ModuleNotFoundError as error:
        if error.name != "matplotlib":
            raise
        fail("plot needs matplotlib: pip install -e '.[plot]' in lit_ppo's directory", USAGE)
    except (OSError, ValueError) as error:
        fail(str(error), USAGE)
    print(options.output)
