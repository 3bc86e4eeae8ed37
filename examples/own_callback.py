"""A callback of your own, which sees each rollout and every diagnostic: python examples/own_callback.py"""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger

from lit_ppo import GreedyEvaluation, PPOModule, RolloutDataModule, preset_named
from lit_ppo.rollout import Rollout


class ActionShares(Callback):
    """Logs how often each action was chosen, and ends the run if one is hardly chosen any more.

    Args:
        smallest: Share of all actions below which the run ends.
    """

    def __init__(self, smallest: float = 0.02) -> None:
        self.smallest = smallest

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Rollout, batch_idx: int
    ) -> None:
        """An update has been made; `batch` is the rollout that it learnt from."""
        counts = torch.bincount(batch.actions.flatten().long(), minlength=2)
        shares = counts / counts.sum()
        for action, share in enumerate(shares.tolist()):
            self.log(f"actions/{action}", share)
        entropy = trainer.callback_metrics["policy/entropy"]  # diagnostics are there without self.log
        print(f"update {batch.update + 1}: shares {shares.tolist()}, entropy {entropy:.3f}")
        if shares.min() < self.smallest:
            trainer.should_stop = True


def main() -> None:
    torch.set_num_threads(1)  # networks this small are fastest so
    preset = preset_named("CartPole-v1").settings
    data = RolloutDataModule(**preset["data"])
    model = PPOModule(data.spec, **preset["model"])
    callbacks = [GreedyEvaluation(every_env_steps=2048), ActionShares()]
    logger = CSVLogger("logs", name="own_callback")
    Trainer(max_epochs=10, accelerator="cpu", logger=logger, enable_checkpointing=False, callbacks=callbacks).fit(model, data)


if __name__ == "__main__":
    main()
