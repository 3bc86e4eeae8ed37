"""Does anything grow? Cost of a step with the number of environments, memory and speed of a long run, memory beside SB3's.

The whole runs come first, while this process has no torch: PSS divides a page among all that have it, and a page of torch's
libraries must not be halved because the one that measures has it too.
"""

import argparse
import ctypes
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from time import perf_counter
from types import SimpleNamespace
from typing import Any, Final

from benchmarks.memory import PeakSampler, family, rss_mib
from benchmarks.report import ROOT, Row, peers_python, show

_HORIZON: Final = 128
_LONG_RUN_ENVS: Final = 256
_INTERVALS: Final = 10


# -- whole runs


def whole_runs(num_updates: int, rounds: int) -> list[Row]:
    """Peak memory of `fit` with the preset of CartPole, evaluation included, and of SB3 with rl-zoo3's, as many env steps."""
    from lit_ppo.presets import preset_named

    data = preset_named("CartPole-v1").settings["data"]
    env_steps = num_updates * data["num_envs"] * data["horizon"]
    fit = [
        "-m",
        "lit_ppo",
        "fit",
        "--solved.threshold=1e6",
        f"--trainer.max_epochs={num_updates}",
    ]  # a run that is not cut short
    commands, rows = dict[str, list[str]](), list[Row]()
    case = f"memory of a CartPole-v1 run, {env_steps:,} env steps"
    try:
        commands["lit_ppo"] = [peers_python("plain"), *fit]
        commands["SB3 (rl-zoo3)"] = [peers_python(), "-m", "benchmarks.scaling", "--train-sb3", str(env_steps)]
    except FileNotFoundError as error:
        rows.append(Row(case, "all", "MiB", note=f"{error}"))
    peaks: dict[str, list[tuple[float, float]]] = {who: [] for who in commands}
    for _ in range(rounds):
        for who, command in commands.items():
            peaks[who].append(_peaks_of(command))
    for who, found in peaks.items():
        ours = who == "lit_ppo" and len(peaks) > 1
        against, target = ("SB3 (rl-zoo3)", "<= 1.0") if ours else (None, None)
        rss, pss = zip(*found, strict=True)
        rows.append(Row(case, who, "MiB peak RSS", list(rss), against, target, "of the process that trains"))
        rows.append(Row(case, who, "MiB peak PSS", list(pss), against, target, "of all processes of the run together, sampled"))
    return rows


def _peaks_of(command: list[str]) -> tuple[float, float]:
    """Peak RSS of a command's process, and peak PSS of it and its descendants together."""
    directory = tempfile.mkdtemp(prefix="scaling-")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    try:
        with (
            subprocess.Popen(command, cwd=directory, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as run,
            PeakSampler(run.pid) as peak,
        ):
            _, errors = run.communicate()
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    if run.returncode:
        raise RuntimeError(f"{command}: {errors.decode()[-1000:]}")
    return peak.rss_mib, peak.pss_mib


def train_sb3(env_steps: int) -> None:
    """The run that `fit` is compared with."""
    from benchmarks.peers import rl_zoo3_ppo

    rl_zoo3_ppo(seed=0).learn(env_steps)


# -- collection


@contextmanager
def collection(vectorization: Any, num_envs: int) -> Iterator[Any]:
    """A `RolloutDataModule` that can collect, with an untrained policy."""
    from lit_ppo.data import RolloutDataModule
    from lit_ppo.module import PPOModule

    data = RolloutDataModule(num_envs=num_envs, horizon=_HORIZON, vectorization=vectorization, evaluation_envs=1)
    data.trainer = SimpleNamespace(lightning_module=PPOModule(data.spec, minibatch_size=_HORIZON))  # type: ignore[assignment]
    data.setup("fit")
    try:
        yield data
    finally:
        data.close()


def collect(data: Any) -> float:
    """One rollout made a batch; seconds."""
    start = perf_counter()
    data.trainer.lightning_module.make_batch(data.next_rollout())
    return perf_counter() - start


def cost_of_a_step(vectorization: Any, sizes: tuple[int, ...], rounds: int) -> list[Row]:
    """Microseconds of collection for one step of one environment, with more and more environments."""
    case, unit = f"collection of a rollout, {vectorization}", "us per env step"
    with ExitStack() as stack:
        collecting = {n: stack.enter_context(collection(vectorization, n)) for n in sizes}
        rows = {n: Row(case, f"N={n}", unit, against=f"N={sizes[0]}", target="<= 1.1") for n in sizes}
        rows[sizes[0]] = Row(case, f"N={sizes[0]}", unit)
        for turn in range(rounds + 1):
            for n, data in collecting.items():
                repeats = max(1, 256 // n)  # turns of a similar length, each after one that wakes everybody up
                collect(data)
                seconds = sum(collect(data) for _ in range(repeats)) / repeats
                if turn:
                    rows[n].values.append(1e6 * seconds / (n * _HORIZON))
    return list(rows.values())


def long_run(env_steps: int) -> list[Row]:
    """Memory and speed at intervals of one long collection with native environments."""
    import numpy as np

    case = f"{env_steps:,} env steps, native N={_LONG_RUN_ENVS}"
    rollouts = max(1, env_steps // (_INTERVALS * _LONG_RUN_ENVS * _HORIZON))  # of an interval
    speed = Row(case, "collection", "env steps/s", note="at 10 intervals")
    trainer, workers = Row(case, "trainer", "MiB RSS"), Row(case, "environment processes", "MiB RSS")
    journal = Row(case, "journal", "MiB")
    with collection("native", _LONG_RUN_ENVS) as data:
        for _ in range(rollouts):  # until all storage is there
            collect(data)
        for _ in range(_INTERVALS):
            seconds = sum(collect(data) for _ in range(rollouts))
            speed.values.append(rollouts * _LONG_RUN_ENVS * _HORIZON / seconds)
            ctypes.CDLL(None).malloc_trim(0)  # what the allocator holds in reserve comes and goes, and is no leak
            trainer.values.append(rss_mib(os.getpid()))
            workers.values.append(sum(rss_mib(pid) for pid in family(os.getpid()) - {os.getpid()}))
            arrays = [value for value in vars(data._bridge._journal).values() if isinstance(value, np.ndarray)]
            journal.values.append(sum(array.nbytes for array in arrays) / 2**20)
    half = _INTERVALS // 2
    growth = [
        Row(
            case,
            row.who,
            f"{row.unit}, growth",
            [statistics.median(row.values[half:]) - statistics.median(row.values[:half])],
            None,
            "<= 2",
            "from half to half",
        )
        for row in (trainer, workers, journal)
    ]
    kept = statistics.median(speed.values[half:]) / statistics.median(speed.values[:half])
    slower = Row(case, speed.who, "of its speed", [kept], None, ">= 0.9", "in the second half beside the first")
    return [speed, slower, trainer, workers, journal, *growth]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rounds", type=int, help="of the runs and of the cost of a step")
    parser.add_argument("--train-sb3", type=int, metavar="ENV_STEPS")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    if options.train_sb3:
        train_sb3(options.train_sb3)
        return
    quick = options.quick
    rows = whole_runs(20 if quick else 80, options.rounds or (1 if quick else 5))
    import torch

    torch.set_num_threads(1)
    print("scaling: long run", file=sys.stderr)
    rows += long_run(500_000 if quick else 10_000_000)
    for vectorization in ("native", "sync"):
        print(f"scaling: cost of a step, {vectorization}", file=sys.stderr)
        rows += cost_of_a_step(
            vectorization, (8, 64, 256) if quick else (8, 64, 256, 1024), options.rounds or (2 if quick else 11)
        )
    show(rows)


if __name__ == "__main__":
    main()
