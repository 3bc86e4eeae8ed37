"""Environments whose right answer is known, for the worker process; imported there as `tests.toy_envs:Identity-v0`."""

from typing import Any

import gymnasium
import numpy as np

EPISODE_STEPS = 10
NUM_CHOICES = 3
Stepped = tuple[np.ndarray, float, bool, bool, dict[str, Any]]


class IdentityEnv(gymnasium.Env[np.ndarray, np.int64]):
    """The observation is the one-hot code of the action that is worth 1; the time limit is the only end."""

    def __init__(self) -> None:
        self.observation_space = gymnasium.spaces.Box(0.0, 1.0, (NUM_CHOICES,), np.float32)
        self.action_space = gymnasium.spaces.Discrete(NUM_CHOICES)
        self.right = 0

    def _observation(self) -> np.ndarray:
        self.right = int(self.np_random.integers(NUM_CHOICES))
        return np.eye(NUM_CHOICES, dtype=np.float32)[self.right]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        return self._observation(), {}

    def step(self, action: np.int64) -> Stepped:
        reward = float(action == self.right)
        return self._observation(), reward, False, False, {}


class ConstantRewardEnv(gymnasium.Env[np.ndarray, np.int64]):
    """Reward `reward` for every step, whatever is done, and nothing to see: the value of every state is reward / (1 - gamma).

    Args:
        reward: Of every step.
    """

    def __init__(self, reward: float = 1.0) -> None:
        self.observation_space = gymnasium.spaces.Box(0.0, 1.0, (1,), np.float32)
        self.action_space = gymnasium.spaces.Discrete(2)
        self.reward = reward

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        return np.ones(1, np.float32), {}

    def step(self, action: np.int64) -> Stepped:
        return np.ones(1, np.float32), self.reward, False, False, {}


class VerbatimEnv(ConstantRewardEnv):
    """Can be made only with strings that look like a number and like nothing."""

    def __init__(self, digits: str, word: str) -> None:
        assert (digits, word) == ("123", "null"), (digits, word)
        super().__init__()


gymnasium.register("Identity-v0", IdentityEnv, max_episode_steps=EPISODE_STEPS, reward_threshold=0.98 * EPISODE_STEPS)
gymnasium.register("ConstantReward-v0", ConstantRewardEnv, max_episode_steps=EPISODE_STEPS)
gymnasium.register("Verbatim-v0", VerbatimEnv, max_episode_steps=EPISODE_STEPS)
