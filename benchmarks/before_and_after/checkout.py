"""A checkout of the project, run by its own interpreter; and what is printed and saved about two of them."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from benchmarks.report import ROOT, machine

_RESULTS: Final = ROOT / "benchmarks" / "results"


class RunFailed(Exception):
    """A process of a checkout ended in an error, took too long, or did not do what the comparison needs."""


@dataclass(frozen=True)
class Checkout:
    """One side of the comparison.

    Attributes:
        side: `before` or `after`.
        path: Root of the checkout; its interpreter is `.venv/bin/python` there.
        options: Appended to every `fit`, because options differ between versions.
    """

    side: str
    path: Path
    options: tuple[str, ...] = ()

    def command(self, *arguments: str) -> list[str]:
        """The checkout's interpreter with these arguments; -P keeps the working directory off the module path."""
        return [str(self.path / ".venv" / "bin" / "python"), "-P", *arguments]

    def environment(self, directory: Path) -> dict[str, str]:
        """Environment variables with which modules come from this checkout first, then from `directory`."""
        return {**os.environ, "PYTHONPATH": os.pathsep.join((str(self.path), str(directory)))}

    def run(self, directory: Path, *arguments: str, timeout_s: float) -> str:
        """Standard output of the interpreter, run with `directory` as its working directory.

        Raises:
            RunFailed: It took longer than `timeout_s`, or its exit status is not 0.
        """
        try:
            done = subprocess.run(
                self.command(*arguments),
                cwd=directory,
                env=self.environment(directory),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=timeout_s,
            )
        except subprocess.TimeoutExpired as error:
            raise RunFailed(f"{self.side}: expected an end within {timeout_s:g} s") from error
        if done.returncode:
            raise RunFailed(f"{self.side}: exit status {done.returncode}: {last_line(done.stderr)}")
        return done.stdout

    def verify(self, directory: Path) -> "Checkout":
        """This checkout, if the package that runs is its own.

        Raises:
            RunFailed: There is no interpreter, or it imports lit_ppo from elsewhere.
        """
        if not Path(self.command()[0]).is_file():
            raise RunFailed(f"{self.side}: expected an interpreter at {self.command()[0]}; run `make test` in that checkout")
        file = self.run(directory, "-c", "import lit_ppo; print(lit_ppo.__file__)", timeout_s=60).strip()
        if Path(file).resolve() != (self.path / "lit_ppo" / "__init__.py").resolve():
            raise RunFailed(f"{self.side}: expected lit_ppo of {self.path}, got {file}")
        return self

    @cached_property
    def evaluation_interval(self) -> str:
        """Name of the option for the interval between evaluations: in env steps, in older versions in updates."""
        code = "import inspect, lit_ppo; print(*inspect.signature(lit_ppo.GreedyEvaluation).parameters)"
        names = self.run(self.path, "-c", code, timeout_s=60).split()
        return "every_env_steps" if "every_env_steps" in names else "every_n_updates"

    def commit(self) -> str:
        """The checked out commit, with `-dirty` if tracked files differ from it."""
        git = ["git", "-C", str(self.path), "describe", "--always", "--dirty", "--abbrev=12"]
        return subprocess.run(git, capture_output=True, text=True).stdout.strip() or "unknown"


def last_line(text: str) -> str:
    """The last line that is not empty, cut to a table's width."""
    return next((line for line in reversed(text.splitlines()) if line.strip()), "no message")[:200]


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells as text in columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)


def save(name: str, checkouts: Sequence[Checkout], results: Any) -> Path:
    """Write the raw numbers of one command, with both commits and the machine, to `benchmarks/results/`."""
    _RESULTS.mkdir(parents=True, exist_ok=True)
    path = _RESULTS / f"before_and_after_{name}.json"
    sides = {each.side: {"path": str(each.path), "commit": each.commit(), "options": each.options} for each in checkouts}
    path.write_text(json.dumps({"machine": machine(), **sides, "results": results}, indent=1) + "\n")
    return path


def say(text: str) -> None:
    """A line about progress, on standard error."""
    print(text, file=sys.stderr, flush=True)
