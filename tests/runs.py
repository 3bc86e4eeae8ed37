"""Small training runs for the tests: a Trainer without its extras, a datamodule and a module that keep what they were given."""

from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, ProgressBar
from torch import Tensor

from lit_ppo.data import RolloutDataModule
from lit_ppo.evaluation import EpisodeResults
from lit_ppo.module import PPOModule
from lit_ppo.rollout import Batch, Rollout
from tests.specs import vector_spec

torch.set_num_threads(1)  # as the command line does; threads would compete with the environment processes

IDENTITY = "tests.toy_envs:Identity-v0"
CONSTANT = "tests.toy_envs:ConstantReward-v0"


class KeptData(RolloutDataModule):
    """Keeps every rollout it hands out."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.rollouts: list[Rollout] = []

    def next_rollout(self) -> Rollout:
        self.rollouts.append(super().next_rollout())
        return self.rollouts[-1]


class KeptModule(PPOModule):
    """Keeps every batch it learns from."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.batches: list[Batch] = []

    def make_batch(self, rollout: Rollout) -> Batch:
        self.batches.append(super().make_batch(rollout))
        return self.batches[-1]


class ScriptedPlay(KeptData):
    """Greedy episodes come out as a script says: for each purpose, one list of returns after the other."""

    script: dict[str, list[list[float]]]
    current: list[float]

    def play(
        self, policy: Any, purpose: str, num_episodes: int, device: torch.device, first_episode: int = 0
    ) -> EpisodeResults:
        if first_episode == 0:
            self.current = self.script[purpose].pop(0)
        returns = self.current[first_episode : first_episode + num_episodes]
        return EpisodeResults(tuple(returns), tuple(7 for _ in returns))


def small_data(env_id: str = IDENTITY, cls: type[RolloutDataModule] = KeptData, **settings: Any) -> Any:
    return cls(env_id, **({"num_envs": 2, "horizon": 10, "evaluation_envs": 2} | settings))


def small_module(cls: type[PPOModule] = KeptModule, **settings: Any) -> Any:
    """For the identity environment."""
    small = {"spec": vector_spec(3, 3), "actor_hidden_sizes": (8,), "critic_hidden_sizes": (8,), "minibatch_size": 10}
    return cls(**(small | {"update_epochs": 4} | settings))


def cartpole_module(**settings: Any) -> Any:
    return small_module(**({"spec": vector_spec(4, 2)} | settings))


def bare_trainer(updates: int, *callbacks: Callback, **flags: Any) -> Trainer:
    bare: dict[str, Any] = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
        "enable_progress_bar": any(isinstance(callback, ProgressBar) for callback in callbacks),
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
    }
    return Trainer(max_epochs=updates, callbacks=list(callbacks), **(bare | flags))


def fit(
    updates: int, *callbacks: Callback, module: PPOModule | None = None, data: Any = None, ckpt_path: str | None = None
) -> tuple[PPOModule, Any]:
    """Train; module and datamodule as they are afterwards."""
    module, data = module or small_module(), data or small_data()
    bare_trainer(updates, *callbacks).fit(module, datamodule=data, ckpt_path=ckpt_path)
    return module, data


def parameters(module: PPOModule) -> dict[str, Tensor]:
    """A copy."""
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    """Bit for bit."""
    return first.keys() == second.keys() and all(first[name].equal(second[name]) for name in first)
