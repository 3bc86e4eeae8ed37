"""lit_ppo: PPO as a Lightning module, on environments in a checked subprocess.

Environment processes run this file too, so it imports nothing: public names are loaded on first use (PEP 562).
"""

from typing import TYPE_CHECKING

__version__ = "0.2.0"

_HOMES = {
    "Contract": "lit_ppo.contract",
    "ContractSettings": "lit_ppo.contract",
    "ContractViolation": "lit_ppo.errors",
    "CurveExport": "lit_ppo.callbacks.curve_export",
    "EnvBridge": "lit_ppo.bridge.client",
    "GreedyEvaluation": "lit_ppo.callbacks.greedy_evaluation",
    "LitPPOCLI": "lit_ppo.commands.train",
    "PPOModule": "lit_ppo.module",
    "RolloutDataModule": "lit_ppo.data",
    "RunCheckpoint": "lit_ppo.callbacks.run_checkpoint",
    "RunProgress": "lit_ppo.callbacks.run_progress",
    "StopWhenSolved": "lit_ppo.callbacks.stop_when_solved",
}
_WITHOUT_TORCH = {"lit_ppo.bridge.client", "lit_ppo.contract", "lit_ppo.errors"}
__all__ = ["__version__", *_HOMES]

if TYPE_CHECKING:
    from lit_ppo.bridge.client import EnvBridge as EnvBridge
    from lit_ppo.callbacks.curve_export import CurveExport as CurveExport
    from lit_ppo.callbacks.greedy_evaluation import GreedyEvaluation as GreedyEvaluation
    from lit_ppo.callbacks.run_checkpoint import RunCheckpoint as RunCheckpoint
    from lit_ppo.callbacks.run_progress import RunProgress as RunProgress
    from lit_ppo.callbacks.stop_when_solved import StopWhenSolved as StopWhenSolved
    from lit_ppo.commands.train import LitPPOCLI as LitPPOCLI
    from lit_ppo.contract import Contract as Contract
    from lit_ppo.contract import ContractSettings as ContractSettings
    from lit_ppo.data import RolloutDataModule as RolloutDataModule
    from lit_ppo.errors import ContractViolation as ContractViolation
    from lit_ppo.module import PPOModule as PPOModule


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'lit_ppo' has no attribute {name!r}")
    from importlib import import_module

    if _HOMES[name] not in _WITHOUT_TORCH:
        from lit_ppo.compat_torch import defer_dynamo

        defer_dynamo()  # before Lightning imports it
    return getattr(import_module(_HOMES[name]), name)
