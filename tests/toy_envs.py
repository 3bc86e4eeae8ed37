"""Environments whose right answer is known, for the worker process; imported there as `tests.toy_envs:Identity-v0`."""

import socket
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


class LeakyEnv(IdentityEnv):
    """Keeps a number from one episode to the next, as physics engines that are not made anew do.

    Args:
        leaks: Whether it shows.
    """

    def __init__(self, leaks: bool = True) -> None:
        super().__init__()
        self.episodes, self.steps, self.leaks = 0, 0, leaks

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        obs, info = super().reset(seed=seed)
        self.episodes, self.steps = self.episodes + (self.steps > 0), 0
        return (obs * 0 + min(self.episodes, 1) if self.leaks else obs), info

    def step(self, action: np.int64) -> Stepped:
        self.steps += 1
        return super().step(action)


class BesideEnv(IdentityEnv):
    """Does not bear a second one beside it.

    Args:
        bears: `any` that does, `no state` of another in its process, `no other` there, or `none on the machine` of its name.
        name: Of the machine's only one.
    """

    seen, count = np.zeros(NUM_CHOICES, np.float32), 0

    def __init__(self, bears: str = "any", name: str = "") -> None:
        super().__init__()
        self.bears, self.lock = bears, socket.socket(socket.AF_UNIX)
        BesideEnv.count += 1
        if bears == "no other" and BesideEnv.count > 1:
            raise RuntimeError("Cannot create multiple emulator instances per process")
        if bears == "none on the machine":
            self.lock.bind(f"\0{name}")

    def _observation(self) -> np.ndarray:
        BesideEnv.seen[:] = BesideEnv.seen * (self.bears == "no state") + super()._observation()
        return np.minimum(BesideEnv.seen, 1.0)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        BesideEnv.seen[:] = 0
        return super().reset(seed=seed)

    def close(self) -> None:
        self.lock.close()


class SharingEnv(IdentityEnv):
    """Returns the same array each time, of which Gymnasium's checker complains; episodes end by themselves.

    Args:
        shape: Of an image in place of a vector; None for that.
        in_parts: Whether the image is part of a Dict.
    """

    def __init__(self, shape: tuple[int, ...] | None = None, in_parts: bool = False) -> None:
        super().__init__()
        self.kept: Any = np.zeros(NUM_CHOICES, np.float32)
        if shape is not None:
            self.observation_space = gymnasium.spaces.Box(0, 255, tuple(shape), np.uint8)  # type: ignore[assignment]
            self.kept = np.zeros(shape, np.uint8)
        if in_parts:
            self.observation_space = gymnasium.spaces.Dict({"camera": self.observation_space})  # type: ignore[assignment]
            self.kept = {"camera": self.kept}

    def _observation(self) -> Any:
        super()._observation()
        return self.kept


class AnythingEnv(gymnasium.Env[Any, Any]):
    """Observations and actions of one's choice. What is seen follows from seed and actions, bit for bit.

    Args:
        observation: `vector`, `image` or `nested`.
        action: `discrete`, `multi_discrete`, `multi_binary` or `box`.
        masked: Whether `info` says which choices are possible; another one raises.
    """

    def __init__(self, observation: str = "vector", action: str = "discrete", masked: bool = False) -> None:
        spaces = gymnasium.spaces
        vector, image = spaces.Box(-np.inf, np.inf, (3,), np.float64), spaces.Box(0, 255, (9, 9, 3), np.uint8)
        nested = spaces.Dict(
            {
                "camera": spaces.Dict({"left": image}),
                "mode": spaces.Discrete(3, start=1),
                "pair": spaces.Tuple((vector, spaces.MultiBinary(2))),
            }
        )
        self.observation_space = {"vector": vector, "image": image, "nested": nested}[observation]
        self.action_space = {
            "discrete": spaces.Discrete(4, start=2),
            "multi_discrete": spaces.MultiDiscrete([3, 2]),
            "multi_binary": spaces.MultiBinary(3),
            "box": spaces.Box(-1.0, 1.0, (2,), np.float32),
        }[action]
        self.observation, self.masked = observation, masked

    def _returned(self) -> tuple[Any, dict[str, Any]]:
        vector = 3 * np.sin(self.x) + 5
        image = np.resize((255 * np.abs(np.sin(self.x))).astype(np.uint8), (9, 9, 3))
        pair = (vector, (self.x[:2] > 0).astype(np.int8))
        nested = {"camera": {"left": image}, "mode": 1 + self.steps % 3, "pair": pair}
        info = {"possible": np.roll(np.array([1, 0, 1, 1], np.int8), self.steps)} if self.masked else {}
        return {"vector": vector, "image": image, "nested": nested}[self.observation], info

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.x, self.steps = self.np_random.uniform(-1, 1, 3), 0
        return self._returned()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if self.masked:
            assert self._returned()[1]["possible"][action - 2]
        self.x = np.sin(1.7 * self.x + 0.3 * np.asarray(action, np.float64).sum() + 0.1)
        self.steps += 1
        obs, info = self._returned()
        return obs, float(self.x.sum()), bool(self.x[0] > 0.97 and self.steps > 2), self.steps >= 11, info


gymnasium.register("Identity-v0", IdentityEnv, max_episode_steps=EPISODE_STEPS, reward_threshold=0.98 * EPISODE_STEPS)
gymnasium.register("ConstantReward-v0", ConstantRewardEnv, max_episode_steps=EPISODE_STEPS)
gymnasium.register("Verbatim-v0", VerbatimEnv, max_episode_steps=EPISODE_STEPS)
gymnasium.register("Leaky-v0", LeakyEnv, max_episode_steps=EPISODE_STEPS)
gymnasium.register("Anything-v0", AnythingEnv)
gymnasium.register("Beside-v0", BesideEnv, max_episode_steps=EPISODE_STEPS)
gymnasium.register("Sharing-v0", SharingEnv, max_episode_steps=EPISODE_STEPS)


class FarEnv(gymnasium.Env[Any, Any]):
    """Numbers of which float32 sees only the offset: metres of a map, Unix time, rewards. Actions change nothing.

    Args:
        has_bounds: Whether the space says between which times the environment is.
    """

    REWARD = 16_777_217.0

    def __init__(self, has_bounds: bool = True) -> None:
        spaces = gymnasium.spaces
        metres = spaces.Box(-np.inf, np.inf, (2,), np.float64)
        first, last = (1_700_000_000, 1_700_000_100) if has_bounds else (-(2**63), 2**63 - 1)
        time = spaces.Box(first, last, (1,), np.int64)
        self.observation_space = spaces.Dict({"metres": metres, "time": time})
        self.action_space, self.steps = spaces.Discrete(2), 0

    def _observation(self) -> dict[str, np.ndarray]:
        metres = np.array([6.4e6, -3e5]) + 0.5 * self.np_random.standard_normal(2)
        return {"metres": metres, "time": np.array([1_700_000_000 + 7 * self.steps])}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps = 0
        return self._observation(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        return self._observation(), self.REWARD, self.steps == 9, False, {}


gymnasium.register("Far-v0", FarEnv)


class RenderedEnv(gymnasium.Env[Any, Any]):
    """Shows the number of the step as a shade of grey; episodes have 4 steps, and a test can see all of them in a video.

    Args:
        render_mode: `rgb_array`, or `human`, which needs what is not installed; None for nothing to be seen.
    """

    metadata = {"render_modes": ["rgb_array", "human"], "render_fps": 20}
    observation_space, action_space = gymnasium.spaces.Box(-1, 1, (3,)), gymnasium.spaces.Discrete(3)

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode, self.steps = render_mode, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps = 0
        if self.render_mode == "human":
            raise gymnasium.error.DependencyNotInstalled("pygame is not installed")
        return np.zeros(3, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        return np.zeros(3, np.float32), 1.0, self.steps == 4, False, {}

    def render(self) -> Any:
        return np.full((34, 46, 3), 50 * self.steps, np.uint8)
