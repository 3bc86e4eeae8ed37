"""The command line: `python -m lit_ppo COMMAND ...`.

This file knows the commands and imports only the one that runs: `--help`, `--version`, `runs` and `plot` start without torch.
`fit`, `validate` and `test` leave their options to Lightning's parser (`commands/train.py`).
"""

import argparse
import difflib
import sys
from importlib import import_module
from typing import Final, NoReturn

from lit_ppo import __version__
from lit_ppo.commands import DESCRIPTION, PROGRAM, TRAINING
from lit_ppo.errors import CheckpointError
from lit_ppo.exit_codes import CHECKPOINT, USAGE, fail, of

_OTHERS: Final = {  # files in `commands/`
    "check-env": "check_env",
    "export": "export",
    "play": "play",
    "plot": "plot",
    "presets": "presets",
    "replay": "replay",
    "rollout": "rollout",
    "runs": "runs",
}
_EXAMPLES: Final = f"""examples:
  {PROGRAM} fit
  {PROGRAM} fit --data.env_id=Acrobot-v1 --seed_everything=7
  {PROGRAM} fit --ckpt_path=last
  {PROGRAM} test
  {PROGRAM} play --ckpt_path=best
  {PROGRAM} runs
  {PROGRAM} check-env Acrobot-v1
  {PROGRAM} plot runs/CartPole-v1/*

`{PROGRAM} COMMAND --help` lists the options of a command."""


class CommandParser(argparse.ArgumentParser):
    """Reports an error in one line."""

    def error(self, message: str) -> NoReturn:
        fail(message, USAGE)


def command_parser() -> CommandParser:
    """The parser of all commands; those of `TRAINING` are there by name only."""
    parser = CommandParser(
        prog=PROGRAM,
        allow_abbrev=False,
        description=DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"lit_ppo {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, summary in TRAINING.items():
        commands.add_parser(name, help=summary)
    for name, file in _OTHERS.items():
        command = import_module(f"lit_ppo.commands.{file}")
        subparser = commands.add_parser(name, help=command.SUMMARY, description=command.SUMMARY, allow_abbrev=False)
        command.add_arguments(subparser)
        subparser.set_defaults(run=command.run)
    return parser


def main(arguments: list[str] | None = None) -> None:
    """Run a command, and see that what it prints can be written.

    Args:
        arguments: Command and options; None for those of the process.
    """
    try:
        try:
            _run(sys.argv[1:] if arguments is None else arguments)
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except CheckpointError as error:  # of standard output
        fail(error, CHECKPOINT)


def _run(given: list[str]) -> None:
    """Run a command.

    Args:
        given: Command and options.
    """
    known = [*TRAINING, *_OTHERS]
    first = given[0] if given else ""
    if first == "reproduce":
        fail("reproduce: it is `python -m benchmarks.learning.reproduce` now, in a checkout of lit_ppo", USAGE)
    if first not in (*known, "-h", "--help", "--version"):
        similar = difflib.get_close_matches(first, known, n=1)
        hint = f" (did you mean {similar[0]}?)" if similar else ""
        fail(f"{first or 'no command'}: expected one of {', '.join(known)}{hint}", USAGE)
    if first in TRAINING:
        from lit_ppo.commands.train import main as train

        sys.argv[1:] = given  # Lightning's launchers run the command again as it is there
        train()
    else:
        options = command_parser().parse_args(given)
        try:
            options.run(options)
        except Exception as error:
            code = of(error)
            if code is None:
                raise
            fail(error, code)
