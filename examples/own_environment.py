"""An environment of your own, and a run on it: python examples/own_environment.py

Environment processes import this file to make `Corridor`, so it imports nothing heavy, and the run stands behind the last `if`.
"""

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np


class Corridor(gymnasium.Env):
    """Walk right to the end of a corridor; every step costs 0.1, and the end is worth 1."""

    observation_space = gymnasium.spaces.Box(0.0, 1.0, (1,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)  # left, right

    def __init__(self, length: int = 8) -> None:
        self.length, self.position = length, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)  # all randomness from self.np_random: then episodes can be replayed
        self.position = int(self.np_random.integers(self.length // 2))
        return self._seen(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.position = max(self.position + (1 if action == 1 else -1), 0)
        arrived = self.position == self.length
        return self._seen(), 1.0 if arrived else -0.1, arrived, False, {}

    def _seen(self) -> np.ndarray:
        return np.array([self.position / self.length], np.float32)


def main() -> None:
    import torch
    from lightning.pytorch import Trainer

    from lit_ppo import GreedyEvaluation, PPOModule, RolloutDataModule, RunSummary, StopWhenSolved

    torch.set_num_threads(1)  # networks this small are fastest so
    data = RolloutDataModule(
        "own_environment:Corridor",
        env_kwargs={"length": 8},
        env_path=str(Path(__file__).parent),
        max_episode_steps=50,  # it never ends by itself if the agent walks left
    )
    model = PPOModule(data.spec)
    callbacks = [GreedyEvaluation(every_env_steps=1), StopWhenSolved(threshold=0.3), RunSummary()]
    Trainer(max_epochs=20, accelerator="cpu", logger=False, enable_checkpointing=False, callbacks=callbacks).fit(model, data)


if __name__ == "__main__":
    main()
