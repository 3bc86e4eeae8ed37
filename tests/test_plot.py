"""The picture of runs: which runs are seeds of one configuration, how it is called, and what is drawn of them."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from lit_ppo import exit_codes
from lit_ppo.curve import RETURN_COLOR, Series, TrainLog
from lit_ppo.plot import _on_one_grid
from lit_ppo.run_curves import Points, configurations, read_curve
from lit_ppo.run_statistics import bootstrap_band
from lit_ppo.run_status import Status
from tests.test_cli import Ended, Run, in_an_empty_directory, run  # noqa: F401  fixtures

SETTINGS: dict[str, Any] = {
    "seed_everything": 0,
    "total_env_steps": 100,
    "model": {"learning_rate": 1e-3, "seed": 0, "optimizer": None},
    "data": {"env_id": "CartPole-v1", "seed": 0, "report_dir": "{run}/reports"},
    "trainer": {"logger": {"init_args": {"save_dir": "{run}"}}},
}


def make_run(number: int, seed: int, env_id: str = "CartPole-v1", threshold: float | None = 475.0, **model: Any) -> Path:
    """The files of a run with three evaluations and two rollouts, whose returns are 100, 200, 300 above its seed."""
    directory = Path("runs", env_id, str(number))
    directory.mkdir(parents=True)
    settings = SETTINGS | {"seed_everything": seed, "model": SETTINGS["model"] | model | {"seed": seed}}
    settings["data"] = SETTINGS["data"] | {"env_id": env_id, "seed": seed}
    (directory / "config.yaml").write_text(yaml.safe_dump(settings))
    Status(env_id, seed, 1.0, 1.0, 64, 2, 64, 300.0, 300.0, threshold, None, "finished", 1, None).write(directory)
    returns = [100.0 + seed, 200.0 + seed, 300.0 + seed]
    TrainLog("t", [0, 32, 64], [Series("avg_return", RETURN_COLOR, returns)], []).write(directory / "curve.json")
    logs = directory / "logs/version_0"
    logs.mkdir(parents=True)
    (logs / "metrics.csv").write_text(
        f"episodes/ended,episodes/return,eval/return,step\n,,{returns[0]},0\n2,{10 + seed},,32\n1,{20 + seed},,64\n"
    )
    return directory


def read(*paths: Path) -> list[Any]:
    said: list[str] = []
    curves = [read_curve(path, said.append) for path in paths]
    assert said == []
    return curves


def test_run_is_read_with_its_training_returns_threshold_and_settings() -> None:
    [curve] = read(make_run(1, seed=5))
    assert (curve.evaluation.env_steps, curve.evaluation.returns) == ([0, 32, 64], [105.0, 205.0, 305.0])
    assert (curve.training.env_steps, curve.training.returns, curve.training.counts) == ([32, 64], [15.0, 25.0], [2, 1])
    assert (curve.env_id, curve.threshold) == ("CartPole-v1", 475.0)


def test_seeds_are_one_configuration_and_labels_say_what_differs() -> None:
    paths = [make_run(1, 1), make_run(2, 2), make_run(3, 1, learning_rate=3e-3), make_run(4, 1, learning_rate=3e-3, gae=0.9)]
    groups = configurations(read(*paths))
    assert [(group.label, len(group.runs)) for group in groups] == [
        ("learning_rate=0.001, gae=null", 2),
        ("learning_rate=0.003, gae=null", 1),
        ("learning_rate=0.003, gae=0.9", 1),
    ]
    assert [group.label for group in configurations(read(*paths[:2]))] == ["CartPole-v1"]


def test_mean_of_runs_of_different_length_keeps_the_last_return_of_the_shorter() -> None:
    short, long = Points([0, 10], [0.0, 10.0], []), Points([0, 20, 40], [0.0, 40.0, 80.0], [])
    grid, values = _on_one_grid([short, long])
    assert grid.tolist() == [0, 10, 20, 40]
    assert values.tolist() == [[0.0, 10.0, 10.0, 10.0], [0.0, 20.0, 40.0, 80.0]]


def test_band_lies_within_the_returns_and_around_their_mean() -> None:
    curves = np.array([[1.0, 0.0], [2.0, 0.0], [6.0, 0.0]])
    low, high = bootstrap_band(curves)
    # of three seeds the lowest mean is 1, that of (1, 1, 1), in 1 of 27 draws: more than a fortieth, so it is the low end
    assert (low.tolist(), high.tolist()) == ([1.0, 0.0], [6.0, 0.0])


def test_log_of_a_resumed_run_counts_from_where_it_went_on() -> None:
    directory = make_run(1, 0)
    later = directory / "logs/version_1/metrics.csv"
    later.parent.mkdir()
    later.write_text("episodes/return,eval/return,step\n70,,48\n80,,64\n90,,80\n")
    [curve] = read(directory)
    assert (curve.training.env_steps, curve.training.returns) == ([32, 48, 64, 80], [10.0, 70.0, 80.0, 90.0])


@pytest.mark.parametrize(
    ("text", "points"),
    [
        ("step,eval/return,episodes/return\n0,1.5,\n32,,7\n64,2.5,\n", ([0, 64], [1.5, 2.5])),
        ("env_steps,return\n10,1\n20,2\n3", ([10, 20], [1.0, 2.0])),  # half-written
        ("steps,avg_return\n10,nan\n", ([10], [math.nan])),
    ],
)
def test_csv_is_a_curve(text: str, points: Any) -> None:
    Path("some.csv").write_text(text)
    [curve] = read(Path("some.csv"))
    assert str((curve.evaluation.env_steps, curve.evaluation.returns)) == str(points)


def test_picture_has_labels_threshold_and_both_formats(run: Run) -> None:  # noqa: F811
    for number, (seed, rate) in enumerate([(1, 1e-3), (2, 1e-3), (1, 3e-3)], 1):
        make_run(number, seed, learning_rate=rate)
    make_run(1, 0, env_id="Acrobot-v1", threshold=-100.0)
    (Path("runs/CartPole-v1/latest")).symlink_to("3")  # is a run once, under its number
    for given in ("runs/*/*", "runs", "runs/CartPole-v1 Acrobot-v1/1"):
        assert run(f"plot {given} --output a.png a.svg") == Ended(exit_codes.DONE, "a.png\na.svg\n", "")
        picture = Path("a.svg").read_text()
        for text in ("learning_rate=0.001 (2 seeds)", "learning_rate=0.003", "solved at 475", "solved at -100", "training"):
            assert text in picture, text
        assert "(3 seeds)" not in picture and "<!-- learning_rate=0.003 (2 seeds)" not in picture
    assert Path("a.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("config", ["model: {gamma", "model: " + 300_000 * "["], ids=["cut", "nested"])
def test_damaged_files_are_named_and_the_rest_is_drawn(config: str, run: Run) -> None:  # noqa: F811
    make_run(1, 1)
    make_run(2, 2)
    Path("runs/CartPole-v1/2/curve.json").write_text('{"title": "P')
    Path("runs/CartPole-v1/2/config.yaml").write_text(config)
    make_run(3, 3)
    for name in ("curve.json", "logs/version_0/metrics.csv"):
        Path("runs/CartPole-v1/3", name).write_text("")
    ended = run("plot runs/CartPole-v1/* missing.csv --output a.svg")
    assert (ended.code, ended.out) == (exit_codes.DONE, "a.svg\n")
    lines = ended.err.splitlines()
    assert all(line.startswith("lit_ppo: ") for line in lines) and len(lines) == 6
    for part in ("2/curve.json", "2/config.yaml", "3/curve.json", "3/logs/version_0/metrics.csv", "missing.csv"):
        assert any(part in line for line in lines), part
