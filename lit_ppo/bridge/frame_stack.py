"""The last observations as one: images side by side along their channels, numbers one after the other."""

from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from lit_ppo.spaces import channel_order

Space = gymnasium.Space[Any]
Join = Callable[[Sequence[Any]], Any]  # of observations, from the oldest to the newest


class FrameStack(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Joins the last observations; an image stays an image and a vector a vector, only larger.

    In the first steps of an episode, its first observation stands for those that are missing. Gymnasium's wrapper makes a new
    axis instead, which would turn vectors of bytes into images and images into something with four axes.

    Args:
        env: The environment.
        size: Number of observations.
        action_mask: As in `EnvironmentSettings`; a mask in the observation is not stacked.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], size: int, action_mask: str | None = None) -> None:
        super().__init__(env)
        self._frames: deque[Any] = deque(maxlen=size)
        self._mask = (action_mask or "").removeprefix("obs:")
        self.observation_space, self._join = self._stacked(env.observation_space, "", size)

    def _stacked(self, space: Space, path: str, size: int) -> tuple[Space, Join]:
        """The space of joined observations, and what joins them."""
        if path and path == self._mask:
            return space, _newest
        if isinstance(space, spaces.Dict):
            named = {name: self._stacked(part, f"{path}/{name}".lstrip("/"), size) for name, part in space.items()}
            joins = {name: join for name, (_, join) in named.items()}
            whole: Space = spaces.Dict({name: part for name, (part, _) in named.items()})
            return whole, lambda frames: {name: join([frame[name] for frame in frames]) for name, join in joins.items()}
        if isinstance(space, spaces.Tuple):
            parts = [self._stacked(part, f"{path}/{k}".lstrip("/"), size) for k, part in enumerate(space)]
            whole = spaces.Tuple([part for part, _ in parts])
            return whole, lambda frames: tuple(join([frame[k] for frame in frames]) for k, (_, join) in enumerate(parts))
        if isinstance(space, spaces.Box):
            join = _join_of_arrays(space)
            low, high = join([space.low] * size), join([space.high] * size)
            return spaces.Box(low, high, dtype=space.dtype.type), join
        if isinstance(space, spaces.Discrete):
            return spaces.MultiDiscrete([space.n] * size, start=[space.start] * size), np.array
        join = partial(np.concatenate, axis=-1)
        if isinstance(space, spaces.MultiDiscrete):
            start = np.broadcast_to(space.start, space.nvec.shape)
            return spaces.MultiDiscrete(join([space.nvec] * size), space.dtype, start=join([start] * size)), join
        if isinstance(space, spaces.MultiBinary):
            return spaces.MultiBinary(join([np.empty(space.shape)] * size).shape), join
        return space, _newest  # not supported, which `ObservationTree` says, or not used

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        obs, info = self.env.reset(**kwargs)
        self._frames.extend([obs] * (self._frames.maxlen or 0))
        return self._join(self._frames), info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = self.env.step(action)
        self._frames.append(obs)
        return self._join(self._frames), reward, terminated, truncated, info


def _join_of_arrays(space: spaces.Box) -> Join:
    if not space.shape:
        return np.stack
    if len(space.shape) == 2 and space.dtype == np.uint8:  # an image without channels gets some
        return partial(np.stack, axis=-1)
    is_first = len(space.shape) == 3 and channel_order(space.shape) == "first"
    return partial(np.concatenate, axis=0 if is_first else -1)


def _newest(frames: Sequence[Any]) -> Any:
    return frames[-1]
