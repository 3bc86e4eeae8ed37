"""RunSummary: a few lines at the end of a run: its outcome, and where its files are."""

import math
from pathlib import Path
from time import perf_counter

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from lit_ppo.callbacks.curve_export import CurveExport
from lit_ppo.callbacks.greedy_evaluation import data_of
from lit_ppo.callbacks.stop_when_solved import StopWhenSolved
from lit_ppo.run_directory import shortest
from lit_ppo.standard_streams import say


class RunSummary(Callback):
    """Prints to standard output when `fit` ends."""

    def __init__(self) -> None:
        self._start = 0.0
        self._training_s = 0.0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The clock runs from here: the first evaluation belongs to the run."""
        self._start = perf_counter()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._training_s = perf_counter() - self._start

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the outcome and the files."""
        if trainer.is_global_zero:
            say(*self._summary(trainer))

    def _summary(self, trainer: Trainer) -> list[str]:
        data = data_of(trainer)
        lines = [f"{data.update} updates, {data.env_steps:,} env steps, {self._training_s:.1f} s"]
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, StopWhenSolved):
                lines[:0] = [self._verdict(trainer, callback)]
            if isinstance(callback, ModelCheckpoint):
                lines += [
                    f"{name} checkpoint: {shortest(Path(path))}"
                    for name, path in (("best", callback.best_model_path), ("last", callback.last_model_path))
                    if path
                ]
            if isinstance(callback, CurveExport) and callback.path_for(trainer) is not None:
                lines.append(f"curve: {callback.path_for(trainer)}")
        return lines

    def _verdict(self, trainer: Trainer, solved: StopWhenSolved) -> str:
        threshold = solved.threshold_for(trainer)
        if threshold is None:
            return "no solve threshold: the environment has none; --solved.threshold=RETURN sets one"
        if threshold == math.inf:
            return "not solved: no threshold"
        if solved.solved_at is None:
            return f"not solved: no confirmed evaluation return of {threshold:g}"
        text = f"solved at env step {solved.solved_at:,}"
        if solved.confirmation is None:
            return text
        results = solved.confirmation
        return f"{text}: {len(results.returns)} fresh greedy episodes average {results.mean:.1f} (threshold {threshold:g})"
