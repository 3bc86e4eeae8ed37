"""Rows: every one trains two updates; one of each kind learns what it demands, by the command line."""

import dataclasses
import importlib.util
from pathlib import Path
from typing import Any

import pytest

from benchmarks.learning.fits import reproduce
from benchmarks.learning.results import LIT_PPO, RowResults
from benchmarks.learning.rows import Row, read_row

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ROWS = Path(__file__).parents[2] / "configs" / "rows"
SEED = 0  # of those that settings were tuned with
PACKAGES = {
    "ALE/": "ale_py",
    "MiniGrid": "minigrid",
    "LunarLander": "Box2D",
    "BipedalWalker": "Box2D",
    **dict.fromkeys(("InvertedPendulum", "Hopper", "HalfCheetah", "Walker2d"), "mujoco"),
}
KINDS = {
    "vector": "frozenlake_8x8",
    "Box": "pendulum",
    "image": "coloured_pads",
    "memory": "cartpole_novel_gru_100k",
    "mask": "masked_ranks",
    "mask that is not applied": "masked_ranks_seen_only",
    "mask that is not seen": "masked_ranks_unseen",
    "MultiDiscrete": "dials",
    "MultiBinary": "parity_bits",
}


def made(row: Row, directory: Path) -> dict[str, Any]:
    """The run of one seed."""
    said: list[str] = []
    places = {"results_dir": directory / "results", "runs_dir": directory / "runs"}
    assert reproduce([row], seeds=1, first_seed=SEED, jobs=1, say=said.append, **places) == [], said
    [run] = RowResults(row, directory / "results").by(LIT_PPO)
    return run


@pytest.mark.parametrize("name", [path.stem for path in sorted(ROWS.glob("*.yaml"))])
def test_row_trains_two_updates(name: str, tmp_path: Path) -> None:
    row = read_row(ROWS / f"{name}.yaml")
    for begin, package in PACKAGES.items():
        if row.env_id.rpartition(":")[2].startswith(begin) and importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    data = row.settings["data"] | {"max_episode_steps": 50}  # so that greedy episodes end
    short = row.settings | {"trainer": {"max_epochs": 2}, "data": data}
    run = made(dataclasses.replace(row, settings=short, num_episodes=1), tmp_path)
    assert (run["updates"], run["env_steps"]) == (2, 2 * row.env_steps_per_update)


@pytest.mark.parametrize("name", KINDS.values(), ids=KINDS)
def test_row_learns_what_it_demands(name: str, tmp_path: Path) -> None:
    row = read_row(ROWS / f"{name}.yaml")
    run = made(row, tmp_path)
    assert row.is_met(run["best_greedy"]["mean"]), f"{run['best_greedy']} is not {row.target}"
