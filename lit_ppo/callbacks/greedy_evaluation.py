"""GreedyEvaluation: plays greedy episodes from time to time, in processes apart from training."""

from typing import Any, Final, NamedTuple

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging

from lit_ppo import seeding
from lit_ppo.compat_lightning import averaged_weights, monitor_after_evaluations
from lit_ppo.data import RolloutDataModule
from lit_ppo.errors import ConfigError
from lit_ppo.evaluation import EpisodeResults
from lit_ppo.module import PPOModule

_EVALUATIONS_OF_A_RUN: Final = 50
_SPACING_WITHOUT_LENGTH: Final = 20_000  # env steps
_TRAINING_STEPS_PER_GREEDY_STEP: Final = 6  # so at most one of seven env steps is greedy


def spacing_of(every_env_steps: int | None, run_env_steps: int | None) -> int:
    """Env steps between two evaluations.

    Args:
        every_env_steps: As it was set; None for a fiftieth of the run.
        run_env_steps: Length of the run; None if it is unlimited.
    """
    if every_env_steps is not None:
        return every_env_steps
    return _SPACING_WITHOUT_LENGTH if run_env_steps is None else max(1, run_env_steps // _EVALUATIONS_OF_A_RUN)


class Evaluation(NamedTuple):
    """Results of one evaluation."""

    update: int  # updates made before it
    env_steps: int  # transitions collected before it
    results: EpisodeResults


def next_evaluation(latest: Evaluation, every_env_steps: int | None, run_env_steps: int | None) -> int:
    """Env steps at which the next evaluation is due.

    It is the next multiple of the spacing. Unless the spacing was set, an evaluation of long episodes is also followed by six
    times as many env steps of training as it had itself, so that evaluation never takes the greater part of a short run; the
    end of the run is evaluated all the same.

    Args:
        latest: The newest evaluation.
        every_env_steps, run_env_steps: As in `spacing_of`.
    """
    spacing = spacing_of(every_env_steps, run_env_steps)
    due = (latest.env_steps // spacing + 1) * spacing
    if every_env_steps is None:
        due = max(due, latest.env_steps + _TRAINING_STEPS_PER_GREEDY_STEP * sum(latest.results.lengths))
        if run_env_steps is not None and latest.env_steps < run_env_steps:
            due = min(due, run_env_steps)
    return due


class GreedyEvaluation(Callback):
    """Evaluates the untrained policy, then the policy every few env steps.

    An evaluation follows the first update that reaches, or passes, another multiple of the spacing. By default the spacing
    grows with the length of the episodes: `next_evaluation`.

    Training is not touched: other processes, other seeds, no random numbers. The mean return goes to the loggers and to
    `trainer.callback_metrics` as `eval/return`; other callbacks find the newest evaluation in `latest`.

    Args:
        every_env_steps: Env steps between evaluations; 1 evaluates after every update. None for a fiftieth of the run (20,000
            if the run is unlimited), or six times the env steps of the last evaluation if that is more; the end of the run is
            evaluated in any case.
        num_episodes: Greedy episodes in each.

    Raises:
        ConfigError: A setting is out of its range.
    """

    def __init__(self, every_env_steps: int | None = None, num_episodes: int = 10) -> None:
        for name, value in {"every_env_steps": every_env_steps, "num_episodes": num_episodes}.items():
            if value is not None and value < 1:
                raise ConfigError(f"evaluation.{name}={value}: expected at least 1")
        self.every_env_steps, self.num_episodes = every_env_steps, num_episodes
        self.latest: Evaluation | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse averages that would change between evaluation and checkpoint; what monitors an evaluation waits for one.

        Raises:
            ConfigError: A WeightAveraging callback comes later.
        """
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        for callback in callbacks[callbacks.index(self) :]:
            if isinstance(callback, WeightAveraging):
                raise ConfigError(
                    f"trainer.callbacks: {type(callback).__name__}: expected before GreedyEvaluation, "
                    "which evaluates the averaged weights"
                )
        monitor_after_evaluations(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The first point of the curve: the untrained policy; after a resume, an evaluation that was interrupted."""
        if self._is_due(trainer, pl_module):
            metrics = self._evaluate(trainer, pl_module)
            for logger in trainer.loggers:
                logger.log_metrics(metrics, step=data_of(trainer).env_steps)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluate when it is due."""
        if self._is_due(trainer, pl_module):
            assert isinstance(pl_module, PPOModule)
            pl_module.add_evaluation(self._evaluate(trainer, pl_module))

    def _is_due(self, trainer: Trainer, pl_module: LightningModule) -> bool:
        if self.latest is None:
            return True
        assert isinstance(pl_module, PPOModule)
        return data_of(trainer).env_steps >= next_evaluation(self.latest, self.every_env_steps, pl_module.run_env_steps)

    def is_fresh(self, trainer: Trainer) -> bool:
        """Whether `latest` evaluated the newest update."""
        return self.latest is not None and self.latest.update == data_of(trainer).update

    def _evaluate(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, float]:
        data = data_of(trainer)
        results = play_greedily(trainer, pl_module, "evaluation", self.num_episodes)
        self.latest = Evaluation(data.update, data.env_steps, results)
        return {
            "eval/return": results.mean,
            "eval/return_std": results.std,
            "eval/length": sum(results.lengths) / len(results.lengths),
        }

    def state_dict(self) -> dict[str, Any]:
        latest = None if self.latest is None else [self.latest.update, self.latest.env_steps, *map(list, self.latest.results)]
        return {"latest": latest}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if state_dict["latest"] is not None:
            update, env_steps, returns, lengths = state_dict["latest"]
            self.latest = Evaluation(update, env_steps, EpisodeResults(tuple(returns), tuple(lengths)))


def play_greedily(
    trainer: Trainer, module: LightningModule, purpose: seeding.Purpose, num_episodes: int, first_episode: int = 0
) -> EpisodeResults:
    """Greedy episodes of the policy that a checkpoint of this moment would hold; arguments as in `RolloutDataModule.play`."""
    assert isinstance(module, PPOModule)
    with averaged_weights(trainer, module):
        return data_of(trainer).play(module.policy, purpose, num_episodes, module.device, first_episode)


def data_of(trainer: Trainer) -> RolloutDataModule:
    """The run's datamodule.

    Raises:
        ConfigError: The run has another one, or none.
    """
    data = trainer.datamodule  # type: ignore[attr-defined]
    if not isinstance(data, RolloutDataModule):
        raise ConfigError(f"trainer.fit(datamodule=...): expected a RolloutDataModule, got {type(data).__name__}")
    return data


def evaluation_of(trainer: Trainer, wanted_by: Callback) -> GreedyEvaluation:
    """The run's evaluation callback, which must come before the callback that needs it.

    Raises:
        ConfigError: There is none, or it comes later.
    """
    earlier = trainer.callbacks[: trainer.callbacks.index(wanted_by)]  # type: ignore[attr-defined]
    for callback in earlier:
        if isinstance(callback, GreedyEvaluation):
            return callback
    raise ConfigError(f"trainer.callbacks: {type(wanted_by).__name__} expects a GreedyEvaluation before it")
