"""An environment whose step takes a given time, of one core or asleep: stands for simulators, here or elsewhere."""

from time import perf_counter, sleep
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray


class SlowEnv(gymnasium.Env[NDArray[np.float32], int]):
    """Counts its steps, 200 in an episode.

    Args:
        step_s: How long a step takes, seconds.
        sleeps: Whether it sleeps instead of computing.
    """

    def __init__(self, step_s: float = 1e-3, sleeps: bool = False) -> None:
        self.observation_space = gymnasium.spaces.Box(0, 1, (1,))
        self.action_space = gymnasium.spaces.Discrete(2)
        self._step_s, self._sleeps, self._steps = step_s, sleeps, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self._steps = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: int) -> Any:
        end = perf_counter() + self._step_s
        if self._sleeps:
            sleep(self._step_s)
        while perf_counter() < end:
            pass
        self._steps += 1
        return np.full(1, self._steps / 200, np.float32), 1.0, self._steps == 200, False, {}


gymnasium.register("Slow-v0", entry_point=SlowEnv)
