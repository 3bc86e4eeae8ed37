"""Actions drawn at random, as an untrained visitor would choose them: each possible one equally often."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lit_ppo.spaces import EnvSpec, Leaf, Leaves


def random_actions(spec: EnvSpec, obs: Leaves, generator: np.random.Generator) -> NDArray[Any]:
    """One action for each observation, inside the action space and allowed by the mask.

    Unbounded components come from a normal distribution, as `gymnasium.Space.sample` draws them.

    Args:
        spec: Of the environment.
        obs: By path, shape (N, *leaf.shape) each; the mask is one of them.
        generator: The source of the draws.

    Returns:
        Shape (N, *action_shape), in the dtype of the action leaf.
    """
    leaf = spec.action
    num_envs = len(next(iter(obs.values())))
    low, high = leaf.bounds()
    if leaf.kind == "box" and not leaf.is_integer:
        return _floats(leaf, num_envs, generator)
    if spec.mask is None:
        numbers: NDArray[Any] = generator.integers(low, high, (num_envs, *leaf.shape), np.int64, endpoint=True)
        return numbers.astype(leaf.dtype)
    # the largest of random numbers, among the allowed ones of each component
    allowed = np.where(obs[spec.mask].reshape(num_envs, -1) != 0, generator.random((num_envs, sum(leaf.choices))), -1.0)
    parts = np.split(allowed, np.cumsum(leaf.choices)[:-1], axis=1)
    chosen = np.stack([part.argmax(axis=1) for part in parts], axis=1)
    actions: NDArray[Any] = (chosen.reshape(num_envs, *leaf.shape) + low).astype(leaf.dtype)
    return actions


def _floats(leaf: Leaf, num_envs: int, generator: np.random.Generator) -> NDArray[Any]:
    low, high = leaf.bounds()
    shape = (num_envs, *leaf.shape)
    is_bounded = np.isfinite(low) & np.isfinite(high)
    uniform = generator.uniform(np.where(is_bounded, low, 0.0), np.where(is_bounded, high, 1.0), shape)
    drawn = np.where(is_bounded, uniform, np.clip(generator.normal(size=shape), low, high)).astype(leaf.dtype)
    inside: NDArray[Any] = np.clip(drawn, low.astype(leaf.dtype), high.astype(leaf.dtype))  # rounding may leave the bounds
    return inside
