"""`python -m lit_ppo replay REPORT.json`: does the fault happen again? Exit code 0 if it does, 1 if not."""

import argparse
import json
import sys
from pathlib import Path

from lit_ppo.errors import ProtocolError
from lit_ppo.exit_codes import NOT_THE_SAME, USAGE, WORKER, fail

SUMMARY = "Replay a reported fault in a fresh process; exit code 0 if the same fault happens again, 1 if not."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("report", type=Path, help="report of a fault, from data/reports")


def run(options: argparse.Namespace) -> None:
    """Print the reported fault and whether the same one happens again."""
    from lit_ppo.replay import is_same, replay

    try:
        report = json.loads(options.report.read_text(encoding="utf-8"))
    except OSError as error:
        fail(f"{options.report}: cannot be read: {error.strerror} (errno {error.errno})", USAGE)
    except ValueError as error:
        fail(f"{options.report}: expected the report of a fault as JSON: {error}", USAGE)
    try:
        fault = replay(report)
        is_again = fault is not None and is_same(fault, report)
    except (KeyError, TypeError, ValueError, ProtocolError) as error:
        code = WORKER if isinstance(error, ProtocolError) else USAGE
        fail(f"{options.report}: {type(error).__name__}: {error}", code)
    print(f"reported: {report['field']}: expected {report['rule']}, got {report['value']}")
    if fault is None:
        print(f"does not happen again: {len(report['actions'])} steps from seed {report['seed']} keep the contract")
    else:
        print(f"{'happens again' if is_again else 'does not happen again, but another fault does'}: {fault}")
    if not is_again:
        sys.exit(NOT_THE_SAME)
