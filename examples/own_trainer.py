"""lit_ppo in your own Trainer, with Lightning's callbacks and logger: python examples/own_trainer.py"""

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor, ModelCheckpoint, Timer
from lightning.pytorch.loggers import CSVLogger

from lit_ppo import GreedyEvaluation, PPOModule, RolloutDataModule, preset_named


def main() -> None:
    torch.set_num_threads(1)  # networks this small are fastest so
    preset = preset_named("CartPole-v1").settings
    data = RolloutDataModule(**preset["data"], seed=3)
    model = PPOModule(data.spec, **preset["model"], seed=3)
    best = ModelCheckpoint("checkpoints", monitor="eval/return", mode="max", save_last=True)
    trainer = Trainer(
        max_epochs=60,  # updates; the learning rate decays over them
        accelerator="cpu",
        logger=CSVLogger("logs", name="own_trainer"),
        callbacks=[
            GreedyEvaluation(every_env_steps=1024),  # greedy episodes as eval/return, which the next two look at
            EarlyStopping("eval/return", mode="max", patience=10, stopping_threshold=499),
            best,
            LearningRateMonitor(),
            Timer(duration="00:00:05:00", interval="step"),
        ],
    )
    trainer.fit(model, datamodule=data)

    # 100 greedy episodes of the best policy, from seeds that training and evaluation never use
    tested = PPOModule.load_from_checkpoint(best.best_model_path, weights_only=True)
    [metrics] = trainer.test(tested, datamodule=data, verbose=False)
    print(f"test return {metrics['test/return_mean']:.1f}; best of training {best.best_model_score:.1f}")

    # the run goes on from its last checkpoint, as if it had never stopped
    longer = Trainer(max_epochs=trainer.current_epoch + 2, accelerator="cpu", logger=False, enable_checkpointing=False)
    longer.fit(model, datamodule=data, ckpt_path=best.last_model_path)


if __name__ == "__main__":
    main()
