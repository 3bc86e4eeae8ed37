"""Environments with a known optimum, one for each kind of space, registered with Gymnasium by importing this module.

The worker imports it as `benchmarks.learning.envs:Dials-v0`, the peers as `import benchmarks.learning.envs`. All are
deterministic under `reset(seed=...)`, and all but CartPoleNoVel have the optimum of their docstring in every single episode.
"""

from collections.abc import Mapping
from typing import Any, Final

import gymnasium
import numpy as np
from gymnasium.envs.classic_control.cartpole import CartPoleEnv
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete
from numpy.typing import NDArray

EPISODE_STEPS: Final = 10
Info = dict[str, Any]


class MaskedRanks(gymnasium.Env[dict[str, Any], np.int64]):
    """Of 64 actions 4 are legal in a step; the best of them by a hidden ranking is worth 1, another 0, an illegal one ends the
    episode.

    `wanted` says whether the highest or the lowest rank is best in this step. Which actions are legal is drawn anew for each
    step and stands in `mask` alone.

    Optimum: 10 in 10 steps. A policy that does not see the mask survives a step with probability 4/64 and gets at most 1 in it,
    so its mean return is below 1/16 + 1/16^2 + ... = 1/15. Legal actions at random: 2.5.
    """

    NUM_ACTIONS: Final = 64
    NUM_LEGAL: Final = 4
    RANKS: Final = np.random.default_rng(64).permutation(64)  # of each action

    def __init__(self) -> None:
        self.observation_space = Dict({"wanted": Discrete(2), "mask": MultiBinary(self.NUM_ACTIONS)})
        self.action_space = Discrete(self.NUM_ACTIONS)
        self._wanted, self._mask = 0, np.zeros(self.NUM_ACTIONS, np.int8)

    def action_masks(self) -> NDArray[np.bool_]:
        """The mask, where sb3-contrib looks for it."""
        return self._mask.astype(np.bool_)

    def _draw(self) -> dict[str, Any]:
        self._wanted = int(self.np_random.integers(2))
        self._mask = np.zeros(self.NUM_ACTIONS, np.int8)
        self._mask[self.np_random.choice(self.NUM_ACTIONS, self.NUM_LEGAL, replace=False)] = 1
        return {"wanted": self._wanted, "mask": self._mask}

    def reset(self, *, seed: int | None = None, options: Info | None = None) -> tuple[dict[str, Any], Info]:
        super().reset(seed=seed)
        return self._draw(), {}

    def step(self, action: np.int64) -> tuple[dict[str, Any], float, bool, bool, Info]:
        if not self._mask[action]:
            return self._draw(), 0.0, True, False, {}
        legal_ranks = self.RANKS[self._mask == 1]
        best = legal_ranks.max() if self._wanted else legal_ranks.min()
        return self._draw(), float(self.RANKS[action] == best), False, False, {}


class Dials(gymnasium.Env[NDArray[np.int64], NDArray[np.int64]]):
    """Turn dial i to the position that the observation shows for it, moved on by i; a step is worth the share of right dials.

    Optimum: 10 in 10 steps. At random: 10 * (1/3 + 1/4 + 1/5 + 1/6) / 4 = 2.375.
    """

    POSITIONS: Final = np.array([3, 4, 5, 6])

    def __init__(self) -> None:
        self.observation_space = MultiDiscrete(self.POSITIONS)
        self.action_space = MultiDiscrete(self.POSITIONS)
        self._shown = np.zeros(len(self.POSITIONS), np.int64)

    def _draw(self) -> NDArray[np.int64]:
        self._shown = self.np_random.integers(self.POSITIONS)
        return self._shown

    def reset(self, *, seed: int | None = None, options: Info | None = None) -> tuple[NDArray[np.int64], Info]:
        super().reset(seed=seed)
        return self._draw(), {}

    def step(self, action: NDArray[np.int64]) -> tuple[NDArray[np.int64], float, bool, bool, Info]:
        right = (self._shown + np.arange(len(self.POSITIONS))) % self.POSITIONS
        return self._draw(), float(np.mean(action == right)), False, False, {}


class ParityBits(gymnasium.Env[NDArray[np.int8], NDArray[np.int8]]):
    """Copy the bits shown if an even number of them is 1, else their opposites; a step is worth the share of right bits.

    Optimum: 10 in 10 steps. At random: 5. The right value of a bit is the parity of all others, so a policy that leaves out one
    bit of the observation knows one bit of the action and nothing of the others: 10 * (1 + 4/2) / 5 = 6 at most.
    """

    NUM_BITS: Final = 5

    def __init__(self) -> None:
        self.observation_space = MultiBinary(self.NUM_BITS)
        self.action_space = MultiBinary(self.NUM_BITS)
        self._shown = np.zeros(self.NUM_BITS, np.int8)

    def _draw(self) -> NDArray[np.int8]:
        self._shown = self.np_random.integers(2, size=self.NUM_BITS, dtype=np.int8)
        return self._shown

    def reset(self, *, seed: int | None = None, options: Info | None = None) -> tuple[NDArray[np.int8], Info]:
        super().reset(seed=seed)
        return self._draw(), {}

    def step(self, action: NDArray[np.int8]) -> tuple[NDArray[np.int8], float, bool, bool, Info]:
        right = self._shown ^ (self._shown.sum() % 2)
        return self._draw(), float(np.mean(action == right)), False, False, {}


class ColouredPads(gymnasium.Env[dict[str, Any], np.int64]):
    """Walk on a 5 x 5 grid to the pad of the wanted colour by a shortest path; three leaves, all of them needed.

    `picture` shows a red and a blue pad in two corners, `colour` says which is wanted, `position` where the walker
    is. A step that shortens the way is worth 1/d, where d is its length at the start; any other step costs 1/d. The episode
    ends on the pad, and after 20 steps.

    Optimum: 1, in every episode.
    """

    SIDE: Final = 5
    STEPS: Final = 20
    CHANNELS: Final = np.array([0, 2])  # red and blue
    CORNERS: Final = np.array([(0, 0), (0, 4), (4, 0), (4, 4)])
    MOVES: Final = np.array([(-1, 0), (1, 0), (0, -1), (0, 1)])

    def __init__(self) -> None:
        self.observation_space = Dict(
            {
                "picture": Box(0, 255, (self.SIDE, self.SIDE, 3), np.uint8),
                "colour": Discrete(2),
                "position": Box(-1.0, 1.0, (2,), np.float32),
            }
        )
        self.action_space = Discrete(len(self.MOVES))
        self._pads, self._colour, self._at = self.CORNERS[:2], 0, np.zeros(2, np.int64)
        self._way = 1  # length of the shortest path at the start

    def _distance(self) -> int:
        return int(np.abs(self._pads[self._colour] - self._at).sum())

    def _observation(self) -> dict[str, Any]:
        picture = np.zeros((self.SIDE, self.SIDE, 3), np.uint8)
        picture[self._pads[:, 0], self._pads[:, 1], self.CHANNELS] = 255
        centre = (self.SIDE - 1) / 2
        return {"picture": picture, "colour": self._colour, "position": ((self._at - centre) / centre).astype(np.float32)}

    def reset(self, *, seed: int | None = None, options: Info | None = None) -> tuple[dict[str, Any], Info]:
        super().reset(seed=seed)
        self._pads = self.np_random.permutation(self.CORNERS)[:2]
        self._colour = int(self.np_random.integers(2))
        self._at = self.np_random.integers(self.SIDE, size=2)
        while not self._distance():
            self._at = self.np_random.integers(self.SIDE, size=2)
        self._way = self._distance()
        return self._observation(), {}

    def step(self, action: np.int64) -> tuple[dict[str, Any], float, bool, bool, Info]:
        before = self._distance()
        self._at = np.clip(self._at + self.MOVES[action], 0, self.SIDE - 1)
        after = self._distance()
        return self._observation(), (1 if after < before else -1) / self._way, after == 0, False, {}


class CartPoleNoVel(gymnasium.ObservationWrapper[NDArray[np.float32], np.int64, NDArray[np.float32]]):
    """CartPole-v1 whose observation is the position of the cart and the angle of the pole, without the velocities.

    Optimum: 500. A policy without memory cannot know which way the pole falls.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(CartPoleEnv(**kwargs))
        whole = self.env.observation_space
        assert isinstance(whole, Box)
        self.observation_space = Box(whole.low[::2], whole.high[::2], dtype=np.float32)

    def observation(self, observation: NDArray[np.float32]) -> NDArray[np.float32]:
        return observation[::2].copy()


_ENVS: Final[Mapping[str, tuple[type[gymnasium.Env[Any, Any]], int, float | None]]] = {
    "MaskedRanks-v0": (MaskedRanks, EPISODE_STEPS, None),
    "Dials-v0": (Dials, EPISODE_STEPS, None),
    "ParityBits-v0": (ParityBits, EPISODE_STEPS, None),
    "ColouredPads-v0": (ColouredPads, ColouredPads.STEPS, None),
    "CartPoleNoVel-v0": (CartPoleNoVel, 500, 475.0),
}
for _name, (_env, _steps, _threshold) in _ENVS.items():
    gymnasium.register(_name, f"{__name__}:{_env.__name__}", max_episode_steps=_steps, reward_threshold=_threshold)
