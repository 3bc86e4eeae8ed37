"""`python -m lit_ppo plot PATH...`: training curves as a picture."""

import argparse
from pathlib import Path

from lit_ppo.curve import TrainLog
from lit_ppo.exit_codes import CHECKPOINT, USAGE, fail

SUMMARY = "Draw training curves as a picture."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", nargs="+", type=Path, help="curve of a run, such as data/rl/ppo_cartpole_trainlog.json")
    parser.add_argument("--output", type=Path, default=Path("curve.png"), help="the picture (default: curve.png)")


def run(options: argparse.Namespace) -> None:
    """Draw the curves and print where the picture is."""
    from lit_ppo.plot import plot

    try:
        curves = [(path.stem, TrainLog.read(path)) for path in options.path]
    except OSError as error:
        fail(f"{error.filename}: cannot be read: {error.strerror} (errno {error.errno})", CHECKPOINT)
    except ValueError as error:
        fail(str(error), CHECKPOINT)
    try:
        plot(curves, options.output)
    except ModuleNotFoundError as error:
        if error.name != "matplotlib":
            raise
        fail("plot needs matplotlib: pip install -e '.[plot]' in lit_ppo's directory", USAGE)
    except OSError as error:
        fail(f"--output={options.output}: cannot be written: {error.strerror} (errno {error.errno})", CHECKPOINT)
    except ValueError as error:  # of matplotlib, for a format that it does not know
        fail(f"--output={options.output}: {error}", USAGE)
    print(options.output)
