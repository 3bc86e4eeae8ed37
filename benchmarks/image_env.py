"""An environment with image observations that costs next to nothing: what stepping one measures is the way to the trainer."""

from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

Frame = NDArray[np.uint8]


class BlankScreen(gymnasium.Env[Frame, np.int64]):
    """84 x 84 grey pixels, one number brighter at every step; an episode never ends by itself."""

    def __init__(self) -> None:
        self.observation_space = gymnasium.spaces.Box(0, 255, (1, 84, 84), np.uint8)
        self.action_space = gymnasium.spaces.Discrete(2)
        self._frame = np.zeros((1, 84, 84), np.uint8)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Frame, dict[str, Any]]:
        super().reset(seed=seed)
        self._frame = np.zeros_like(self._frame)
        return self._frame, {}

    def step(self, action: np.int64) -> tuple[Frame, float, bool, bool, dict[str, Any]]:
        self._frame = self._frame + np.uint8(1)
        return self._frame, 1.0, False, False, {}


gymnasium.register("BlankScreen-v0", entry_point="benchmarks.image_env:BlankScreen", max_episode_steps=1000)
