"""GridWorld: its rules are TorchLean's, and its policy and path are written in TorchLean's formats."""

import json
from pathlib import Path
from typing import Any

import gymnasium
import pytest

from examples.grid_world.grid_policy import GridPolicy
from lit_ppo.callbacks.curve_export import CurveExport
from lit_ppo.callbacks.greedy_evaluation import GreedyEvaluation
from lit_ppo.callbacks.run_checkpoint import RunCheckpoint
from lit_ppo.callbacks.stop_when_solved import StopWhenSolved
from lit_ppo.curve import TrainLog
from lit_ppo.errors import ConfigError
from lit_ppo.module import PPOModule
from tests.runs import KeptData, fit

GRID = "examples.grid_world.env:GridWorld-v0"
UP, DOWN, LEFT, RIGHT = range(4)


def walk(actions: list[int], **kwargs: Any) -> list[tuple[list[int], float, bool]]:
    env = gymnasium.make(GRID, disable_env_checker=True, **kwargs).unwrapped
    env.reset(seed=0)
    steps = [env.step(action) for action in actions]
    return [(obs.tolist(), float(reward), terminated) for obs, reward, terminated, _, _ in steps]


def test_every_step_costs_one_but_the_last_and_walls_stop_a_move() -> None:
    assert walk([UP, RIGHT, DOWN], width=2, height=2) == [([0, 0], -1.0, False), ([0, 1], -1.0, False), ([1, 1], 0.0, True)]


@pytest.mark.parametrize("kwargs", [{"goal": [0, 0]}, {"goal": [4, 0]}, {"start": [0, -1]}])
def test_cells_that_make_no_sense_are_refused(kwargs: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"^(goal|start): expected"):
        gymnasium.make(GRID, **kwargs)


def files(
    directory: Path, updates: int, ckpt_path: str | None = None, **settings: Any
) -> tuple[dict[str, Any], dict[str, Any]]:
    data = KeptData(GRID, num_envs=8, horizon=32, evaluation_envs=2, **settings)
    policy, path = directory / "policy.json", directory / "path.json"
    callbacks = [
        GreedyEvaluation(every_env_steps=8 * 256, num_episodes=1),
        StopWhenSolved(threshold=1e9),
        CurveExport(str(directory / "curve.json")),
        GridPolicy(str(policy), str(path)),
        RunCheckpoint(str(directory / "checkpoints"), every_n_updates=100),
    ]
    module = PPOModule(data.spec, learning_rate=3e-3, minibatch_size=64, total_env_steps=4096)
    fit(updates, *callbacks, module=module, data=data, ckpt_path=ckpt_path)
    return json.loads(policy.read_text()), json.loads(path.read_text())


def test_learnt_path_is_the_shortest_and_its_actions_lead_along_it(tmp_path: Path) -> None:
    policy, path = files(tmp_path, 16)
    assert [policy[key] for key in ("width", "height")] == [path[key] for key in ("width", "height")] == [4, 4]
    assert len(policy["before"]) == len(policy["after"]) == 16
    assert len(path["before"]) == 101 and len(path["after"]) == 7  # the time limit, six moves
    cells = path["after"]
    moves = [policy["after"][4 * row + column] for row, column in cells[:-1]]
    assert [cell for cell, _, _ in walk(moves)] == cells[1:] and cells[-1] == [3, 3]


def test_run_in_process_comes_to_the_same_curve_policy_and_path_bit_for_bit(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for bridge, num_said in (("process", 0), ("inprocess", 1)):
        caplog.clear()
        (tmp_path / bridge).mkdir()
        files(tmp_path / bridge, 16, bridge=bridge)
        assert sum("nothing isolates the run" in record.getMessage() for record in caplog.records) == num_said
    for name in ("curve.json", "policy.json", "path.json"):
        assert (tmp_path / "process" / name).read_bytes() == (tmp_path / "inprocess" / name).read_bytes()
    assert TrainLog.read(tmp_path / "process" / "curve.json").steps == [0, 8 * 256, 16 * 256]


def test_resumed_run_keeps_what_was_before_training(tmp_path: Path) -> None:
    first = files(tmp_path, 2)
    again = files(tmp_path, 4, str(tmp_path / "checkpoints/last.ckpt"))
    assert [file["before"] for file in again] == [file["before"] for file in first]
    assert [file["after"] for file in again] != [file["after"] for file in first]


def test_grid_policy_says_what_it_needs() -> None:
    data = KeptData("CartPole-v1", num_envs=2, horizon=8, evaluation_envs=1)
    with pytest.raises(ConfigError, match=r"GridPolicy: expected observations \(row, column\)"):
        fit(1, GridPolicy(), module=PPOModule(data.spec, minibatch_size=8), data=data)
