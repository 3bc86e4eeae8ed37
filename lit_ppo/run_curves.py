"""The curves of runs, read from small files, and which of them are seeds of one configuration.

A curve comes from a run's directory (`curve.json`, and the training returns in its logs), from a curve as JSON, or from a CSV:
the `metrics.csv` of Lightning's CSVLogger, or any other with a column of env steps and one of returns.
"""

import csv
import io
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import yaml

from lit_ppo import strict_yaml
from lit_ppo.atomic_file import read_text
from lit_ppo.curve import TrainLog
from lit_ppo.errors import CheckpointError
from lit_ppo.run_directory import CONFIG_NAME, CURVE_NAME
from lit_ppo.run_status import STATUS_NAME, read_status

_STEPS: Final = ("step", "steps", "env_steps")
_EVALUATION: Final = ("eval/return", "avg_return", "return", "returns", "value")
_TRAINING: Final = ("episodes/return",)
_COUNTS: Final = "episodes/ended"
_END_OF_COUNTS: Final = 1 << 63
# Settings that do not make another configuration: the seed, places of files, how the run is shown and started.
_NOT_COMPARED: Final = (
    *("seed_everything", "torch_threads", "ckpt_path", "run", "runs_dir", "interrupt", "progress", "curve", "checkpoint"),
    *("data.seed", "model.seed", "model.total_env_steps", "data.report_dir", "data.show_output"),
    *("trainer.logger", "trainer.default_root_dir"),
)


@dataclass(frozen=True)
class Points:
    """Returns over env steps, in ascending order.

    Attributes:
        env_steps: Of each return.
        returns: Mean returns.
        counts: How many episodes each return is the mean of.
    """

    env_steps: list[int] = field(default_factory=list)
    returns: list[float] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class RunCurve:
    """The curves of one run.

    Attributes:
        name: Path that was typed.
        settings: Those of the run that make its configuration, as `section.key: value`; None if they are not known.
        env_id: Of its environment; None if it is not known.
        threshold: Mean return that counts as solved; None if there is none.
        evaluation: Returns of greedy episodes.
        training: Returns of the episodes of training.
    """

    name: str
    settings: Mapping[str, Any] | None
    env_id: str | None
    threshold: float | None
    evaluation: Points
    training: Points


def read_curve(path: Path, say: Callable[[str], None]) -> RunCurve:
    """The curves of a run.

    Args:
        path: The run's directory, or a file.
        say: Is told, in one line each, of damaged files of the run that are left out.

    Raises:
        CheckpointError: There is no curve that can be read.
    """
    if not path.exists():
        raise CheckpointError(f"{path}: cannot be read: No such file or directory (errno 2)")
    directory = path if path.is_dir() else _run_of(path)
    settings = None if directory is None else _tolerant(lambda: _settings(directory), say)
    status = None if directory is None else _tolerant(lambda: read_status(directory), say)
    try:
        if path.is_dir():
            evaluation, training = _of_directory(path, say)
        elif path.suffix == ".csv":
            evaluation, training = _of_csv([_rows(path)])
        else:
            evaluation, training = _of_log(path), Points()
    except OSError as error:
        raise CheckpointError(f"{error.filename}: cannot be read: {error.strerror} (errno {error.errno})") from error
    except ValueError as error:
        raise CheckpointError(str(error)) from error
    if not evaluation.env_steps and not training.env_steps:
        raise CheckpointError(f"{path}: expected the directory of a run, or a curve as JSON or CSV, found no returns")
    env_id = status.env_id if status is not None else None if settings is None else settings.get("data.env_id")
    env_id = env_id if isinstance(env_id, str) else None
    threshold = None if status is None or status.threshold is None else status.threshold
    return RunCurve(str(path), settings, env_id, threshold, evaluation, training)


def _run_of(path: Path) -> Path | None:
    """The directory of the run that wrote a file: one of those above it."""
    return next((parent for parent in path.resolve().parents[:3] if (parent / STATUS_NAME).is_file()), None)


def _tolerant(read: Callable[[], Any], say: Callable[[str], None]) -> Any:
    """What can be read; None, with a line about it, if the file is damaged or missing."""
    try:
        return read()
    except FileNotFoundError:
        return None
    except (ValueError, OSError, yaml.YAMLError) as error:
        say(" ".join(str(error).split())[:200])
        return None


def _settings(directory: Path) -> dict[str, Any]:
    path = directory / CONFIG_NAME
    try:
        settings = strict_yaml.load(read_text(path))
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: expected YAML: {error}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{path}: expected the settings of a run, got {type(settings).__name__}")
    return {
        key: value
        for key, value in _leaves(settings)
        if not any(key == skipped or key.startswith(f"{skipped}.") for skipped in _NOT_COMPARED)
    }


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _of_directory(path: Path, say: Callable[[str], None]) -> tuple[Points, Points]:
    """Evaluation returns of `curve.json`, or of the logs if there is none; training returns of the logs."""
    logs = sorted(path.rglob("metrics.csv"), key=lambda file: file.lstat().st_mtime)
    logged = _of_csv([_tolerant(partial(_rows, log), say) or [] for log in logs])
    curve = _tolerant(lambda: _of_log(path / CURVE_NAME), say)
    return curve or logged[0], logged[1]


def _of_log(path: Path) -> Points:
    log = TrainLog.read(path)
    if not all(abs(step) < _END_OF_COUNTS for step in log.steps):
        raise ValueError(f"{path}: expected steps below 2^63")
    if not log.series:
        return Points()
    found = {step: (value, 1) for step, value in zip(log.steps, log.series[0].values, strict=True)}
    return _points(found)


def _points(found: Mapping[int, tuple[float, int]]) -> Points:
    """Returns and counts by their env steps, in order; what is infinite is not drawn."""
    steps = sorted(found)
    returns = [found[step][0] if math.isfinite(found[step][0]) else math.nan for step in steps]
    return Points(steps, returns, [found[step][1] for step in steps])


def _of_csv(files: Sequence[Sequence[Mapping[str, str]]]) -> tuple[Points, Points]:
    """Evaluation and training returns of CSVs; where two have the same env steps, as after a resume, the later counts."""
    evaluation: dict[int, tuple[float, int]] = {}
    training: dict[int, tuple[float, int]] = {}
    for rows in files:
        first = min((step for row in rows if (step := _count(row, _STEPS)) is not None), default=0)
        for found, names in ((evaluation, _EVALUATION), (training, _TRAINING)):
            new = dict(_values(rows, names))
            if new:
                kept = {step: value for step, value in found.items() if step < first}
                found.clear()
                found.update(kept | new)
    return _points(evaluation), _points(training)


def _rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV that are whole; the last one may be half-written."""
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""))
    try:
        names = reader.fieldnames or []
        rows = [row for row in reader if None not in row and None not in row.values()]
    except csv.Error as error:
        raise ValueError(f"{path}: expected CSV: {error}") from error
    if not set(names) & set(_STEPS) or not set(names) & {*_EVALUATION, *_TRAINING}:
        raise ValueError(
            f"{path}: expected a column of env steps ({', '.join(_STEPS)}) and one of returns "
            f"({', '.join((*_EVALUATION, *_TRAINING))}), got {', '.join(names)[:80] or 'an empty file'}"
        )
    return rows


def _number(row: Mapping[str, str], names: Sequence[str]) -> float | None:
    """The number in the first of the columns that has one in this row."""
    for name in names:
        with suppress(ValueError):
            return float(row.get(name) or "")
    return None


def _count(row: Mapping[str, str], names: Sequence[str]) -> int | None:
    """As `_number`, of something that is counted."""
    number = _number(row, names)
    return None if number is None or not 0 <= number < _END_OF_COUNTS else int(number)


def _values(rows: Sequence[Mapping[str, str]], names: Sequence[str]) -> Iterator[tuple[int, tuple[float, int]]]:
    for row in rows:
        step, value = _count(row, _STEPS), _number(row, names)
        if step is not None and value is not None:
            count = _count(row, [_COUNTS])
            yield step, (value, 1 if count is None else count)


# -- configurations


@dataclass(frozen=True)
class Configuration:
    """Runs that differ in nothing but their seed.

    Attributes:
        label: What makes it differ from the others.
        runs: One for each seed.
    """

    label: str
    runs: list[RunCurve]


def configurations(curves: Sequence[RunCurve]) -> list[Configuration]:
    """Runs grouped by their settings, each group with what differs in its settings as its label.

    Args:
        curves: Of one environment.
    """
    groups: dict[str, list[RunCurve]] = {}
    for curve in curves:
        key = curve.name if curve.settings is None else repr(sorted((key, repr(one)) for key, one in curve.settings.items()))
        groups.setdefault(key, []).append(curve)
    known = [runs[0].settings for runs in groups.values() if runs[0].settings is not None]
    differing = _differing(known)
    return [Configuration(_label(runs[0], differing), runs) for runs in groups.values()]


def _differing(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Keys whose values are not the same in all settings, without those that follow from `preset`."""
    keys = dict.fromkeys(key for one in settings for key in one)
    return [key for key in keys if len({repr(one.get(key)) for one in settings}) > 1]


_MOST_IN_A_LABEL: Final = 3  # settings
_LONGEST_LABEL: Final = 50  # characters, of a path


def _label(curve: RunCurve, differing: Sequence[str]) -> str:
    if curve.settings is None or not differing:
        text = (curve.settings is not None and curve.env_id) or curve.name
        return text if len(text) <= _LONGEST_LABEL else f"...{text[-_LONGEST_LABEL:]}"  # the end of a path says the most
    parts = [f"{_short(key, differing)}={_in_words(curve.settings.get(key))}" for key in differing]
    more = len(parts) - _MOST_IN_A_LABEL
    return ", ".join(parts[:_MOST_IN_A_LABEL]) + (f", {more} more" if more > 0 else "")


def _short(key: str, keys: Sequence[str]) -> str:
    """The last part of a key, if no other key of the label ends so."""
    last = key.rpartition(".")[2]
    return key if last == "class_path" or sum(other.rpartition(".")[2] == last for other in keys) > 1 else last


def _in_words(value: Any) -> str:
    if isinstance(value, str | float):
        text = f"{value:g}" if isinstance(value, float) else value
    else:
        text = json.dumps(value, default=str, skipkeys=True)
    return text if len(text) <= 30 else f"{text[:27]}..."
