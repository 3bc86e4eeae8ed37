"""`python -m lit_ppo replay REPORT.json`: does the environment's fault happen again?"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lit_ppo import exit_codes
from lit_ppo.bridge.client import EnvBridge
from lit_ppo.bridge.settings import BridgeSettings
from lit_ppo.contract import ContractSettings
from lit_ppo.errors import BridgeError, EnvironmentFault, ProtocolError


def write_report(fault: EnvironmentFault, directory: Path) -> Path:
    """Write what is needed to replay a fault; the file's name tells env, episode and step."""
    where = fault.where
    path = directory / f"fault-env{where['env']}-episode{where['episode']}-step{where['step']}.json"
    directory.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(fault.report, indent=2, default=str) + "\n", encoding="utf-8")
    return path


def replay(report: dict[str, Any]) -> EnvironmentFault | None:
    """Play the report's episode again in one fresh environment; the fault, if there is one again.

    Raises:
        ConfigError: The environment cannot be made any more.
        BridgeError, ProtocolError: The worker failed as a process.
    """
    bridge = EnvBridge(
        report["env_id"],
        1,
        lambda env, episode: int(report["next_seed" if episode else "seed"]),
        env_kwargs=report["env_kwargs"],
        settings=BridgeSettings(max_restarts=0),
        contract=ContractSettings(**report["contract"]),
    )
    with bridge:
        try:
            bridge.reset()
            for action in report["actions"]:
                bridge.step(np.array([action], np.int64))
        except EnvironmentFault as fault:
            return fault
    return None


def main(arguments: Sequence[str]) -> None:
    """The `replay` subcommand."""
    parser = argparse.ArgumentParser(prog="python -m lit_ppo replay", description=__doc__)
    parser.add_argument("report", type=Path, help="a report that a contract violation left behind")
    path = parser.parse_args(arguments).report
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        fault = replay(report)
    except (OSError, KeyError, TypeError, ValueError, BridgeError, ProtocolError) as error:
        print(f"lit_ppo: error: {path}: {type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(exit_codes.WORKER if isinstance(error, BridgeError | ProtocolError) else exit_codes.USAGE)
    reported = f"{report['field']}: expected {report['rule']}, got {report['value']}"
    print(f"reported: {reported}")
    if fault is None:
        print(f"does not happen again: {len(report['actions'])} steps from seed {report['seed']} keep the contract")
    else:
        print(f"happens again: {fault}")
