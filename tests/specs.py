"""Leaves and specs for the tests, in few words."""

import math

import torch

from lit_ppo.networks import Initializer
from lit_ppo.policy import Policy, policy_for
from lit_ppo.ppo_settings import PPOSettings
from lit_ppo.spaces import EnvSpec, Leaf

Bound = float | tuple[float, ...]


def box(*shape: int, path: str = "", dtype: str = "float32", low: Bound = -math.inf, high: Bound = math.inf) -> Leaf:
    return Leaf(path, "box", shape, dtype, low, high)


def image(*shape: int, path: str = "") -> Leaf:
    return box(*shape, path=path, dtype="uint8", low=0, high=255)


def discrete(n: int, *, path: str = "", start: int = 0) -> Leaf:
    return Leaf(path, "discrete", (), "int64", start, start + n - 1)


def multi_discrete(*choices: int, path: str = "", shape: tuple[int, ...] = (), start: tuple[int, ...] = ()) -> Leaf:
    low = start or (0,) * len(choices)
    high = tuple(first + n - 1 for first, n in zip(low, choices, strict=True))
    return Leaf(path, "multi_discrete", shape or (len(choices),), "int64", low, high)


def multi_binary(*shape: int, path: str = "") -> Leaf:
    return Leaf(path, "multi_binary", shape, "int8", 0, 1)


def spec_of(*observation: Leaf, action: Leaf, mask: str | None = None) -> EnvSpec:
    return EnvSpec("Test-v0", observation, action, mask)


def vector_spec(obs_size: int, num_actions: int) -> EnvSpec:
    """One vector to see, and one of a few actions to do."""
    return spec_of(box(obs_size), action=discrete(num_actions))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def initializer(seed: int = 0, *, orthogonal: bool = True) -> Initializer:
    return Initializer(generator(seed), orthogonal)


def policy_of(spec: EnvSpec, settings: PPOSettings | None = None, seed: int = 0) -> Policy:
    return policy_for(spec.observation, spec.action, spec.mask, settings or PPOSettings(), generator(seed))
