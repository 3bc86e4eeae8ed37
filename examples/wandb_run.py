"""A run in Weights & Biases: python examples/wandb_run.py

Needs pip install -e '.[wandb]' and an account; WANDB_MODE=offline writes to ./wandb only. On the command line:
python -m lit_ppo fit --trainer.logger=WandbLogger --trainer.logger.project=cartpole
"""

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import WandbLogger

from lit_ppo import GreedyEvaluation, PPOModule, RolloutDataModule, RunCheckpoint, RunSummary, StopWhenSolved, preset_named


def main() -> None:
    torch.set_num_threads(1)  # networks this small are fastest so
    preset = preset_named("CartPole-v1").settings
    data = RolloutDataModule(**preset["data"], seed=1)
    model = PPOModule(data.spec, **preset["model"], seed=1)
    # one row for each update and its evaluation, over env steps; all settings of model and environments as its config
    logger = WandbLogger(project="cartpole", save_dir=".")
    callbacks = [GreedyEvaluation(every_env_steps=1024), StopWhenSolved(), RunCheckpoint("checkpoints"), RunSummary()]
    Trainer(max_epochs=100, accelerator="cpu", logger=logger, callbacks=callbacks).fit(model, data)
    logger.experiment.finish()


if __name__ == "__main__":
    main()
