"""CurveExport: the curve of evaluation returns, rewritten at every evaluation."""

import os
import re
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lit_ppo.callbacks.greedy_evaluation import data_of, evaluation_of
from lit_ppo.callbacks.run_place import place_of
from lit_ppo.callbacks.stop_when_solved import StopWhenSolved
from lit_ppo.curve import RETURN_COLOR, Series, TrainLog
from lit_ppo.errors import CheckpointError
from lit_ppo.run_directory import CURVE_NAME, RUN, replace_link


def slug(env_id: str) -> str:
    """The environment's name for a file name: lower case, without module and version; `a.b:LunarLander-v3` is `lunarlander`."""
    name = re.sub(r"-v\d+$", "", env_id.rpartition(":")[2]).lower()
    return re.sub(r"[^a-z0-9_-]+", "_", name)


def _name(trainer: Trainer) -> str:
    return slug(data_of(trainer).environment.env_id)


class CurveExport(Callback):
    """Writes the training curve as JSON; a resumed run continues its checkpoint's curve.

    Args:
        path: File to write, in which `{run}` stands for the run's directory and `{env}` for the environment's name; None to
            write nothing.
        link: Symbolic link to the curve of the newest run of the environment, in `trainer.default_root_dir`, if `path` is in
            the run's directory; None for none.
    """

    def __init__(self, path: str | None = f"{RUN}/{CURVE_NAME}", link: str | None = "data/rl/ppo_{env}_trainlog.json") -> None:
        self.path, self.link = path, link
        self._steps: list[int] = []
        self._returns: list[float] = []

    def path_for(self, trainer: Trainer) -> Path | None:
        """The file of this run; None if none is written."""
        if self.path is None or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return None
        path = self.path.replace("{env}", _name(trainer))
        return Path(path.replace(RUN, str(place_of(trainer))) if RUN in path else path)

    @property
    def best_return(self) -> float | None:
        """Of the evaluations after the first update; None if there was none."""
        returns = [value for step, value in zip(self._steps, self._returns, strict=True) if step > 0]
        return max(returns, default=None)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._export(trainer)
        if self.path is not None and RUN in self.path and self.link is not None and trainer.is_global_zero:
            self._point_link(trainer)

    def _point_link(self, trainer: Trainer) -> None:
        """Let the link be one to this run's curve; a file in its place, such as a curve of an earlier version, is kept."""
        path = self.path_for(trainer)
        if path is None:
            return
        assert self.link is not None
        link = Path(trainer.default_root_dir) / self.link.replace("{env}", _name(trainer))
        if link.is_file() and not link.is_symlink():
            link.replace(link.with_name(f"{link.stem}.previous{link.suffix}"))
        replace_link(link, Path(os.path.relpath(path, link.parent)))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._export(trainer)

    def _export(self, trainer: Trainer) -> None:
        evaluation = evaluation_of(trainer, self)
        if not evaluation.is_fresh(trainer):
            return
        assert evaluation.latest is not None
        if not self._steps or self._steps[-1] != evaluation.latest.env_steps:
            self._steps.append(evaluation.latest.env_steps)
            self._returns.append(evaluation.latest.results.mean)
        path = self.path_for(trainer)
        if path is not None and trainer.is_global_zero:
            try:
                self._log(trainer).write(path)
            except OSError as error:
                raise CheckpointError(f"curve.path={path}: cannot be written: {error}") from error

    def _log(self, trainer: Trainer) -> TrainLog:
        data = data_of(trainer)
        env_id = data.environment.env_id
        notes = [f"env {env_id}, seed {data.seed}, {data.num_envs} envs x {data.horizon} steps; x axis: env steps"]
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, StopWhenSolved) and callback.solved_at is not None:
                notes.append(f"solved at env step {callback.solved_at} (threshold {callback.threshold_for(trainer):g})")
        line = Series("avg_return", RETURN_COLOR, list(self._returns))
        return TrainLog(f"PPO on {env_id}: greedy evaluation return", list(self._steps), [line], notes)

    def state_dict(self) -> dict[str, Any]:
        return {"steps": list(self._steps), "returns": list(self._returns)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._steps, self._returns = list(state_dict["steps"]), list(state_dict["returns"])
