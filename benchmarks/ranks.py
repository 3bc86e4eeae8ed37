"""Two ranks beside one: `python -m benchmarks.ranks [--rounds N]`, whole runs of `fit`, one after the other in turns.

`sleeping`: 16 environments whose step sleeps 1 ms, one worker for each rank, so that two cores do not bound it. On one machine
more workers do the same as more ranks; the ratio says what ranks on two machines would bring. `plain`: CartPole, where a rank
brings nothing but its collectives.
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
from typing import Final

from benchmarks.report import ROOT

_COMMON: Final = [
    "--preset=none",
    "--solved.threshold=.inf",
    "--evaluation.every_env_steps=1000000000",
    "--trainer.logger=false",
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
    "plain": ["--data.num_envs=8", "--data.horizon=256", "--model.minibatch_size=128", "--trainer.max_epochs=15"],
}


def steps_per_s(case: str, ranks: int) -> float:
    """Env steps per second of training, evaluation of the untrained policy included, as `fit` itself prints them."""
    more = [f"--data.num_workers={ranks}", f"--trainer.devices={ranks}", "--trainer.strategy=ddp", _SHARDS]
    with tempfile.TemporaryDirectory() as directory:
        run = subprocess.run(
            [sys.executable, "-m", "lit_ppo", "fit", *_COMMON, *_CASES[case], *more],
            cwd=directory,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=True,
        )
    found = re.search(r"^\d+ updates, ([\d,]+) env steps, ([\d.]+) s$", run.stdout, re.MULTILINE)
    assert found is not None, run.stdout
    return int(found[1].replace(",", "")) / float(found[2])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--case", choices=list(_CASES), action="append")
    options = parser.parse_args()
    for case in options.case or _CASES:
        speeds: dict[int, list[float]] = {1: [], 2: []}
        for _ in range(options.rounds):
            for ranks, found in speeds.items():
                found.append(steps_per_s(case, ranks))
        medians = {ranks: statistics.median(found) for ranks, found in speeds.items()}
        ratios = sorted(two / one for one, two in zip(*speeds.values(), strict=True))
        print(
            f"{case}: 1 rank {medians[1]:,.0f} env steps/s, 2 ranks {medians[2]:,.0f}; "
            f"ratio of pairs: median {statistics.median(ratios):.2f}, {ratios[0]:.2f} to {ratios[-1]:.2f}"
        )


if __name__ == "__main__":
    main()
