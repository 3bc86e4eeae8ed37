"""GridWorld: find the goal, cell by cell. Its rules are those of TorchLean's GridWorld.

python -m lit_ppo fit --data.env_id=examples.grid_world.env:GridWorld-v0
"""

from collections.abc import Sequence
from typing import Any, Final

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

MOVES: Final = ((-1, 0), (1, 0), (0, -1), (0, 1))  # (rows, columns) of the actions up, down, left, right


class GridWorld(gymnasium.Env[NDArray[np.int64], np.int64]):
    """A rectangle of cells. A move that would leave it changes nothing.

    Each step costs 1, except the step to the goal, which costs nothing and ends the episode.
    The observation is (row, column); the actions are up, down, left, right.

    Args:
        width, height: Number of columns and rows.
        start: (row, column) of the first cell.
        goal: (row, column) of the goal; None for the last cell.

    Raises:
        ValueError: A cell is outside the rectangle, or the start is the goal.
    """

    def __init__(
        self, width: int = 4, height: int = 4, start: Sequence[int] = (0, 0), goal: Sequence[int] | None = None
    ) -> None:
        self._start = np.array(start, np.int64)
        self._goal = np.array((height - 1, width - 1) if goal is None else goal, np.int64)
        self._last = np.array((height - 1, width - 1))
        for name, cell in (("start", self._start), ("goal", self._goal)):
            if cell.shape != (2,) or (cell < 0).any() or (cell > self._last).any():
                raise ValueError(f"{name}: expected [row, column] from [0, 0] to {self._last.tolist()}, got {cell.tolist()}")
        if (self._start == self._goal).all():
            raise ValueError(f"goal: expected another cell than the start, got {self._goal.tolist()}")
        self.observation_space = spaces.MultiDiscrete([height, width])
        self.action_space = spaces.Discrete(len(MOVES))

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.int64], dict[str, Any]]:
        super().reset(seed=seed)
        self._cell = self._start.copy()
        return self._cell.copy(), {}

    def step(self, action: np.int64) -> tuple[NDArray[np.int64], float, bool, bool, dict[str, Any]]:
        self._cell = np.clip(self._cell + MOVES[action], 0, self._last)
        is_at_goal = bool((self._cell == self._goal).all())
        return self._cell.copy(), 0.0 if is_at_goal else -1.0, is_at_goal, False, {}


gymnasium.register(
    "GridWorld-v0",
    entry_point=f"{__name__}:GridWorld",
    max_episode_steps=100,
    reward_threshold=-5.0,  # of the shortest way, six steps, in the default rectangle
)
