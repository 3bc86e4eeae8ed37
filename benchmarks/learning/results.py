"""Files of results, one for each row, and the table."""

import json
import os
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.learning.rows import Row
from benchmarks.report import ROOT, machine

RESULTS: Final = ROOT / "benchmarks" / "results" / "learning"
_Run = dict[str, Any]


class RowResults:
    """The runs of one row, in a file that is written after each of them.

    Args:
        row: The row.
        directory: Of the file.

    Raises:
        ValueError: The file holds runs of another configuration or target.
    """

    def __init__(self, row: Row, directory: Path = RESULTS) -> None:
        self.row = row
        self.path = directory / f"{row.name}.json"
        self._head: dict[str, Any] = {
            "row": row.name,
            "target": row.target,
            "share_of_seeds": str(row.share),
            "episodes": row.episodes,
            "options": list(row.options),
            "config": row.config_path.read_text(),
        }
        self.runs: list[_Run] = []
        if self.path.exists():
            saved = json.loads(self.path.read_text())
            if changed := [key for key, value in self._head.items() if saved[key] != value]:
                raise ValueError(f"{self.path}: its runs had another {', '.join(changed)}; delete it to run them again")
            self.runs, self._head["machine"] = saved["runs"], saved["machine"]
        else:
            self._head["machine"] = machine()

    def of(self, who: str, seed: int) -> _Run | None:
        """A run that has been made.

        Args:
            who: `lit_ppo`, or `peer`.
            seed: Of the run.
        """
        found = (run for run in self.runs if run["seed"] == seed and (run["who"] == "lit_ppo") == (who == "lit_ppo"))
        return next(found, None)

    def add(self, run: _Run) -> None:
        """Keep a run, and write the file."""
        self.runs = sorted([*self.runs, run], key=lambda run: (run["who"] != "lit_ppo", run["seed"]))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self.path.with_suffix(".tmp")
        unfinished.write_text(json.dumps({**self._head, "runs": self.runs}, indent=1) + "\n")
        os.replace(unfinished, self.path)


def table(results: Sequence[RowResults], seeds: Sequence[int]) -> str:
    """All rows as aligned text; several values are those of the seeds in order."""
    lines = [("row", "env steps", "target", "verdict", "lit_ppo best", "last", "wall s", "peer", "best", "last", "wall s")]
    for found in results:
        ours = [run for seed in seeds if (run := found.of("lit_ppo", seed))]
        peers = [run for seed in seeds if (run := found.of("peer", seed))]
        lines.append(
            (
                found.row.name,
                f"{max((run['env_steps'] for run in ours), default=0):,}",
                found.row.target,
                _verdict(found.row, ours, len(seeds)),
                *_columns(ours),
                peers[0]["who"] if peers else "-",
                *_columns(peers),
            )
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines)


def _verdict(row: Row, ours: Sequence[_Run], num_seeds: int) -> str:
    """By the checkpoint that the run's own evaluation chose."""
    num_met = sum(row.is_met(run["best"]["mean"]) for run in ours)
    if len(ours) < num_seeds:
        return f"{num_met} of {len(ours)}, {num_seeds - len(ours)} missing"
    return f"{num_met} of {num_seeds} {'met' if num_met >= row.share * num_seeds else 'MISSED'}"


def _columns(runs: Sequence[_Run]) -> tuple[str, str, str]:
    if not runs:
        return "-", "-", "-"
    best, last = (" ".join(f"{run[policy]['mean']:.4g}" for run in runs) for policy in ("best", "last"))
    return best, last, f"{statistics.median(run['wall_s'] for run in runs):.0f}"
