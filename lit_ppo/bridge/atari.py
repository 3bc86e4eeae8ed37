"""Atari's usual preprocessing by one name, `--data.wrappers=[atari]`."""

from typing import Any, Final

import gymnasium
import numpy as np

from lit_ppo.bridge.frame_stack import FrameStack

_FIRE: Final = 1
_FRAMES: Final = 4  # that are skipped, and that are stacked


class FireWhereNeeded(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Presses FIRE where the game waits for it: after a reset and after a lost life."""

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        self.env.reset(**kwargs)
        obs, _, _, _, info = self.env.step(_FIRE)
        self._lives = self._lives_left()
        return obs, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = self.env.step(action)
        if self._lives_left() < self._lives and not (terminated or truncated):
            obs, more, terminated, truncated, info = self.env.step(_FIRE)
            reward = float(reward) + float(more)
        self._lives = self._lives_left()
        return obs, reward, terminated, truncated, info

    def _lives_left(self) -> int:
        game: Any = self.env.unwrapped
        return int(game.ale.lives())


def atari(env: gymnasium.Env[Any, Any], is_training: bool = True) -> gymnasium.Env[Any, Any]:
    """Atari preprocessing: every 4th frame, as the maximum of two, in 84 x 84 greys, and 4 of these stacked.

    An episode begins with up to 30 no-ops, and with FIRE in games that wait for it. In training a lost life ends the episode
    and a reward is its sign; evaluation plays whole games for their true scores. Every episode begins a new game: if it went on
    with the old one, it would not follow from its seed, and could not be restored.
    Sticky actions stay as the environment has them: 0.25 in `ALE/*-v5`, none with env_kwargs `repeat_action_probability: 0`.

    Args:
        env: An environment of ale-py.
        is_training: Whether it is for training.

    Source: Machado et al. 2018, https://arxiv.org/abs/1709.06009; Mnih et al. 2015.
    """
    game: Any = env.unwrapped
    game._frameskip = 1  # the wrapper skips instead, and looks at this name itself
    env = gymnasium.wrappers.AtariPreprocessing(env, noop_max=30, frame_skip=_FRAMES, terminal_on_life_loss=is_training)
    meanings = game.get_action_meanings()
    if len(meanings) >= 3 and meanings[_FIRE] == "FIRE":
        env = FireWhereNeeded(env)
    env = FrameStack(env, _FRAMES)
    return gymnasium.wrappers.TransformReward(env, lambda reward: float(np.sign(float(reward)))) if is_training else env
