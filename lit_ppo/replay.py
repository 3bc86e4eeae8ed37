"""Reports of faults: writing them, and replaying them in a fresh process.

A report names the environment and the program that runs it. So it carries a tag by which its directory knows it (`origin`), and
what one from elsewhere may not decide on is the same as for a checkpoint (`foreign_settings`).
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Final

import numpy as np

from lit_ppo.atomic_file import read_json
from lit_ppo.bridge.client import EnvBridge
from lit_ppo.bridge.reports import Fault
from lit_ppo.bridge.settings import BridgeSettings, EnvironmentSettings
from lit_ppo.contract import ContractSettings
from lit_ppo.errors import BridgeError, ConfigError, EnvironmentFault, shown
from lit_ppo.foreign_settings import refuse_foreign
from lit_ppo.origin import is_tag, tag_of
from lit_ppo.setting_types import kinds_of, require_settings

_TAG: Final = "origin"  # key of a report


def write_report(fault: Fault, directory: Path) -> Path:
    """Write the report that replays a fault; its file name gives phase, env, episode and step."""
    where = fault.where
    path = directory / f"fault-{where['phase']}-env{where['env']}-episode{where['episode']}-step{where['step']}.json"
    directory.mkdir(parents=True, exist_ok=True)
    report = json.loads(json.dumps(fault.report, default=str))  # as it will be read
    tag = tag_of(_checksum(report), directory.resolve())
    report[_TAG] = None if tag is None else tag.decode()
    path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return path


def _checksum(report: dict[str, Any]) -> bytes:
    return hashlib.sha256(json.dumps(report).encode()).digest()


def read_report(path: Path, typed: Mapping[str, Any], trust_report: bool = False) -> dict[str, Any]:
    """A report, with the settings that were typed in place of its own.

    Args:
        path: Of the file.
        typed: Settings of the environment and its process.
        trust_report: Take what a report that no run of its directory wrote says of programs, paths, code and guards.

    Raises:
        ConfigError: It comes from elsewhere, and what it sets is not for it to decide; or a setting is of another type.
        OSError, ValueError: It cannot be read, or is no report.
    """
    report = read_json(path)
    if not (isinstance(report, dict) and all(isinstance(report.get(key), dict) for key in ("processes", "contract"))):
        raise ValueError(f"expected the report of a fault, got {shown(report)}")
    tag = report.pop(_TAG, None)
    is_own = type(tag) is str and is_tag(tag.encode(), _checksum(report), path.resolve().parent)
    environment = {field.name: report[field.name] for field in fields(EnvironmentSettings) if field.name in report}
    processes, contract = report["processes"], report["contract"]
    for settings, kind in ((processes, BridgeSettings), (contract, ContractSettings)):
        require_settings(settings, kinds_of(kind), "data")
    saved = {"data": {**environment, **processes, "contract": contract}}
    refuse_foreign(path, saved, {"data": typed}, is_own=trust_report or is_own, trust="trust_report")
    of_processes = {name: value for name, value in typed.items() if name in kinds_of(BridgeSettings)}
    return {**report, **typed, "processes": {**processes, **of_processes}}


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
