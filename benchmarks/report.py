"""Rows of the table: what was measured, how often, and how it compares."""

import json
import os
import platform
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import distributions
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).parent.parent
_VENVS: Final = ROOT / "benchmarks" / ".venvs"
_PACKAGES: Final = (
    "torch",
    "numpy",
    "gymnasium",
    "lightning",
    "mujoco",
    "minigrid",
    "ale-py",
    "Box2D",
    "stable-baselines3",
    "sb3-contrib",
    "envpool",
    "torchrl",
    "tensordict",
    "tianshou",
    "sheeprl",
)


@dataclass
class Row:
    """One competitor in one case.

    Attributes:
        case: What is measured, such as `CartPole-v1 N=64`.
        who: The competitor.
        unit: Of the values.
        values: One for each round (or seed), in order of time; empty if it could not be measured.
        against: Another competitor of the same case and unit.
        target: What issue 4 asks of the ratio to `against` (or of the median, if that is None), such as `>= 0.9`.
        note: Why there is no value, or how one is to be read.
        is_paired: Values are compared with those of `against` round by round; otherwise median with median.
    """

    case: str
    who: str
    unit: str
    values: list[float] = field(default_factory=list)
    against: str | None = None
    target: str | None = None
    note: str = ""
    is_paired: bool = True


def ratio(row: Row, rows: Sequence[Row]) -> float | None:
    """Median over the rounds of row / against, whose turns were side by side, so that drift cancels; or median / median."""
    for other in rows:
        if (other.case, other.who, other.unit) == (row.case, row.against, row.unit) and other.values and row.values:
            if row.is_paired and len(other.values) == len(row.values):
                return statistics.median(mine / theirs for mine, theirs in zip(row.values, other.values, strict=True))
            return statistics.median(row.values) / statistics.median(other.values)
    return None


def _verdict(row: Row, rows: Sequence[Row]) -> str:
    if row.target is None or not row.values:
        return ""
    measured = statistics.median(row.values) if row.against is None else ratio(row, rows)
    if measured is None:
        return row.target
    operator, bound = row.target.split()
    met = measured >= float(bound) if operator == ">=" else measured <= float(bound)
    return f"{row.target} {'met' if met else 'MISSED'}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def table(rows: Sequence[Row]) -> str:
    """All rows as aligned text."""
    lines = [("case", "who", "median", "min - max", "n", "unit", "ratio", "to", "target", "note")]
    for row in rows:
        measured = ratio(row, rows)
        low_high = f"{_number(min(row.values))} - {_number(max(row.values))}" if row.values else ""
        lines.append(
            (
                row.case,
                row.who,
                _number(statistics.median(row.values)) if row.values else "-",
                low_high,
                str(len(row.values)),
                row.unit,
                "" if measured is None else f"{measured:.2f}",
                row.against or "",
                _verdict(row, rows),
                row.note,
            )
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines)


def machine() -> dict[str, Any]:
    """CPU, cores and load."""
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "cpu": models[0].partition(":")[2].strip() if models else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "load_at_start": os.getloadavg()[0],
        "platform": platform.platform(),
    }


def versions() -> dict[str, str]:
    """Of this interpreter and what it has installed."""
    return {"python": platform.python_version(), **_installed(sys.path)}


def _installed(path: list[str]) -> dict[str, str]:
    found = {}
    for distribution in distributions(path=path):
        name = distribution.metadata["Name"].replace("_", "-")
        if name in _PACKAGES:
            found.setdefault(name, distribution.version)
    return {package: found[package] for package in _PACKAGES if package in found}


def peers_versions() -> dict[str, dict[str, str]]:
    """Of each venv that `setup_peers.sh` has made."""
    return {
        venv.name: _installed([str(path) for path in venv.glob("lib/python*/site-packages")])
        for venv in sorted(_VENVS.glob("*"))
    }


def emit(rows: Sequence[Row]) -> None:
    """Hand rows to whoever started this part: the last line of standard output."""
    print(json.dumps({"versions": versions(), "rows": [asdict(row) for row in rows]}), flush=True)


def parse(output: str) -> list[Row]:
    """The rows that `emit` wrote."""
    return [Row(**row) for row in json.loads(output.strip().splitlines()[-1])["rows"]]


def peers_python(venv: str = "peers") -> str:
    """Interpreter of a venv that `setup_peers.sh` makes.

    Raises:
        FileNotFoundError: It has not been made, or the peer does not install here.
    """
    python = _VENVS / venv / "bin" / "python"
    if not python.exists():
        raise FileNotFoundError(f"no benchmarks/.venvs/{venv}: benchmarks/setup_peers.sh makes it where it installs")
    return str(python)


def show(rows: Sequence[Row]) -> None:
    """For a part that is run on its own: the table for a person, the data for a program."""
    print(table(rows), file=sys.stderr)
    emit(rows)
