"""`python -m lit_ppo replay REPORT.json`: does the fault happen again? Exit code 0 if it does, 1 if not."""

import argparse
import sys
from pathlib import Path

from lit_ppo.commands.checkpoint_options import add_trust_option
from lit_ppo.commands.environment_options import add_environment_options, typed_settings
from lit_ppo.errors import ConfigError, ProtocolError, one_line
from lit_ppo.exit_codes import NOT_THE_SAME, USAGE, WORKER, fail
from lit_ppo.standard_streams import say

SUMMARY = "Replay a reported fault in a fresh process; exit code 0 if the same fault happens again, 1 if not."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("report", type=Path, help="report of a fault, from the directory `reports` of a run")
    add_trust_option(parser, "report")
    parser.add_argument("--env_id", help="as data.env_id of fit")
    add_environment_options(parser)


def run(options: argparse.Namespace) -> None:
    """Print the reported fault and whether the same one happens again."""
    from lit_ppo.replay import is_same, read_report, replay

    typed = typed_settings(options)
    if options.env_id is not None:
        typed["env_id"] = options.env_id
    try:
        report = read_report(options.report, typed, options.trust_report == "true")
        reported = one_line(f"{report['field']}: expected {report['rule']}, got {report['value']}")
        fault = replay(report)
        is_again = fault is not None and is_same(fault, report)
    except ConfigError:
        raise
    except OSError as error:
        fail(f"{options.report}: cannot be read: {error.strerror} (errno {error.errno})", USAGE)
    except ValueError as error:
        fail(f"{options.report}: expected the report of a fault as JSON: {error}", USAGE)
    except (LookupError, TypeError, ArithmeticError, RecursionError, ProtocolError) as error:
        code = WORKER if isinstance(error, ProtocolError) else USAGE
        fail(f"{options.report}: {type(error).__name__}: {error}", code)
    say(f"reported: {reported}")
    if fault is None:
        say(f"does not happen again: {len(report['actions'])} steps from seed {report['seed']} keep the contract")
    else:
        say(*f"{'happens again' if is_again else 'does not happen again, but another fault does'}: {fault}".splitlines())
    if not is_again:
        sys.exit(NOT_THE_SAME)
