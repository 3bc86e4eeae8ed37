"""Reports of an environment's faults: writing them, and replaying them in a fresh process."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from lit_ppo.bridge.client import EnvBridge
from lit_ppo.bridge.settings import BridgeSettings, EnvironmentSettings
from lit_ppo.contract import ContractSettings
from lit_ppo.errors import EnvironmentFault


def write_report(fault: EnvironmentFault, directory: Path) -> Path:
    """Write the report that replays a fault; its file name gives env, episode and step."""
    where = fault.where
    path = directory / f"fault-env{where['env']}-episode{where['episode']}-step{where['step']}.json"
    directory.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(fault.report, indent=2, default=str) + "\n", encoding="utf-8")
    return path


def replay(report: dict[str, Any]) -> EnvironmentFault | None:
    """Replay the report's episode in one fresh environment.

    Returns:
        The fault, if one happens again.

    Raises:
        ConfigError: The environment can no longer be made.
        BridgeError, ProtocolError: The worker failed as a process.
    """
    bridge = EnvBridge(
        EnvironmentSettings.of(report),
        1,
        lambda env, episode: int(report["next_seed" if episode else "seed"]),
        settings=BridgeSettings(max_restarts=0),
        contract=ContractSettings(**report["contract"]),
    )
    with bridge:
        try:
            bridge.reset()
            for action in report["actions"]:
                bridge.step(np.array([action], bridge.spec.action.dtype))
        except EnvironmentFault as fault:
            return fault
    return None
