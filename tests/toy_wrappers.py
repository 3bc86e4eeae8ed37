"""Wrappers and factories that the tests name by their import paths."""

from typing import Any

import gymnasium

from tests.toy_envs import ConstantRewardEnv, IdentityEnv


class Scale(gymnasium.RewardWrapper[Any, Any]):
    """Rewards times `factor`."""

    def __init__(self, env: gymnasium.Env[Any, Any], factor: float = 2.0) -> None:
        super().__init__(env)
        self.factor = factor

    def reward(self, reward: Any) -> float:
        return float(reward) * self.factor


class Repeat(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Each action `times` times; the reward of the last, and one more in training."""

    def __init__(self, env: gymnasium.Env[Any, Any], times: int = 2, is_training: bool = True) -> None:
        super().__init__(env)
        self.times, self.extra = times, float(is_training)

    def step(self, action: Any) -> Any:
        for _ in range(self.times):
            obs, reward, terminated, truncated, info = self.env.step(action)
            if terminated or truncated:
                break
        return obs, float(reward) + self.extra, terminated, truncated, info


class Forwarding(ConstantRewardEnv):
    """Passes all its arguments on."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)


class Broken(ConstantRewardEnv):
    """Takes `level`, and passes it to a function of its own that does not."""

    def __init__(self, level: int = 0) -> None:
        super().__init__()
        _takes_nothing(level=level)  # type: ignore[call-arg]


class BrokenForwarding(Forwarding):
    """Takes anything, and passes something of its own to a function that does not take it."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        _takes_nothing(level=3)  # type: ignore[call-arg]


def _takes_nothing() -> None:
    pass


def identity(**kwargs: Any) -> gymnasium.Env[Any, Any]:
    """A factory: no time limit, no threshold."""
    return IdentityEnv(**kwargs)


def nothing() -> None:
    """A factory that forgets to return."""


def lacking() -> gymnasium.Env[Any, Any]:
    """A factory that needs a package."""
    import no_such_package  # type: ignore[import-not-found]

    return no_such_package.make()  # type: ignore[no-any-return]
