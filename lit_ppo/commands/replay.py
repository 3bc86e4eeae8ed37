"""`python -m lit_ppo replay REPORT.json`: does the environment's fault happen again?"""

import argparse
import json
from pathlib import Path

from lit_ppo.errors import BridgeError, ProtocolError
from lit_ppo.exit_codes import USAGE, WORKER, fail

SUMMARY = "Replay a reported fault of an environment in a fresh process."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("report", type=Path, help="report of a fault, from data/reports")


def run(options: argparse.Namespace) -> None:
    """Print the reported fault and whether it happens again."""
    from lit_ppo.replay import replay

    try:
        report = json.loads(options.report.read_text(encoding="utf-8"))
        fault = replay(report)
    except (OSError, KeyError, TypeError, ValueError, BridgeError, ProtocolError) as error:
        code = WORKER if isinstance(error, BridgeError | ProtocolError) else USAGE
        fail(f"{options.report}: {type(error).__name__}: {error}", code)
    print(f"reported: {report['field']}: expected {report['rule']}, got {report['value']}")
    if fault is None:
        print(f"does not happen again: {len(report['actions'])} steps from seed {report['seed']} keep the contract")
    else:
        print(f"happens again: {fault}")
