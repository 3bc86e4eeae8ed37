"""The training curve as JSON, in TorchLean's TrainLog format.

    {"title": str, "steps": [int], "series": [{"name": str, "values": [float], "color": "#rrggbb"}], "notes": [str]}

Non-finite numbers are the strings "NaN", "Infinity" and "-Infinity". A file is replaced as a whole or not at all.
"""

import math
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from lit_ppo.atomic_file import read_json, write_json

RETURN_COLOR: Final = "#4e79a7"
NON_FINITE: Final = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


@dataclass
class Series:
    """One line of the plot: a value for each step of the curve."""

    name: str
    color: str
    values: list[float] = field(default_factory=list)


@dataclass
class TrainLog:
    """A training curve: x axis, lines and notes."""

    title: str
    steps: list[int] = field(default_factory=list)
    series: list[Series] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "title": self.title,
            "steps": self.steps,
            "series": [
                {"name": line.name, "values": [_encoded(value) for value in line.values], "color": line.color}
                for line in self.series
            ],
            "notes": self.notes,
        }

    @classmethod
    def from_json(cls, data: object) -> "TrainLog":
        """From plain data.

        Raises:
            ValueError: The data is not a training curve; the message says where.
        """
        _require(isinstance(data, dict), "a JSON object", data)
        assert isinstance(data, dict)
        _require(data.keys() == {"title", "steps", "series", "notes"}, "the keys title, steps, series, notes", list(data))
        _require(isinstance(data["title"], str), "title: a string", data["title"])
        steps, notes = data["steps"], data["notes"]
        _require(isinstance(steps, list) and all(type(step) is int for step in steps), "steps: integers", steps)
        _require(isinstance(notes, list) and all(isinstance(note, str) for note in notes), "notes: strings", notes)
        _require(isinstance(data["series"], list), "series: a list", data["series"])
        return cls(data["title"], steps, [_series(line, len(steps)) for line in data["series"]], notes)

    def write(self, path: str | Path) -> None:
        """Replace the file at `path` atomically; parents are made.

        Raises:
            OSError: The file cannot be written; the old one is still there.
        """
        write_json(Path(path), self.to_json())

    @classmethod
    def read(cls, path: str | Path) -> "TrainLog":
        """The curve in a file.

        Raises:
            ValueError: The file is not a training curve.
            OSError: It cannot be read.
        """
        data = read_json(Path(path))
        try:
            return cls.from_json(data)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error


def _series(data: object, num_steps: int) -> Series:
    _require(isinstance(data, dict) and data.keys() == {"name", "values", "color"}, "series: name, values, color", data)
    assert isinstance(data, dict)
    name, values, color = data["name"], data["values"], data["color"]
    _require(isinstance(name, str), "name: a string", name)
    _require(isinstance(color, str) and re.fullmatch("#[0-9a-fA-F]{6}", color) is not None, "color: #rrggbb", color)
    _require(isinstance(values, list) and len(values) == num_steps, f"{name}: {num_steps} values, one for each step", values)
    return Series(name, color, [_decoded(value) for value in values])


def _encoded(value: float) -> float | str:
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _decoded(value: object) -> float:
    if isinstance(value, str) and value in NON_FINITE:
        return NON_FINITE[value]
    _require(type(value) in (int, float) and abs(value) <= sys.float_info.max, "a number, NaN, Infinity or -Infinity", value)  # type: ignore[arg-type]
    return float(value)  # type: ignore[arg-type]


def _require(holds: bool, expected: str, got: object) -> None:
    if not holds:
        raise ValueError(f"expected {expected}, got {str(got)[:80]}")
