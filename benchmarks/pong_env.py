"""Pong as PPO is usually trained on it: gray frames of 84 x 84, four at a time.

Needs `pip install ale-py opencv-python-headless`.
"""

from typing import Any

import gymnasium


def make() -> gymnasium.Env[Any, Any]:
    """Observations are uint8, shape (4, 84, 84)."""
    import ale_py

    gymnasium.register_envs(ale_py)
    env = gymnasium.make("ALE/Pong-v5", frameskip=1, repeat_action_probability=0.0)
    return gymnasium.wrappers.FrameStackObservation(gymnasium.wrappers.AtariPreprocessing(env, noop_max=30), 4)


gymnasium.register("PongPixels-v0", make)
