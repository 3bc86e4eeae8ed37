"""A loss of your own in place of PPO's: python examples/own_loss.py

On the command line: python -m lit_ppo fit --model.loss=own_loss.rollback_loss
"""

import torch
from lightning.pytorch import Trainer

from lit_ppo import GreedyEvaluation, PPOModule, RolloutDataModule, RunSummary, StopWhenSolved, preset_named
from lit_ppo.functional import PPOLoss, weighted_mean
from lit_ppo.rollout import Batch
from lit_ppo.update import LossSettings, Predictions, ppo_loss

SLOPE = 0.3


def rollback_loss(predictions: Predictions, minibatch: Batch, settings: LossSettings) -> PPOLoss:
    """PPO's loss, with a term that pulls a ratio back that has left the clip range: PPO-RB.

    Clipping only takes the gradient away there; the rollback turns it around.

    Source: Wang, He, Tan 2019, "Truly Proximal Policy Optimization", section 4.1.
    """
    loss = ppo_loss(predictions, minibatch, settings)
    ratio = predictions.log_ratio.exp()  # (R,)
    outside = (ratio - 1).abs() - settings.clip_epsilon  # how far a ratio is outside the range
    moved_by_its_advantage = (ratio - 1) * minibatch.advantages > 0
    penalty = weighted_mean(
        torch.where(moved_by_its_advantage, outside.clamp(min=0) * minibatch.advantages.abs(), 0.0), minibatch.weights
    )
    return loss._replace(total=loss.total + SLOPE * penalty, policy=loss.policy + SLOPE * penalty)


def main() -> None:
    torch.set_num_threads(1)  # networks this small are fastest so
    preset = preset_named("CartPole-v1").settings
    data = RolloutDataModule(**preset["data"])
    model = PPOModule(data.spec, **preset["model"], loss=rollback_loss)
    callbacks = [GreedyEvaluation(every_env_steps=1024), StopWhenSolved(), RunSummary()]
    Trainer(max_epochs=100, accelerator="cpu", logger=False, enable_checkpointing=False, callbacks=callbacks).fit(model, data)


if __name__ == "__main__":
    main()
