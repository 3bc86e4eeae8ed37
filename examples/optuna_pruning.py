"""A search for settings that gives up bad trials early: python examples/optuna_pruning.py

Needs pip install -e '.[optuna]'.
"""

import optuna
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lit_ppo import GreedyEvaluation, PPOModule, RolloutDataModule

UPDATES, TRIALS = 20, 6


class Pruning(Callback):
    """Reports each evaluation to the trial, and ends the run when the trial is not worth going on with.

    Args:
        trial: Of the study.
        evaluation: The run's evaluations; this callback stands behind it.
    """

    def __init__(self, trial: optuna.Trial, evaluation: GreedyEvaluation) -> None:
        self.trial, self.evaluation = trial, evaluation

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.evaluation.is_fresh(trainer):
            latest = self.evaluation.latest
            self.trial.report(latest.results.mean, step=latest.env_steps)
            trainer.should_stop |= self.trial.should_prune()  # ends at this boundary; an exception here would be as good


def objective(trial: optuna.Trial) -> float:
    """The last evaluation of a short run."""
    data = RolloutDataModule("CartPole-v1", num_envs=8, horizon=64, seed=trial.number)
    model = PPOModule(
        data.spec,
        learning_rate=trial.suggest_float("learning_rate", 1e-5, 1e-2, log=True),
        clip_epsilon=trial.suggest_float("clip_epsilon", 0.1, 0.5),
        gae_lambda=trial.suggest_float("gae_lambda", 0.8, 1.0),
        update_epochs=4,
        seed=trial.number,
    )
    evaluation = GreedyEvaluation(every_env_steps=2048)
    trainer = Trainer(
        max_epochs=UPDATES,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        callbacks=[evaluation, Pruning(trial, evaluation)],
    )
    trainer.fit(model, data)
    if trial.should_prune():
        raise optuna.TrialPruned
    return evaluation.latest.results.mean


if __name__ == "__main__":
    torch.set_num_threads(1)  # networks this small are fastest so
    study = optuna.create_study(
        direction="maximize", pruner=optuna.pruners.MedianPruner(n_startup_trials=2, n_warmup_steps=4096)
    )
    study.optimize(objective, n_trials=TRIALS)
    print(f"best return {study.best_value:g} with {study.best_params}")
