"""Two ranks as workers of Ray Train, which starts them again if one is lost: python examples/ray_train.py [DIRECTORY]

Needs pip install -e '.[ray]'. Curve and checkpoints go to DIRECTORY, ./ray_train by default, which all machines of a cluster
must share.
"""

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import ray.train
import torch
from lightning.pytorch import LightningModule, Trainer
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.lightning import RayDDPStrategy, RayLightningEnvironment, RayTrainReportCallback, prepare_trainer
from ray.train.torch import TorchTrainer

from lit_ppo import CurveExport, GreedyEvaluation, PPOModule, RolloutDataModule, preset_named

UPDATES, EVERY = 20, 5


class Report(RayTrainReportCallback):
    """Gives Ray a checkpoint of every fifth update; each report takes a second or two."""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if (trainer.current_epoch + 1) % EVERY == 0:
            super().on_train_epoch_end(trainer, pl_module)


def train(config: dict[str, Any]) -> None:
    """What every worker runs, also when Ray has started it again: then the run goes on from its newest checkpoint."""
    torch.set_num_threads(1)  # networks this small are fastest so
    preset = preset_named("CartPole-v1").settings
    data = RolloutDataModule(**preset["data"], seed=1, shards=2)  # of all ranks together; any number of them makes the same run
    model = PPOModule(data.spec, **preset["model"], seed=1)
    trainer = Trainer(
        max_epochs=UPDATES,
        accelerator="cpu",
        strategy=RayDDPStrategy(),
        plugins=[RayLightningEnvironment()],
        callbacks=[GreedyEvaluation(every_env_steps=1024), CurveExport(config["curve"]), Report()],
        logger=False,
        enable_checkpointing=False,  # by Lightning
        enable_progress_bar=False,
    )
    newest = ray.train.get_checkpoint()
    with nullcontext() if newest is None else newest.as_directory() as directory:
        prepare_trainer(trainer).fit(model, data, ckpt_path=directory and f"{directory}/{Report.CHECKPOINT_NAME}")


def main() -> None:
    directory = Path(sys.argv[1] if len(sys.argv) > 1 else "ray_train").absolute()
    workers = TorchTrainer(
        train,
        train_loop_config={"curve": str(directory / "curve.json")},
        scaling_config=ScalingConfig(num_workers=2),
        run_config=RunConfig(
            name="run",
            storage_path=str(directory),
            failure_config=FailureConfig(max_failures=3),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
        ),
    )
    print(f"return after {UPDATES} updates {workers.fit().metrics['eval/return']:.1f}")


if __name__ == "__main__":
    main()
