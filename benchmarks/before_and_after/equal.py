"""Do two checkouts compute the same? CartPole runs, compared to the last bit: curve, parameters, optimizer state.

Every case is a `fit` in a fresh directory, once with each checkout. Kills come at a defined point: when the first `last.ckpt`
is there. A case counts as equal only if the kill did what it should: the trainer ended by SIGKILL, or the worker was replaced.
"""

import csv
import itertools
import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep
from typing import Any, Final, Literal

import torch
from torch import Tensor

from benchmarks.before_and_after.checkout import Checkout, RunFailed, aligned, last_line, save, say

_RUN_TIMEOUT_S: Final = 300.0
_POLL_S: Final = 0.002
_UPDATES: Final = {1: 40, 8: 24, 64: 12}  # by num_envs
_HORIZON: Final = {1: 128, 8: 32, 64: 32}  # 5,120 to 24,576 env steps; with fewer, 1 environment would not fill a minibatch
_UPDATES_WITH_KILL: Final = 40
_UPDATES_OF_A_CHECKPOINT: Final = 10
_NEVER: Final = 1_000_000_000  # env steps


@dataclass(frozen=True)
class Case:
    """One run of the table."""

    vectorization: str
    num_workers: int
    num_envs: int
    evaluates: bool = True
    kill: Literal["worker", "trainer"] | None = None

    @property
    def name(self) -> str:
        evaluation = f"evaluation {'on' if self.evaluates else 'off'}"
        kill = {"worker": ", workers killed", "trainer": ", trainer killed and resumed", None: ""}[self.kill]
        return f"{self.vectorization}, {self.num_workers} worker(s), {self.num_envs} env(s), {evaluation}{kill}"

    def arguments(self, evaluation_interval: str) -> list[str]:
        """Of `python -m lit_ppo`.

        Args:
            evaluation_interval: Of `Checkout`.
        """
        return [
            "fit",
            f"--trainer.max_epochs={_UPDATES_WITH_KILL if self.kill else _UPDATES[self.num_envs]}",
            f"--data.vectorization={self.vectorization}",
            f"--data.num_workers={self.num_workers}",
            f"--data.num_envs={self.num_envs}",
            f"--data.horizon={_HORIZON[self.num_envs]}",
            f"--evaluation.{evaluation_interval}={1 if self.evaluates else _NEVER}",
            f"--checkpoint.every_n_updates={_UPDATES_OF_A_CHECKPOINT}",
            "--solved.threshold=.inf",
            "--checkpoint.dirpath=checkpoints",
            "--curve.path=curve.json",
            "--trainer.logger=CSVLogger",
            "--trainer.logger.save_dir=logs",
        ]


def all_cases() -> list[Case]:
    """Every allowed combination, then one run with each kind of kill in both vectorizations."""
    combinations = itertools.product(("sync", "native"), (1, 2), _UPDATES, (True, False))
    plain = [Case(*values) for values in combinations if values[2] % values[1] == 0]
    return [
        *plain,
        Case("sync", 2, 8, kill="worker"),
        Case("native", 1, 8, kill="worker"),
        Case("sync", 2, 8, kill="trainer"),
        Case("native", 1, 8, kill="trainer"),
    ]


# -- comparison


def first_difference(before: Any, after: Any, where: str = "") -> str | None:
    """Where two trees of tensors and plain data first differ, bit for bit; None if they are equal.

    Args:
        before: Nested dicts and lists with tensors, numbers and strings in them.
        after: The same.
        where: Path of the two in their trees.
    """
    if type(before) is not type(after):
        return f"{where}: type {type(before).__name__} before, {type(after).__name__} after"
    if isinstance(before, Tensor):
        return _tensor_difference(before, after, where)
    if isinstance(before, dict):
        for key in [*before, *(key for key in after if key not in before)]:
            if key not in before or key not in after:
                return f"{where}.{key}: missing {'before' if key not in before else 'after'}"
            if difference := first_difference(before[key], after[key], f"{where}.{key}"):
                return difference
        return None
    if isinstance(before, list | tuple):
        if len(before) != len(after):
            return f"{where}: length {len(before)} before, {len(after)} after"
        pairs = enumerate(zip(before, after, strict=True))
        return next(filter(None, (first_difference(x, y, f"{where}[{i}]") for i, (x, y) in pairs)), None)
    return None if before == after else f"{where}: {str(before)[:40]} before, {str(after)[:40]} after"


def _tensor_difference(before: Tensor, after: Tensor, where: str) -> str | None:
    for name in ("dtype", "shape"):
        if getattr(before, name) != getattr(after, name):
            return f"{where}: {name} {getattr(before, name)} before, {getattr(after, name)} after"
    # as bytes, so that NaN equals NaN and 0.0 differs from -0.0
    if torch.equal(before.reshape(-1).view(torch.uint8), after.reshape(-1).view(torch.uint8)):
        return None
    distance = (before.double() - after.double()).abs()
    return f"{where}: {int((distance != 0).sum())} of {before.numel()} values differ, by up to {distance.max().item():.3g}"


def outcome(directory: Path) -> dict[str, Any]:
    """What a run left that two versions must agree on.

    Raises:
        RunFailed: A file is missing.
    """
    try:
        curve = json.loads((directory / "curve.json").read_text())
        # plain `torch.load`: the formats of checkpoints differ between versions, these two entries do not
        checkpoint = torch.load(directory / "checkpoints" / "last.ckpt", map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise RunFailed(f"the run left no {Path(error.filename).name}") from error
    return {
        "curve": {"steps": curve["steps"], **{line["name"]: line["values"] for line in curve["series"]}},
        "parameters": list(checkpoint["state_dict"].values()),  # their names differ between versions, their order does not
        "optimizer_states": checkpoint["optimizer_states"],
    }


# -- runs


class Fit:
    """A running `fit`; as a context manager it never outlives the block."""

    def __init__(self, checkout: Checkout, directory: Path, arguments: list[str]) -> None:
        self._checkout, self._errors = checkout, directory / "stderr.txt"
        with self._errors.open("w") as errors:
            self.process = subprocess.Popen(
                checkout.command("-m", "lit_ppo", *arguments, *checkout.options),
                cwd=directory,
                env=checkout.environment(directory),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
            )

    def __enter__(self) -> "Fit":
        return self

    def __exit__(self, *exception: object) -> None:
        self.process.kill()
        self.process.wait()

    def wait_for(self, path: Path) -> None:
        """Return as soon as a file exists.

        Raises:
            RunFailed: The run ended before, or the time is up.
        """
        deadline = monotonic() + _RUN_TIMEOUT_S
        while not path.exists():
            if self.process.poll() is not None:
                raise self._failed(f"expected {path.name} before the end of the run")
            if monotonic() > deadline:
                raise self._failed(f"expected {path.name} within {_RUN_TIMEOUT_S:g} s")
            sleep(_POLL_S)

    def finish(self, expected_status: int = 0) -> None:
        """Wait for the end.

        Raises:
            RunFailed: It took too long, or the exit status is another.
        """
        try:
            status = self.process.wait(_RUN_TIMEOUT_S)
        except subprocess.TimeoutExpired as error:
            raise self._failed(f"expected an end within {_RUN_TIMEOUT_S:g} s") from error
        if status != expected_status:
            raise self._failed(f"expected exit status {expected_status}, got {status}")

    def _failed(self, text: str) -> RunFailed:
        return RunFailed(f"{self._checkout.side}: {text}: {last_line(self._errors.read_text())}")


def leaf_processes(root: int) -> list[int]:
    """Descendants of a process that have no children: the workers of a trainer, whose parents are guards."""
    children: dict[int, list[int]] = {}
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            stat = Path(f"/proc/{entry}/stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has just ended
        state, parent = stat.rpartition(")")[2].split()[:2]
        if state != "Z":
            children.setdefault(int(parent), []).append(int(entry))

    def leaves(process: int) -> Iterator[int]:
        for child in children.get(process, []):
            yield from leaves(child) if child in children else (child,)

    return list(leaves(root))


def _kill_workers(fit: Fit) -> None:
    """SIGKILL every worker, of training and of evaluation, while the trainer is stopped: it can start or end none meanwhile."""
    os.kill(fit.process.pid, signal.SIGSTOP)
    try:
        workers = leaf_processes(fit.process.pid)
        for worker in workers:
            os.kill(worker, signal.SIGKILL)
    finally:
        os.kill(fit.process.pid, signal.SIGCONT)
    if not workers:
        raise RunFailed("expected workers under the trainer, found none")


def _restarts(directory: Path) -> float:
    """Training workers that were replaced, as the run's own log counts them."""
    paths = sorted(directory.glob("logs/**/metrics.csv"))
    rows = [row for path in paths for row in csv.DictReader(path.read_text().splitlines())]
    return max((float(row["env/restarts"]) for row in rows if row.get("env/restarts")), default=0.0)


def play(case: Case, checkout: Checkout, directory: Path) -> dict[str, Any]:
    """Run one case with one checkout; its outcome.

    Raises:
        RunFailed: The run failed, or the kill had no effect.
    """
    last = directory / "checkpoints" / "last.ckpt"
    with Fit(checkout, directory, case.arguments(checkout.evaluation_interval)) as fit:
        if case.kill is not None:
            fit.wait_for(last)
        if case.kill == "worker":
            _kill_workers(fit)
        if case.kill == "trainer":
            fit.process.kill()
        fit.finish(expected_status=-signal.SIGKILL if case.kill == "trainer" else 0)
    if case.kill == "worker" and not _restarts(directory):
        raise RunFailed(f"{checkout.side}: expected a restarted worker in the run's log, found none")
    if case.kill == "trainer":
        with Fit(checkout, directory, [*case.arguments(checkout.evaluation_interval), "--ckpt_path=last"]) as fit:
            fit.finish()
    return outcome(directory)


def compare(case: Case, before: Checkout, after: Checkout) -> tuple[str, str]:
    """`equal`, `different` or `failed`; with the first difference between the outcomes, or why there is no outcome."""
    outcomes = []
    for checkout in (before, after):
        with tempfile.TemporaryDirectory(prefix="before-and-after-") as directory:
            try:
                outcomes.append(play(case, checkout, Path(directory)))
            except RunFailed as error:
                return "failed", str(error)
    difference = first_difference(*outcomes)
    return ("equal", "") if difference is None else ("different", difference)


def main(before: Checkout, after: Checkout, wanted: str) -> int:
    """Print one row for each case whose name contains `wanted`; 1 if any is not equal."""
    cases = [case for case in all_cases() if wanted in case.name]
    found: dict[str, tuple[str, str]] = {}
    for number, case in enumerate(cases, 1):
        found[case.name] = compare(case, before, after)
        say(f"{number}/{len(cases)} {case.name}: {found[case.name][0]}")
    print(aligned([("case", "result", "first difference"), *((name, *cells) for name, cells in found.items())]))
    save("equal", (before, after), found)
    return 0 if found and all(result == "equal" for result, _ in found.values()) else 1
