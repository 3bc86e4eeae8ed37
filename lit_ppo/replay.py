"""Reports of faults: writing them, and replaying them in a fresh process."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from lit_ppo.bridge.client import EnvBridge
from lit_ppo.bridge.reports import Fault
from lit_ppo.bridge.settings import BridgeSettings, EnvironmentSettings
from lit_ppo.contract import ContractSettings
from lit_ppo.errors import BridgeError, ConfigError, EnvironmentFault


def write_report(fault: Fault, directory: Path) -> Path:
    """Write the report that replays a fault; its file name gives phase, env, episode and step."""
    where = fault.where
    path = directory / f"fault-{where['phase']}-env{where['env']}-episode{where['episode']}-step{where['step']}.json"
    directory.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(fault.report, indent=2, default=str) + "\n", encoding="utf-8")
    return path


def replay(report: dict[str, Any]) -> Fault | None:
    """Replay the report's episode in one fresh environment, with the interpreter, the limits and the deadlines of its run.

    Returns:
        The fault that happens, if one does; `is_same` says whether it is the reported one.

    Raises:
        ConfigError: The environment can no longer be made, or the report cannot be replayed.
        ProtocolError: The worker sent what is no answer.
    """
    settings = BridgeSettings(**{**report["processes"], "num_workers": 1, "max_restarts": 0, "on_violation": "stop"})
    if settings.vectorization == "native":
        raise ConfigError("vectorization=native: expected an episode of its own, but native rows share one random stream")
    bridge = EnvBridge(
        EnvironmentSettings.of(report),
        1,
        lambda env, episode: int(report["next_seed" if episode else "seed"]),
        settings=settings,
        contract=ContractSettings(**report["contract"]),
        phase="replay",
    )
    with bridge:
        try:
            bridge.reset()
            for action in report["actions"]:
                bridge.step(np.array([action], bridge.spec.action.dtype))
        except (EnvironmentFault, BridgeError) as fault:
            return fault
    return None


def is_same(fault: Fault, report: dict[str, Any]) -> bool:
    """Whether a replayed fault is the reported one: of the same kind, in the same field, at the same step."""
    return bool(fault.report) and _identity(fault.report) == _identity(report)


def _identity(report: dict[str, Any]) -> tuple[str, str, int]:
    field = re.sub(r"\[\d+(?:, )?", "[", report["field"], count=1)  # without the row, which is 0 in a replay
    return report["kind"], field, report["step"]
