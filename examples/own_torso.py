"""A network of your own between features and last layer: python examples/own_torso.py

On the command line: python -m lit_ppo fit --model.torso=own_torso.Residual --model.torso.width=64
"""

from functools import partial

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn

from lit_ppo import GreedyEvaluation, PPOModule, RolloutDataModule, RunSummary, StopWhenSolved, preset_named


class Residual(nn.Module):
    """Blocks that add to what they get, after a layer normalisation; actor and critic have one each.

    Args:
        num_inputs: Size of the features; lit_ppo passes it.
        width: Size of the output.
        blocks: Number of blocks.
    """

    def __init__(self, num_inputs: int, width: int = 64, blocks: int = 2) -> None:
        super().__init__()
        self.first = nn.Linear(num_inputs, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
            for _ in range(blocks)
        )

    def forward(self, features: Tensor) -> Tensor:  # (rows, num_inputs) -> (rows, width)
        hidden = self.first(features)
        for block in self.blocks:
            hidden = hidden + block(hidden)
        return hidden


def main() -> None:
    torch.set_num_threads(1)  # networks this small are fastest so
    preset = preset_named("CartPole-v1").settings
    data = RolloutDataModule(**preset["data"])
    # a partial, not a module: a checkpoint holds import path and arguments, never code
    model = PPOModule(data.spec, **preset["model"], torso=partial(Residual, width=64))
    callbacks = [GreedyEvaluation(every_env_steps=1024), StopWhenSolved(), RunSummary()]
    Trainer(max_epochs=100, accelerator="cpu", logger=False, enable_checkpointing=False, callbacks=callbacks).fit(model, data)


if __name__ == "__main__":
    main()
