"""Environments that cost next to nothing: what stepping them measures is the way of their observations to the trainer."""

from typing import Any, Final

import gymnasium
import numpy as np
from numpy.typing import NDArray

Parts = dict[str, NDArray[np.float32]]
Stepped = tuple[Any, float, bool, bool, dict[str, Any]]
_PARTS: Final = ("arm", "base", "goal", "hand")
_PART_SIZE: Final = 4
_EPISODE_STEPS: Final = 1000


class Screen(gymnasium.Env[NDArray[np.uint8], np.int64]):
    """84 x 84 pixels in a new array at every step, each one brighter; an episode never ends by itself.

    Args:
        channels: Numbers of a pixel.
    """

    def __init__(self, channels: int = 1) -> None:
        self.observation_space = gymnasium.spaces.Box(0, 255, (84, 84, channels), np.uint8)
        self.action_space = gymnasium.spaces.Discrete(2)
        self._frame = np.zeros((84, 84, channels), np.uint8)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._frame = np.zeros_like(self._frame)
        return self._frame, {}

    def step(self, action: np.int64) -> Stepped:
        self._frame = self._frame + np.uint8(1)
        return self._frame, 1.0, False, False, {}


class Constant(gymnasium.Env[Any, np.int64]):
    """Sixteen numbers that stay the same, as one array or as a Dict of four; an episode never ends by itself.

    Args:
        has_parts: Whether the observation is a Dict.
    """

    def __init__(self, has_parts: bool = False) -> None:
        size = _PART_SIZE if has_parts else len(_PARTS) * _PART_SIZE
        numbers = np.linspace(0.0, 0.9, size, dtype=np.float32)
        box = gymnasium.spaces.Box(0.0, 1.0, (size,), np.float32)
        self.observation_space: gymnasium.Space[Any] = gymnasium.spaces.Dict(dict.fromkeys(_PARTS, box)) if has_parts else box
        self.action_space = gymnasium.spaces.Discrete(2)
        self._obs = {name: numbers.copy() for name in _PARTS} if has_parts else numbers

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return self._obs, {}

    def step(self, action: np.int64) -> Stepped:
        return self._obs, 1.0, False, False, {}


gymnasium.register("Screen-v0", Screen, max_episode_steps=_EPISODE_STEPS)
gymnasium.register("Constant-v0", Constant, max_episode_steps=_EPISODE_STEPS)
