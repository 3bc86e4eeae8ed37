"""Published scores, run again: rows, their runs side by side, and their results.

A *row* is a YAML file: what was published, by whom, and all settings of the run in lit_ppo's own option names. Each seed is one
`python -m lit_ppo fit` in a process and a directory of its own, with checkpoints. What a run came to is written by
`callbacks.run_record.RunRecord`; the runs of a row stand in one JSON, which names the settings that they were made with by
their checksum. A run that was killed goes on from its last checkpoint, bit for bit.
"""

import hashlib
import json
import math
import os
import select
import shutil
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

import yaml

from lit_ppo import atomic_file, exit_codes
from lit_ppo.errors import CheckpointError, ConfigError
from lit_ppo.run_lock import RunLock

FIRST_SEED: Final = 101  # settings are tuned with seeds 0 to 9
LIT_PPO: Final = "lit_ppo"
SB3: Final = "sb3"
RECORD: Final = "record.json"  # of a finished run, in its directory
_KEPT: Final = "kept.json"  # the same when it stands in the results
_CONFIG: Final = "config.yaml"
_OUTPUT: Final = "output.txt"
# Becomes another program that the kernel ends if its parent ends (1 is PR_SET_PDEATHSIG, which outlives execv).
_LAUNCH: Final = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)
if os.getppid() != int(sys.argv[1]):  # it ended before the kernel knew whom to tell
    sys.exit(1)
os.execv(sys.argv[2], sys.argv[2:])
"""
Kind = Literal["training", "greedy"]


# -- rows


@dataclass(frozen=True)
class Published:
    """A published score.

    Attributes:
        mean: Its mean return.
        env_steps: Length of the run.
        seeds: Number of runs.
        std: As the source says it: over runs, or over episodes.
        env_id: The environment's id then; None for that of the row.
    """

    mean: float
    env_steps: int
    seeds: int
    std: float | None = None
    env_id: str | None = None


@dataclass(frozen=True)
class Evaluation:
    """Greedy episodes during a run, which choose its best checkpoint.

    Attributes:
        times: How often, at equal distances.
        num_episodes: Of each.
    """

    times: int = 50
    num_episodes: int = 10


@dataclass(frozen=True)
class Row:
    """One score to reach, and the settings to reach it with.

    Attributes:
        name: Of the row and its files.
        source: Whose numbers they are.
        returns: Which returns are compared: `training` (the last 100 episodes) or `greedy` (the last policy, fresh episodes).
        settings: Of `fit`; all that decide the run, since defaults may change.
        page: Where the score was published; None for settings of our own.
        published: The score; None if there is none.
        solved_at: For rows that either succeed or fail: the return from which a run counts as solved. Then the share of solved
            runs is compared with SB3's.
        target: For rows without a published score: what the best checkpoint of each run has to reach, such as `>= 9.5`.
        target_share: Share of the runs that have to reach it.
        seeds: Number of runs.
        sb3_seeds: Number of runs of Stable-Baselines3 beside them.
        num_episodes: Greedy episodes that judge a policy.
        evaluation: Greedy episodes during a run.
        note: What a reader of the results has to know.
    """

    name: str
    source: str
    returns: Kind
    settings: dict[str, Any]
    page: str | None = None
    published: Published | None = None
    solved_at: float | None = None
    target: str | None = None
    target_share: float = 1.0
    seeds: int = 3
    sb3_seeds: int = 0
    num_episodes: int = 100
    evaluation: Evaluation = field(default_factory=Evaluation)
    note: str = ""

    @property
    def env_id(self) -> str:
        env_id: str = self.settings["data"]["env_id"]
        return env_id

    @property
    def env_steps(self) -> int:
        """Length of a run: `total_env_steps`, or fewer if `trainer.max_epochs` ends it earlier."""
        total: int = self.settings["total_env_steps"]
        updates = self.settings.get("trainer", {}).get("max_epochs")
        return total if updates is None else min(total, updates * self.env_steps_per_update)

    @property
    def env_steps_per_update(self) -> int:
        data = self.settings["data"]
        steps: int = data["num_envs"] * data["horizon"]
        return steps

    @property
    def sha256(self) -> str:
        """Checksum of all that decides the results: settings, evaluation, number of judging episodes."""
        decisive = {"settings": self.settings, "evaluation": vars(self.evaluation), "num_episodes": self.num_episodes}
        return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()

    def command(self, seeds: Iterable[int]) -> str:
        """What to type to run it again."""
        chosen = list(seeds)
        first = "" if chosen[0] == FIRST_SEED else f" --first_seed={chosen[0]}"
        return f"python -m lit_ppo reproduce {self.name} --seeds={len(chosen)}{first}"

    def is_met(self, mean: float) -> bool:
        """Whether a run's mean return reaches the row's own target."""
        assert self.target is not None
        operator, bound = self.target.split()
        return mean >= float(bound) if operator == ">=" else mean <= float(bound)


def read_row(path: Path) -> Row:
    """The row in a file.

    Raises:
        ConfigError: There is no such file, or it is no row; one line says what is wrong.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        known = ", ".join(sorted(other.stem for other in path.parent.glob("*.yaml")))
        raise ConfigError(f"{path}: no such row; expected one of {known or 'none: the directory has no rows'}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: expected YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected a mapping, got {type(content).__name__}")
    try:
        for name, kind in {"published": Published, "evaluation": Evaluation}.items():
            if content.get(name) is not None:
                content[name] = kind(**content[name])
        row = Row(**(content | {"name": path.stem}))
        judges = [name for name in ("published", "solved_at", "target", "sb3_seeds") if getattr(row, name)]
        _require(row.returns in ("training", "greedy"), f"returns={row.returns}: expected training or greedy")
        _require(bool(judges), "expected something to compare with: published, target, or sb3_seeds")
        _require(row.seeds >= 1 and row.num_episodes >= 1, "seeds and num_episodes: expected at least 1")
        _require(row.target is None or row.target.partition(" ")[0] in (">=", "<="), f"target={row.target}: expected `>= X`")
        _require(row.env_steps >= 1 and bool(row.env_id), "settings: expected total_env_steps and data.env_id")
        _require(not {"seed_everything", "evaluation", "checkpoint"} & row.settings.keys(), "settings: only those of the run")
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise ConfigError(f"{path}: not a row: {error}; its keys are {', '.join(f.name for f in fields(Row)[1:])}") from error
    return row


def _require(holds: bool, problem: str) -> None:
    if not holds:
        raise ValueError(problem)


# -- results


class RowResults:
    """The runs of one row, in a file that is written after each of them.

    Args:
        row: The row.
        directory: Of the file.

    Raises:
        ConfigError: The file holds runs with other settings than the row has.
        CheckpointError: It cannot be read.
    """

    def __init__(self, row: Row, directory: Path) -> None:
        self.row, self.path = row, directory / f"{row.name}.json"
        self.runs = self._read()

    def _read(self) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        try:
            saved = json.loads(self.path.read_text(encoding="utf-8"))
            found, runs = str(saved["config_sha256"]), list(saved["runs"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{self.path}: expected results of a row: {type(error).__name__}: {error}") from error
        if found != self.row.sha256:
            raise ConfigError(
                f"{self.path}: made with other settings (config {found[:8]}) than those of the row {self.row.name} "
                f"({self.row.sha256[:8]}); delete it and run the row again"
            )
        return runs

    def of(self, who: str, seed: int) -> dict[str, Any] | None:
        """A run that has been made; None if it has not.

        Args:
            who: `lit_ppo` or `sb3`.
            seed: Of the run.
        """
        return next((run for run in self.by(who) if run["seed"] == seed), None)

    def by(self, who: str) -> list[dict[str, Any]]:
        """All runs of `lit_ppo` or `sb3`, in the order of their seeds."""
        return [run for run in self.runs if run["who"] == who]

    def add(self, who: str, seed: int, record: dict[str, Any]) -> None:
        """Keep a run, in the place of an earlier one with its seed, and write the file.

        Raises:
            CheckpointError: It cannot be written.
        """
        others = [run for run in self._read() if (run["who"], run["seed"]) != (who, seed)]
        self.runs = sorted([*others, {"who": who, "seed": seed, **record}], key=lambda run: (run["who"], run["seed"]))
        seeds = [run["seed"] for run in self.by(LIT_PPO)] or [FIRST_SEED]
        head = {"row": self.row.name, "config_sha256": self.row.sha256, "command": self.row.command(seeds)}
        lines = [f" {json.dumps(name)}: {json.dumps(value)}," for name, value in head.items()]
        of_runs = ",\n".join(f"  {json.dumps(run, allow_nan=False)}" for run in self.runs)  # a line for each run
        try:
            text = "\n".join(["{", *lines, ' "runs": [', of_runs, " ]", "}"]) + "\n"
            atomic_file.replace(self.path, text.encode())
        except OSError as error:
            raise CheckpointError(f"{self.path}: cannot be written: {error}") from error


# -- runs


@dataclass(frozen=True)
class Run:
    """One run that is still to be made.

    Attributes:
        results: Where it is kept.
        who: `lit_ppo` or `sb3`.
        seed: Of the run.
        directory: Of its own.
        command: Makes the command when the run starts; the process that it starts writes `record.json` into the directory.
    """

    results: RowResults
    who: str
    seed: int
    directory: Path
    command: Callable[[], list[str]]

    @property
    def name(self) -> str:
        return f"{self.results.row.name}, {self.who}, seed {self.seed}"


@dataclass(frozen=True)
class Failure:
    """A run that ended without a result.

    Attributes:
        name: Of the run.
        code: Exit code of its process.
        message: The last line that it printed.
    """

    name: str
    code: int
    message: str


def run_directory(row: Row, who: str, seed: int, runs_dir: Path) -> Path:
    """Directory of a run; other settings have another one."""
    return runs_dir / f"{row.name}-{row.sha256[:8]}" / f"{who}-{seed}"


def fit_config(row: Row, seed: int, directory: Path) -> dict[str, Any]:
    """All options of `fit` for one seed: the row's settings, and what is the same for every row.

    Args:
        row: The row.
        seed: Of the run.
        directory: Of the run.
    """
    record = {
        "class_path": "lit_ppo.callbacks.run_record.RunRecord",
        "init_args": {"path": str(directory / RECORD), "num_episodes": row.num_episodes},
    }
    trainer, data = row.settings.get("trainer", {}), row.settings["data"]
    return row.settings | {
        "preset": "none",
        "seed_everything": seed,
        "torch_threads": 1,
        # one process for each run: the seeds use the cores
        "data": {"num_workers": 1, "evaluation_envs": row.evaluation.num_episodes} | data | {"report_dir": str(directory)},
        "trainer": trainer | {"logger": False, "callbacks": [*trainer.get("callbacks", []), record]},
        "evaluation": {
            "every_env_steps": max(1, row.env_steps // row.evaluation.times),
            "num_episodes": row.evaluation.num_episodes,
        },
        "solved": {"threshold": math.inf},  # trains for all of its env steps
        "curve": {"path": None},
        "checkpoint": {"dirpath": str(directory / "checkpoints")},
    }


def lit_ppo_run(results: RowResults, seed: int, runs_dir: Path) -> Run:
    """A run of `python -m lit_ppo fit`, from its last checkpoint if there is one."""
    directory = run_directory(results.row, LIT_PPO, seed, runs_dir)

    def command() -> list[str]:
        config = directory / _CONFIG
        config.write_text(yaml.safe_dump(fit_config(results.row, seed, directory), sort_keys=False), encoding="utf-8")
        resume = ["--ckpt_path=last"] if (directory / "checkpoints" / "last.ckpt").is_file() else []
        return [sys.executable, "-m", "lit_ppo", "fit", "--config", str(config), *resume]

    return Run(results, LIT_PPO, seed, directory, command)


def missing(results: RowResults, who: str, seeds: Iterable[int], make: Callable[[int], Run]) -> list[Run]:
    """The runs of a row that have no result yet.

    Args:
        results: Of the row.
        who: `lit_ppo` or `sb3`.
        seeds: Wanted.
        make: Makes the run of a seed.
    """
    return [make(seed) for seed in seeds if results.of(who, seed) is None]


def make_runs(runs: Sequence[Run], jobs: int, say: Callable[[str], None] = print) -> list[Failure]:
    """Make runs side by side, each in a process that the kernel ends if this one ends, and keep their results.

    Call it in the main thread: the processes end with the thread that has started them.

    Args:
        runs: In the order in which they are started.
        jobs: How many at a time.
        say: Is told of each run that starts or ends, in one line.

    Returns:
        The runs that failed; what they have saved stays, and a later call goes on from there.

    Raises:
        ConfigError: Another process makes runs of one of these rows.
        CheckpointError: A directory or a result cannot be written.
    """
    locks = [RunLock(directory, "--runs_dir") for directory in dict.fromkeys(run.directory.parent for run in runs)]
    waiting, failures = deque(runs), list[Failure]()
    running: dict[int, tuple[Run, subprocess.Popen[bytes]]] = {}  # by the descriptor of the process
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                run = waiting.popleft()
                if not (run.directory / RECORD).is_file():
                    process = _started(run)
                    running[os.pidfd_open(process.pid)] = run, process
                    say(f"{run.name}: started, output in {run.directory / _OUTPUT}")
                else:  # its process ended after this one had been killed
                    say(_kept(run))
            for descriptor in select.select(list(running), [], [])[0] if running else []:
                run, process = running.pop(descriptor)
                os.close(descriptor)
                code = process.wait()
                if code == 0 and (run.directory / RECORD).is_file():
                    say(_kept(run))
                else:
                    code = exit_codes.of_signal(-code) if code < 0 else code or exit_codes.CHECKPOINT
                    failures.append(Failure(run.name, code, _last_line(run)))
                    say(f"{run.name}: failed with exit code {code}: {failures[-1].message}")
    finally:
        for _, process in running.values():
            process.kill()
            process.wait()
        for lock in locks:
            lock.release()
    return failures


def _started(run: Run) -> subprocess.Popen[bytes]:
    try:
        if (run.directory / _KEPT).exists():  # its result was deleted, so it is wanted anew
            shutil.rmtree(run.directory)
        run.directory.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-ISc", _LAUNCH, str(os.getpid()), *run.command()]
        with open(run.directory / _OUTPUT, "ab") as output:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
    except OSError as error:
        raise CheckpointError(f"{run.directory}: {run.name} cannot be started: {error}") from error


def _kept(run: Run) -> str:
    """Keep the result of a run that has ended; one line about it."""
    try:
        record = json.loads((run.directory / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{run.directory / RECORD}: cannot be read: {error}") from error
    run.results.add(run.who, run.seed, record)
    os.replace(run.directory / RECORD, run.directory / _KEPT)
    training, greedy, best = (record[name] for name in ("final_training", "final_greedy", "best_greedy"))
    returns = {"training": training, "greedy": greedy, "best checkpoint": best}
    parts = [f"{name} {result['mean']:.4g}" for name, result in returns.items() if result is not None]
    return f"{run.name}: {', '.join(parts)}, {record['wall_s']:.0f} s"


def _last_line(run: Run) -> str:
    text = (run.directory / _OUTPUT).read_text(encoding="utf-8", errors="replace")
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].removeprefix("lit_ppo: error: ") if lines else "no output"


def reproduce(
    rows: Sequence[Row],
    *,
    seeds: int | None = None,
    first_seed: int = FIRST_SEED,
    jobs: int | None = None,
    results_dir: Path = Path("results"),
    runs_dir: Path = Path("data/reproduce"),
    say: Callable[[str], None] = print,
) -> list[Failure]:
    """Make all runs of some rows that have no result yet.

    Args:
        rows: What to run, in this order.
        seeds: Number of runs of each row; None for as many as the row says.
        first_seed: Their first seed.
        jobs: Runs at a time; None for one on each core.
        results_dir: Directory of the results, one JSON for each row.
        runs_dir: Directory of the runs, with checkpoints.
        say: As in `make_runs`.

    Returns:
        The runs that failed.

    Raises:
        ConfigError: A row has results with other settings, or another process runs it.
        CheckpointError: A file cannot be read or written.
    """
    runs: list[Run] = []
    for row in rows:
        results = RowResults(row, results_dir)
        wanted = range(first_seed, first_seed + (seeds or row.seeds))
        runs += missing(results, LIT_PPO, wanted, partial(lit_ppo_run, results, runs_dir=runs_dir))
    return make_runs(runs, jobs or len(os.sched_getaffinity(0)), say)
