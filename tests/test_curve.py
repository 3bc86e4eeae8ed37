"""The training curve: exact bytes, atomic writes, refusals; and its picture."""

import builtins
import json
import math
import os
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_ppo import cli, exit_codes
from lit_ppo.curve import RETURN_COLOR, Series, TrainLog

SAMPLE_TEXT = """{
  "title": "PPO on CartPole-v1",
  "steps": [
    0,
    1024
  ],
  "series": [
    {
      "name": "avg_return",
      "values": [
        9.4,
        "NaN"
      ],
      "color": "#4e79a7"
    }
  ],
  "notes": [
    "seed 0"
  ]
}
"""


def sample(values: list[float] | None = None) -> TrainLog:
    values = [9.4, math.nan] if values is None else values
    steps = [1024 * number for number in range(len(values))]
    return TrainLog("PPO on CartPole-v1", steps, [Series("avg_return", RETURN_COLOR, values)], ["seed 0"])


# -- format


def test_curve_is_written_in_trainlog_format_to_the_byte(tmp_path: Path) -> None:
    sample().write(tmp_path / "curve.json")
    assert (tmp_path / "curve.json").read_text(encoding="utf-8") == SAMPLE_TEXT


def test_numbers_that_json_cannot_hold_are_strings() -> None:
    encoded = sample([1.5, math.nan, math.inf, -math.inf]).to_json()
    assert encoded["series"][0]["values"] == [1.5, "NaN", "Infinity", "-Infinity"]


def same_floats(first: list[float], second: list[float]) -> bool:
    """Bit for bit, but for which NaN it is."""
    pack = [struct.pack("d", math.nan if math.isnan(x) else x) for x in first + second]
    return len(first) == len(second) and pack[: len(first)] == pack[len(first) :]


@given(
    title=st.text(st.characters(exclude_categories=["Cs"])),
    columns=st.lists(st.tuples(st.integers(), st.floats(), st.floats())),
    names=st.tuples(st.text(max_size=5), st.text(max_size=5)),
    color=st.from_regex(r"#[0-9a-f]{6}", fullmatch=True),
    notes=st.lists(st.text(max_size=5), max_size=3),
)
def test_curve_comes_back_from_json_as_it_was(
    title: str, columns: list[tuple[int, float, float]], names: tuple[str, str], color: str, notes: list[str]
) -> None:
    lines = [Series(name, color, [row[1 + k] for row in columns]) for k, name in enumerate(names)]
    curve = TrainLog(title, [row[0] for row in columns], lines, notes)
    again = TrainLog.from_json(json.loads(json.dumps(curve.to_json(), allow_nan=False)))
    assert (again.title, again.steps, again.notes) == (curve.title, curve.steps, curve.notes)
    assert [(line.name, line.color) for line in again.series] == [(line.name, line.color) for line in lines]
    assert all(same_floats(mine.values, line.values) for mine, line in zip(again.series, lines, strict=True))


# -- files


def test_curve_makes_its_directories_and_can_be_read_back(tmp_path: Path) -> None:
    path = tmp_path / "data" / "rl" / "curve.json"
    sample([1.0, 2.0]).write(path)
    assert TrainLog.read(path) == sample([1.0, 2.0])
    assert path.stat().st_mode & 0o777 == 0o644


def test_write_that_fails_leaves_the_old_curve_and_no_other_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "curve.json"
    sample([1.0]).write(path)
    before = path.read_bytes()

    def fails(*args: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "replace", fails)
    with pytest.raises(OSError, match="no space left"):
        sample([1.0, 2.0]).write(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_reader_never_sees_half_a_curve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "curve.json"
    sample([1.0]).write(path)
    shipped, seen = os.replace, []

    def replace(source: str, target: Path) -> None:
        seen.append((TrainLog.read(path), TrainLog.read(source)))  # the new one is complete before it takes the old one's place
        shipped(source, target)

    monkeypatch.setattr(os, "replace", replace)
    sample([1.0, 2.0]).write(path)
    assert seen == [(sample([1.0]), sample([1.0, 2.0]))]


# -- refusals


def changed(**parts: Any) -> dict[str, Any]:
    return json.loads(SAMPLE_TEXT) | parts


def with_line(**parts: Any) -> dict[str, Any]:
    return changed(series=[{"name": "a", "values": [1.0, 2.0], "color": "#4e79a7"} | parts])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([1], "expected a JSON object, got [1]"),
        ({"title": "t"}, "expected the keys title, steps, series, notes, got ['title']"),
        (changed(more=1), "expected the keys title, steps, series, notes, got ['title', 'steps', 'series', 'notes', 'more']"),
        (changed(title=3), "expected title: a string, got 3"),
        (changed(steps=[0, 1.5]), "expected steps: integers, got [0, 1.5]"),
        (changed(steps=[0, True]), "expected steps: integers, got [0, True]"),
        (changed(notes="seed 0"), "expected notes: strings, got seed 0"),
        (changed(series={}), "expected series: a list, got {}"),
        (changed(series=[{"name": "a"}]), "expected series: name, values, color, got {'name': 'a'}"),
        (with_line(name=1), "expected name: a string, got 1"),
        (with_line(color="blue"), "expected color: #rrggbb, got blue"),
        (with_line(color="#4e79a7\n"), "expected color: #rrggbb, got #4e79a7\n"),
        (with_line(values=[1.0]), "expected a: 2 values, one for each step, got [1.0]"),
        (with_line(values=[1.0, "nan"]), "expected a number, NaN, Infinity or -Infinity, got nan"),
        (with_line(values=[1.0, True]), "expected a number, NaN, Infinity or -Infinity, got True"),
        (with_line(values=[1.0, None]), "expected a number, NaN, Infinity or -Infinity, got None"),
        (with_line(values=[1.0, math.inf]), "expected a number, NaN, Infinity or -Infinity, got inf"),
    ],
)
def test_data_that_is_no_curve_is_refused_with_its_place(data: Any, message: str) -> None:
    with pytest.raises(ValueError) as refused:
        TrainLog.from_json(data)
    assert str(refused.value) == message


@pytest.mark.parametrize("text", ["", "{", '{"title": "t"}', "[]"])
def test_file_that_is_no_curve_is_refused_by_name(text: str, tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"^{path}: "):
        TrainLog.read(path)


# -- the picture


def test_plot_draws_one_run_and_several(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [tmp_path / "one.json", tmp_path / "two.json"]
    for path in paths:
        sample([1.0, math.nan]).write(path)
    for number in (1, 2):
        output = tmp_path / "pictures" / f"{number}.png"
        cli.main(["plot", *map(str, paths[:number]), "--output", str(output)])
        assert output.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
        assert capsys.readouterr().out == f"{output}\n"


def test_plot_without_matplotlib_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shipped = builtins.__import__

    def without_matplotlib(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.partition(".")[0] == "matplotlib":
            raise ModuleNotFoundError("No module named 'matplotlib'", name="matplotlib")
        return shipped(name, *args, **kwargs)

    sample().write(tmp_path / "curve.json")
    monkeypatch.setattr(builtins, "__import__", without_matplotlib)
    with pytest.raises(SystemExit) as exited:
        cli.main(["plot", str(tmp_path / "curve.json")])
    assert exited.value.code == exit_codes.USAGE
    assert capsys.readouterr().err == "lit_ppo: error: plot needs matplotlib: pip install -e '.[plot]' in lit_ppo's directory\n"


@pytest.mark.parametrize("content", [None, "{}"])
def test_plot_of_a_file_that_is_missing_or_no_curve_says_which(
    content: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "curve.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(SystemExit) as exited:
        cli.main(["plot", str(path), "--output", str(tmp_path / "out.png")])
    assert exited.value.code == exit_codes.CHECKPOINT
    error = capsys.readouterr().err
    assert error.startswith("lit_ppo: error: ") and str(path) in error and error.count("\n") == 1
    assert not (tmp_path / "out.png").exists()
