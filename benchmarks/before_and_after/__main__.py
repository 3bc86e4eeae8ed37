"""`python -m benchmarks.before_and_after --before PATH [--after PATH] equal | speed | boundary | structure`.

Compares two checkouts of lit_ppo. Each is run by its own interpreter, PATH/.venv/bin/python. Options of `fit` that only one of
the two versions knows are given with --before-options and --after-options:

    python -m benchmarks.before_and_after --before ../old --after-options='--total_env_steps=50000' equal
"""

import argparse
import shlex
import sys
import tempfile
from pathlib import Path

from benchmarks.before_and_after import equal, speed, structure
from benchmarks.before_and_after.checkout import Checkout, RunFailed
from benchmarks.report import ROOT


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.before_and_after",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--before", type=Path, required=True, help="root of the old checkout")
    parser.add_argument("--after", type=Path, default=ROOT, help="root of the new checkout; this one by default")
    for side in ("before", "after"):
        parser.add_argument(
            f"--{side}-options", default="", help=f"appended to every fit of `{side}`; write --{side}-options='...'"
        )
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("equal", help="CartPole runs, compared to the last bit; status 1 if any differs")
    command.add_argument("--cases", default="", help="only cases whose name contains this")
    command = commands.add_parser("speed", help="training, bridge and start-up in alternating pairs of fresh processes")
    command.add_argument("--cases", default="", help="only cases whose name contains this")
    command.add_argument("--pairs", type=int, default=20, help="measurements of each side that count")
    command.add_argument("--quick", action="store_true", help="measure a tenth as long in each process")
    command = commands.add_parser("boundary", help="time of an update while episodes that never end get longer")
    command.add_argument("--steps", type=int, default=27_000, help="steps under way at the end")
    command.add_argument("--horizon", type=int, default=64, help="steps of each environment in an update")
    commands.add_parser("structure", help="sizes of files and classes, import cycles")
    return parser


def main() -> int:
    """Run one command; its exit status."""
    given = _parser().parse_args()
    before = Checkout("before", given.before.resolve(), tuple(shlex.split(given.before_options)))
    after = Checkout("after", given.after.resolve(), tuple(shlex.split(given.after_options)))
    try:
        if given.command == "structure":  # reads the source only, so no interpreter is needed
            return structure.main(before, after)
        with tempfile.TemporaryDirectory(prefix="before-and-after-") as directory:
            for checkout in (before, after):
                checkout.verify(Path(directory))
        if given.command == "equal":
            return equal.main(before, after, given.cases)
        if given.command == "speed":
            return speed.main(before, after, given.cases, given.pairs, given.quick)
        return speed.boundary(before, after, given.steps, given.horizon)
    except RunFailed as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
