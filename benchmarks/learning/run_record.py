"""RunRecord: the results of a finished run as one JSON: training returns, greedy returns, env steps, time, versions."""

import copy
import os
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from platform import python_version
from time import perf_counter
from typing import Any, Final

from lightning.pytorch import Callback, LightningModule, Trainer

from lit_ppo.atomic_file import write_json
from lit_ppo.callbacks.curve_export import CurveExport
from lit_ppo.callbacks.graceful_exit import GracefulExit
from lit_ppo.callbacks.greedy_evaluation import data_of
from lit_ppo.callbacks.run_checkpoint import RunCheckpoint
from lit_ppo.checkpoint_io import read_checkpoint
from lit_ppo.errors import CheckpointError, ConfigError
from lit_ppo.evaluation import EpisodeResults
from lit_ppo.module import PPOModule
from lit_ppo.policy import Policy
from lit_ppo.run_statistics import thinned

_LAST_EPISODES: Final = 100  # of training, whose mean is the final training return, as in CleanRL's reports
_PACKAGES: Final = ("lit_ppo", "torch", "lightning", "numpy", "gymnasium", "box2d", "mujoco", "minigrid", "ale-py")


class RunRecord(Callback):
    """Keeps the training returns of a run, and writes them with the greedy returns of its policies when the run has ended.

    After a signal nothing is written: the run is to be continued. A resumed run has the record of an undisturbed one, but for
    the seconds.

    The file holds `env_steps`, `updates`, `wall_s` (seconds from the first rollout to the last update, with evaluations and
    checkpoints, without what a kill has lost), `training` and `greedy` (curves of at most 100 points: `env_steps`, `returns`),
    `final_training` (mean return of the last rollouts that together hold 100 ended episodes), `final_greedy` and `best_greedy`
    (fresh greedy episodes from test seeds, with the last policy and with that of the best checkpoint), `versions`, `cpu`.

    Args:
        path: File to write.
        num_episodes: Greedy episodes that judge a policy.

    Raises:
        ConfigError: A setting is out of its range.
    """

    def __init__(self, path: str, num_episodes: int = 100) -> None:
        if num_episodes < 1:
            raise ConfigError(f"RunRecord.num_episodes={num_episodes}: expected at least 1")
        self.path, self.num_episodes = path, num_episodes
        self._env_steps: list[int] = []  # after each rollout in which episodes ended
        self._num_ended: list[int] = []  # episodes in it
        self._returns: list[float] = []  # their mean return
        self._earlier_s = 0.0  # of the run, before this process continued it
        self._start: float | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start = perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the returns of the episodes that have ended in this rollout."""
        data = data_of(trainer)
        if data.metrics["episodes/ended"]:
            self._env_steps.append(data.env_steps)
            self._num_ended.append(int(data.metrics["episodes/ended"]))
            self._returns.append(data.metrics["episodes/return"])

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._earlier_s, self._start = self._seconds(), None

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Judge the last and the best policy, and write the file.

        Raises:
            CheckpointError: The file cannot be written.
        """
        assert isinstance(pl_module, PPOModule)
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        is_interrupted = any(isinstance(other, GracefulExit) and other.received is not None for other in callbacks)
        if is_interrupted:
            return
        data = data_of(trainer)

        def judged(policy: Policy) -> dict[str, float]:
            return _summary(data.play(policy, "test", self.num_episodes, pl_module.device))

        steps, returns = thinned(self._env_steps, self._returns, self._num_ended)
        record = {
            "env_steps": data.env_steps,
            "updates": data.update,
            "wall_s": round(self._earlier_s, 1),
            "training": {"env_steps": steps, "returns": [round(value, 4) for value in returns]},
            "greedy": self._greedy_curve(trainer),
            "final_training": self._final_training(),
            "final_greedy": judged(pl_module.policy),
            "best_greedy": None,
            "versions": versions(),
            "cpu": cpu(),
        }
        for callback in callbacks:
            if not isinstance(callback, RunCheckpoint):
                continue
            if path := trainer.strategy.broadcast(callback.best_model_path):  # of the first rank, which has written it
                saved = read_checkpoint(path)
                best = judged(_policy_of(saved, pl_module.policy))
                record["best_greedy"] = best | {"env_steps": saved[type(data).__qualname__]["env_steps"]}
        if not trainer.is_global_zero:  # it has played its share of the episodes
            return
        try:
            write_json(Path(self.path), record)
        except OSError as error:
            raise CheckpointError(f"{self.path}: cannot be written: {error}") from error

    def _seconds(self) -> float:
        return self._earlier_s + (0.0 if self._start is None else perf_counter() - self._start)

    def _final_training(self) -> dict[str, float] | None:
        """Mean return of the last rollouts that hold enough episodes, or of all; None if no episode has ended."""
        num_episodes, total = 0, 0.0
        for ended, mean in zip(reversed(self._num_ended), reversed(self._returns), strict=True):
            num_episodes, total = num_episodes + ended, total + ended * mean
            if num_episodes >= _LAST_EPISODES:
                break
        return {"mean": round(total / num_episodes, 4), "episodes": num_episodes} if num_episodes else None

    @staticmethod
    def _greedy_curve(trainer: Trainer) -> dict[str, list[Any]]:
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, CurveExport):
                curve = callback.state_dict()
                steps, returns = thinned(curve["steps"], curve["returns"], [1] * len(curve["steps"]))
                return {"env_steps": steps, "returns": [round(value, 4) for value in returns]}
        return {"env_steps": [], "returns": []}

    def state_dict(self) -> dict[str, Any]:
        return {
            "env_steps": list(self._env_steps),
            "num_ended": list(self._num_ended),
            "returns": list(self._returns),
            "seconds": self._seconds(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._env_steps, self._num_ended = list(state_dict["env_steps"]), list(state_dict["num_ended"])
        self._returns, self._earlier_s = list(state_dict["returns"]), state_dict["seconds"]


def _summary(results: EpisodeResults) -> dict[str, float]:
    return {"mean": round(results.mean, 4), "std": round(results.std, 4), "episodes": len(results.returns)}


def _policy_of(checkpoint: dict[str, Any], like: Policy) -> Policy:
    """The policy of a checkpoint of the same run.

    Args:
        checkpoint: Its content.
        like: A policy of the run; it is not changed.
    """
    prefix = "policy."
    policy = copy.deepcopy(like)
    weights = {name.removeprefix(prefix): value for name, value in checkpoint["state_dict"].items() if name.startswith(prefix)}
    policy.load_state_dict(weights)
    return policy


def versions() -> dict[str, str]:
    """Of Python and of the installed packages that decide a run's numbers."""
    found = {"python": python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def cpu() -> str:
    """Model of the CPU and number of its cores that this process may use."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{models[0] if models else 'unknown CPU'}, {len(os.sched_getaffinity(0))} cores"
