"""lit_ppo: PPO as a Lightning module, on environments in a checked subprocess.

Environment processes run this file too, so it imports nothing: public names are loaded on first use (PEP 562).
"""

from typing import TYPE_CHECKING

__version__ = "0.2.0"
PACKAGE = __path__[0]  # directory of this package, which workers load and a sandbox lets them read

_HOMES = {
    "BridgeError": "lit_ppo.errors",
    "BridgeSettings": "lit_ppo.bridge.settings",
    "CheckpointError": "lit_ppo.errors",
    "ConfigError": "lit_ppo.errors",
    "Contract": "lit_ppo.contract",
    "ContractSettings": "lit_ppo.contract",
    "ContractViolation": "lit_ppo.errors",
    "CurveExport": "lit_ppo.callbacks.curve_export",
    "EnvBridge": "lit_ppo.bridge.client",
    "EnvironmentFault": "lit_ppo.errors",
    "EnvironmentRaised": "lit_ppo.errors",
    "EnvironmentSettings": "lit_ppo.bridge.settings",
    "EpisodeResults": "lit_ppo.evaluation",
    "GracefulExit": "lit_ppo.callbacks.graceful_exit",
    "GreedyEvaluation": "lit_ppo.callbacks.greedy_evaluation",
    "LitPPOCLI": "lit_ppo.commands.train",
    "NonFiniteUpdate": "lit_ppo.errors",
    "PPOModule": "lit_ppo.module",
    "RolloutDataModule": "lit_ppo.data",
    "RunCheckpoint": "lit_ppo.callbacks.run_checkpoint",
    "RunProgress": "lit_ppo.callbacks.run_progress",
    "RunStatus": "lit_ppo.callbacks.run_status",
    "RunSummary": "lit_ppo.callbacks.run_summary",
    "StopWhenSolved": "lit_ppo.callbacks.stop_when_solved",
    "VerifiedCheckpointIO": "lit_ppo.checkpoint_io",
    "preset_named": "lit_ppo.presets",
}
_WITHOUT_TORCH = {"lit_ppo.bridge.client", "lit_ppo.bridge.settings", "lit_ppo.contract", "lit_ppo.errors", "lit_ppo.presets"}
__all__ = ["__version__", *_HOMES]

if TYPE_CHECKING:
    from lit_ppo.bridge.client import EnvBridge as EnvBridge
    from lit_ppo.bridge.settings import BridgeSettings as BridgeSettings
    from lit_ppo.bridge.settings import EnvironmentSettings as EnvironmentSettings
    from lit_ppo.callbacks.curve_export import CurveExport as CurveExport
    from lit_ppo.callbacks.graceful_exit import GracefulExit as GracefulExit
    from lit_ppo.callbacks.greedy_evaluation import GreedyEvaluation as GreedyEvaluation
    from lit_ppo.callbacks.run_checkpoint import RunCheckpoint as RunCheckpoint
    from lit_ppo.callbacks.run_progress import RunProgress as RunProgress
    from lit_ppo.callbacks.run_status import RunStatus as RunStatus
    from lit_ppo.callbacks.run_summary import RunSummary as RunSummary
    from lit_ppo.callbacks.stop_when_solved import StopWhenSolved as StopWhenSolved
    from lit_ppo.checkpoint_io import VerifiedCheckpointIO as VerifiedCheckpointIO
    from lit_ppo.commands.train import LitPPOCLI as LitPPOCLI
    from lit_ppo.contract import Contract as Contract
    from lit_ppo.contract import ContractSettings as ContractSettings
    from lit_ppo.data import RolloutDataModule as RolloutDataModule
    from lit_ppo.errors import BridgeError as BridgeError
    from lit_ppo.errors import CheckpointError as CheckpointError
    from lit_ppo.errors import ConfigError as ConfigError
    from lit_ppo.errors import ContractViolation as ContractViolation
    from lit_ppo.errors import EnvironmentFault as EnvironmentFault
    from lit_ppo.errors import EnvironmentRaised as EnvironmentRaised
    from lit_ppo.errors import NonFiniteUpdate as NonFiniteUpdate
    from lit_ppo.evaluation import EpisodeResults as EpisodeResults
    from lit_ppo.module import PPOModule as PPOModule
    from lit_ppo.presets import preset_named as preset_named


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'lit_ppo' has no attribute {name!r}")
    from importlib import import_module

    if _HOMES[name] not in _WITHOUT_TORCH:
        from lit_ppo.compat_torch import defer_dynamo

        defer_dynamo()  # before Lightning imports it
    return getattr(import_module(_HOMES[name]), name)
