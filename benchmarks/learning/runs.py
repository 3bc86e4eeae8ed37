"""One run of lit_ppo or of its peer, each in processes and a directory of its own."""

import csv
import functools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any, Final

import yaml

from benchmarks.learning.rows import Row
from benchmarks.learning.translation import to_sb3
from benchmarks.report import ROOT, peers_python, versions

_DEADLINE_S: Final = 3600.0  # of one process
Result = dict[str, Any]


class RunFailed(Exception):
    """A process of a run ended with an error or at its deadline."""


def run_lit_ppo(row: Row, seed: int) -> Result:
    """`fit`, then `test` of the best checkpoint and of the last, by the command line."""
    fit = ["-m", "lit_ppo", "fit", *_settings(row), f"--seed_everything={seed}"]
    with tempfile.TemporaryDirectory(prefix="learning-") as directory:
        start = perf_counter()
        _output_of(sys.executable, fit, directory)
        wall_s = perf_counter() - start
        judged = {name: _test(directory, name, row.episodes) for name in ("best", "last")}
        trained = _env_steps(Path(directory))
    return {
        "who": "lit_ppo",
        "command": " ".join(["python", *fit]).replace(f"{ROOT}{os.sep}", ""),
        "env_steps": trained,
        **judged,
        "wall_s": round(wall_s, 1),
        "versions": versions(),
    }


def run_peer(row: Row, seed: int) -> Result:
    """Stable-Baselines3 or sb3-contrib with the same settings."""
    settings = to_sb3(_complete_settings(row))
    task = json.dumps({"settings": settings, "seed": seed, "episodes": row.episodes})
    with tempfile.TemporaryDirectory(prefix="learning-") as directory:
        start = perf_counter()
        output = _output_of(peers_python(), ["-m", "benchmarks.learning.peer"], directory, task)
        wall_s = perf_counter() - start
    result = json.loads(output.splitlines()[-1])
    return {
        "who": settings["algorithm"],
        "settings": settings,
        **{key: result[key] for key in ("env_steps", "best", "last")},
        "wall_s": round(wall_s - result["judging_s"], 1),
        "versions": result["versions"],
    }


RUNNERS: Final[dict[str, Callable[[Row, int], Result]]] = {"lit_ppo": run_lit_ppo, "peer": run_peer}


def _settings(row: Row) -> list[str]:
    return ["--config", str(row.config_path), *row.options, "--solved.threshold=.inf"]  # trains for all of its env steps


@functools.cache
def _complete_settings(row: Row) -> dict[str, Any]:
    """With the defaults."""
    with tempfile.TemporaryDirectory(prefix="learning-") as directory:
        printed = _output_of(sys.executable, ["-m", "lit_ppo", "fit", *_settings(row), "--print_config"], directory)
    settings: dict[str, Any] = yaml.safe_load(printed)
    return settings


def _test(directory: str, checkpoint: str, episodes: int) -> dict[str, float]:
    """Mean return and standard deviation, from the log: the table that `test` prints is rounded."""
    log = f"test-{checkpoint}"
    options = [f"--ckpt_path={checkpoint}", f"--data.test_episodes={episodes}"]
    options += ["--trainer.logger=CSVLogger", f"--trainer.logger.save_dir={log}"]
    _output_of(sys.executable, ["-m", "lit_ppo", "test", *options], directory)
    (metrics,) = Path(directory).glob(f"{log}/**/metrics.csv")
    with metrics.open() as file:
        (tested,) = csv.DictReader(file)
    return {name: round(float(tested[f"test/return_{name}"]), 6) for name in ("mean", "std")}


def _env_steps(directory: Path) -> int:
    """Of the newest update in the log of `fit`."""
    (metrics,) = directory.glob("logs/version_*/metrics.csv")
    with metrics.open() as file:
        return max(int(line["step"]) for line in csv.DictReader(file))


def _output_of(python: str, arguments: Sequence[str], directory: str, task: str = "") -> str:
    """Standard output of a process.

    Raises:
        RunFailed: It ended with an error, or at its deadline.
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    streams: dict[str, Any] = {"input": task, "capture_output": True, "text": True}
    try:
        done = subprocess.run([python, *arguments], cwd=directory, env=environment, timeout=_DEADLINE_S, check=False, **streams)
    except subprocess.TimeoutExpired:
        raise RunFailed(f"{' '.join(arguments[:3])}: not finished after {_DEADLINE_S:.0f} s") from None
    if done.returncode:
        last_line = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise RunFailed(f"{' '.join(arguments[:3])}: exit code {done.returncode}: {last_line}")
    output: str = done.stdout
    return output
