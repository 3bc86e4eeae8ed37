"""Two ranks beside one: `python -m benchmarks.ranks [--rounds N]`, whole runs of `fit`, one after the other in turns.

`sleeping`: 16 environments whose step sleeps 1 ms, one worker for each rank, so that two cores do not bound it. On one machine
more workers do the same as more ranks; the ratio says what ranks on two machines would bring. `wide`: networks of 256 and
minibatches of 4,096, where each rank computes half of every gradient. `plain`: CartPole, where a rank brings nothing but its
collectives. The share of collectives is the time that the first rank spends in them, of training from the first update to the
last; it contains its waiting for the other rank.
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
from time import perf_counter
from typing import Any, Final

from lightning import Callback, LightningModule, Trainer

from benchmarks.report import ROOT
from lit_ppo import ranks

_COMMON: Final = [
    "--preset=none",
    "--solved.threshold=.inf",
    "--evaluation.every_env_steps=1000000000",
    "--trainer.logger=false",
    "--trainer.callbacks+=benchmarks.ranks.CollectiveShare",
]
_SHARDS: Final = "--data.shards=2"
_CASES: Final = {
    "sleeping": [
        "--data.env_id=benchmarks.slow_env:Slow-v0",
        "--data.env_kwargs={sleeps: true}",
        "--data.num_envs=16",
        "--data.horizon=64",
        "--model.update_epochs=4",
        "--model.minibatch_size=256",
        "--trainer.max_epochs=15",
    ],
    "wide": [
        "--data.num_envs=64",
        "--data.horizon=256",
        "--model.actor_hidden_sizes=[256, 256]",
        "--model.critic_hidden_sizes=[256, 256]",
        "--model.minibatch_size=4096",
        "--trainer.max_epochs=10",
    ],
    "plain": ["--data.num_envs=8", "--data.horizon=256", "--model.minibatch_size=128", "--trainer.max_epochs=15"],
}


class CollectiveShare(Callback):
    """Prints which share of training the first rank spends in collectives."""

    def __init__(self) -> None:
        self._collectives_s = self._began_at = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        gather = ranks._gather_single  # every collective of a run, but for those before and after training

        def timed(*arguments: Any, **options: Any) -> None:
            start = perf_counter()
            gather(*arguments, **options)
            self._collectives_s += perf_counter() - start

        ranks._gather_single = timed

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if not self._began_at:
            self._collectives_s, self._began_at = 0.0, perf_counter()

    def on_train_batch_end(self, trainer: Trainer, *others: Any) -> None:
        if trainer.is_global_zero and trainer.current_epoch + 1 == trainer.max_epochs:
            print(f"collectives {self._collectives_s / (perf_counter() - self._began_at):.4f}", flush=True)


def measured(case: str, num_ranks: int) -> tuple[float, float]:
    """Env steps per second of training, as `fit` itself prints them, and the share of collectives in it."""
    more = [f"--data.num_workers={num_ranks}", f"--trainer.devices={num_ranks}", "--trainer.strategy=ddp", _SHARDS]
    with tempfile.TemporaryDirectory() as directory:
        run = subprocess.run(
            [sys.executable, "-m", "lit_ppo", "fit", *_COMMON, *_CASES[case], *more],
            cwd=directory,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )
    found = re.search(r"^\d+ updates, ([\d,]+) env steps, ([\d.]+) s$", run.stdout, re.MULTILINE)
    share = re.search(r"^collectives ([\d.]+)$", run.stdout, re.MULTILINE)
    assert found is not None and share is not None, run.stderr
    return int(found[1].replace(",", "")) / float(found[2]), float(share[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--case", choices=list(_CASES), action="append")
    options = parser.parse_args()
    for case in options.case or _CASES:
        speeds: dict[int, list[float]] = {1: [], 2: []}
        shares: list[float] = []
        for _ in range(options.rounds):
            for num_ranks, found in speeds.items():
                speed, share = measured(case, num_ranks)
                found.append(speed)
                shares += [share] * (num_ranks == 2)
        medians = {num_ranks: statistics.median(found) for num_ranks, found in speeds.items()}
        ratios = sorted(two / one for one, two in zip(*speeds.values(), strict=True))
        print(
            f"{case}: 1 rank {medians[1]:,.0f} env steps/s, 2 ranks {medians[2]:,.0f}; "
            f"ratio of pairs: median {statistics.median(ratios):.2f}, {ratios[0]:.2f} to {ratios[-1]:.2f}; "
            f"collectives at 2 ranks: median {statistics.median(shares):.1%}",
            flush=True,
        )


if __name__ == "__main__":
    main()
