"""Results of a row: what its runs came to, in one JSON, which names by their checksum the settings that they were made with."""

import json
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, Final

from benchmarks.learning.rows import FIRST_SEED, Row
from lit_ppo import atomic_file
from lit_ppo.errors import CheckpointError, ConfigError
from lit_ppo.run_scheduler import Run

LIT_PPO: Final = "lit_ppo"
SB3: Final = "sb3"


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
            saved = atomic_file.read_json(self.path)
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

    def missing(self, who: str, seeds: Iterable[int], runs_dir: Path, command: Callable[[int, Path], list[str]]) -> list[Run]:
        """The runs that have no result yet.

        Args:
            who: `lit_ppo` or `sb3`.
            seeds: Wanted.
            runs_dir: Parent of the directories of all rows.
            command: Makes the command of a run when it starts, from its seed and its directory.
        """
        runs = []
        for seed in seeds:
            if self.of(who, seed) is None:
                directory = self.run_directory(who, seed, runs_dir)
                name = f"{self.row.name}, {who}, seed {seed}"
                runs.append(Run(name, directory, partial(command, seed, directory), partial(self.add, who, seed)))
        return runs

    def run_directory(self, who: str, seed: int, runs_dir: Path) -> Path:
        """Directory of a run; other settings have another one."""
        return runs_dir / f"{self.row.name}-{self.row.sha256[:8]}" / f"{who}-{seed}"

    def add(self, who: str, seed: int, record: dict[str, Any]) -> str:
        """Keep a run, in the place of an earlier one with its seed, and write the file.

        Returns:
            A summary of the run for one line.

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
        returns = {"training": "final_training", "greedy": "final_greedy", "best checkpoint": "best_greedy"}
        parts = [f"{name} {record[key]['mean']:.4g}" for name, key in returns.items() if record[key] is not None]
        return f"{', '.join(parts)}, {record['wall_s']:.0f} s"
