"""Training throughput and memory on other environments than CartPole, beside Stable-Baselines3 and sb3-contrib.

Env steps per second of collection and update together, with the same settings and networks, without evaluation. Each run is a
process of its own; the two sides take turns. The first update does not count.
"""

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, Final

from benchmarks.memory import PeakSampler
from benchmarks.report import ROOT, Row, peers_python, show

_DEADLINE_S: Final = 600.0
_NEVER: Final = 1_000_000_000  # env steps or updates
_COLUMN: Final = "time/overall_steps_per_s"


@dataclass(frozen=True)
class Task:
    """An environment with settings.

    Attributes:
        name: Of the case.
        updates: That count.
        options: Of `fit`.
        target: For env steps per second, as a ratio to the peer's.
    """

    name: str
    updates: int
    options: Sequence[str]
    target: str | None = None


TASKS: Final = (
    Task(
        "Pendulum-v1, 4 x 1024",
        3,
        ["--data.env_id=Pendulum-v1", "--data.num_envs=4", "--data.horizon=1024", "--model.update_epochs=10"],
        ">= 1.5",
    ),
    Task(
        "HalfCheetah-v5, 1 x 2048",
        3,
        [
            "--data.env_id=HalfCheetah-v5",
            "--data.num_envs=1",
            "--data.horizon=2048",
            "--model.update_epochs=10",
            "--model.normalize_observations=true",
            "--model.normalize_rewards=true",
        ],
        ">= 1.5",
    ),
    Task(
        "CartPole without velocities, LSTM, 8 x 128",
        8,
        [
            "--data.env_id=benchmarks.learning.envs:CartPoleNoVel-v0",
            "--data.num_envs=8",
            "--data.horizon=128",
            "--model.memory=lstm",
            "--model.minibatch_size=256",
            "--model.update_epochs=10",
        ],
        ">= 2",
    ),
    Task(
        "Pong, 4 frames of 84x84, 8 x 128",
        2,
        [
            "--data.env_id=benchmarks.pong_env:PongPixels-v0",
            "--data.num_envs=8",
            "--data.horizon=128",
            "--model.minibatch_size=256",
            "--model.update_epochs=4",
            "--model.shared_torso=true",
            "--model.actor_hidden_sizes=[]",
            "--model.critic_hidden_sizes=[]",
        ],
    ),
)


def run_lit_ppo(task: Task) -> tuple[float, float]:
    """Env steps per second, and the peak memory of all its processes in MiB."""
    with tempfile.TemporaryDirectory(prefix="throughput-") as directory:
        _watched([sys.executable, "-m", "lit_ppo", "fit", *_options(task)], directory, "", peak := [0.0])
        (metrics,) = Path(directory).glob("runs/*/1/logs/version_*/metrics.csv")
        with metrics.open() as file:
            speeds = [float(line[_COLUMN]) for line in csv.DictReader(file) if line.get(_COLUMN)]
    return statistics.harmonic_mean(speeds), peak[0]


def run_sb3(task: Task) -> tuple[float, float]:
    """The same of Stable-Baselines3 or sb3-contrib."""
    import yaml  # not in the peers' venv, as lit_ppo

    from benchmarks.learning.translation import to_sb3

    with tempfile.TemporaryDirectory(prefix="throughput-") as directory:
        command = [sys.executable, "-m", "lit_ppo", "fit", *_options(task), "--print_config"]
        settings = to_sb3(yaml.safe_load(_watched(command, directory, "", [0.0])))
        text = json.dumps(settings)
        output = _watched([peers_python(), "-m", "benchmarks.throughput", "--peer"], directory, text, peak := [0.0])
    return float(output.splitlines()[-1]), peak[0]


def _options(task: Task) -> list[str]:
    sizes = dict(option[2:].split("=", 1) for option in task.options)
    steps = int(sizes["data.num_envs"]) * int(sizes["data.horizon"]) * (task.updates + 1)
    never = [f"--evaluation.every_env_steps={_NEVER}", f"--checkpoint.every_n_updates={_NEVER}", "--solved.threshold=.inf"]
    return [
        "--preset=none",
        *task.options,
        f"--total_env_steps={steps}",
        "--data.evaluation_envs=1",
        "--evaluation.num_episodes=1",
        *never,
    ]


def _watched(command: Sequence[str], directory: str, task: str, peak: list[float]) -> str:
    """Standard output of a process; its peak memory goes to `peak`."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=directory, env=environment, **pipes) as process:
        try:
            with PeakSampler(process.pid) as sampler:
                output, errors = process.communicate(task, timeout=_DEADLINE_S)
        finally:
            process.kill()
    if process.returncode:
        raise RuntimeError(f"{' '.join(command[1:4])}: {errors.strip().splitlines()[-1] if errors.strip() else 'failed'}")
    peak[0] = sampler.pss_mib
    return str(output)


def peer() -> None:
    """In the peers' venv: train with the settings on standard input, and print env steps per second."""
    import torch
    from stable_baselines3.common.callbacks import BaseCallback

    from benchmarks.learning.peer import make_model

    class Clock(BaseCallback):
        """The time at which each rollout starts, that is at which the update before is over."""

        def __init__(self) -> None:
            super().__init__()
            self.times: list[float] = []

        def _on_step(self) -> bool:
            return True

        def _on_rollout_start(self) -> None:
            self.times.append(perf_counter())

        def _on_training_end(self) -> None:
            self.times.append(perf_counter())

    torch.set_num_threads(1)
    settings = json.load(sys.stdin)
    model, clock = make_model(settings, 0), Clock()
    model.learn(settings["total_env_steps"], callback=clock)
    steps = settings["ppo"]["n_steps"] * settings["env"]["num_envs"]
    print(steps * (len(clock.times) - 2) / (clock.times[-1] - clock.times[1]))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.throughput", description=__doc__)
    parser.add_argument("cases", nargs="*", help="texts that the names of cases contain; default all")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peer", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peer:
        peer()
        return
    rows: list[Row] = []
    for task in TASKS:
        if options.cases and not any(text in task.name for text in options.cases):
            continue
        ours = Row(task.name, "lit_ppo", "env steps/s", against="SB3", target=task.target)
        theirs = Row(task.name, "SB3", "env steps/s")
        memory, their_memory = (Row(task.name, row.who, "MiB", against=row.against) for row in (ours, theirs))
        for number in range(options.rounds):
            sides = [(run_lit_ppo, ours, memory), (run_sb3, theirs, their_memory)]
            for run, speed, peak in sides if number % 2 == 0 else sides[::-1]:
                steps_per_s, mib = run(task)
                speed.values.append(steps_per_s)
                peak.values.append(mib)
            print(f"{task.name}: {ours.values[-1]:.0f} and {theirs.values[-1]:.0f} env steps/s", file=sys.stderr, flush=True)
        rows += [ours, theirs, memory, their_memory]
    show(rows)


if __name__ == "__main__":
    main()
