"""Stop and resume: a run in two parts is the run in one part, bit for bit."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_ppo.callbacks.curve_export import CurveExport
from lit_ppo.callbacks.greedy_evaluation import GreedyEvaluation, spacing_of
from lit_ppo.callbacks.run_checkpoint import RunCheckpoint
from lit_ppo.callbacks.stop_when_solved import StopWhenSolved
from lit_ppo.curve import TrainLog
from tests.runs import KeptData, bare_trainer, cartpole_module, fit, parameters, same, small_data, small_module

N = 3  # updates in each half
SPACING = 150  # env steps between evaluations; the first half ends between two of them
CKPT = "checkpoints/last.ckpt"


@pytest.fixture(autouse=True)
def in_an_empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def differences(first: Any, second: Any, where: str = "") -> list[str]:
    """Where two trees of plain data and tensors are not the same, bit for bit."""
    if type(first) is not type(second):
        return [f"{where}: {type(first).__name__} and {type(second).__name__}"]
    if isinstance(first, dict):
        if first.keys() != second.keys():
            return [f"{where}: keys {sorted(map(str, first.keys() ^ second.keys()))}"]
        return [text for key in first for text in differences(first[key], second[key], f"{where}.{key}")]
    if isinstance(first, list | tuple):
        if len(first) != len(second):
            return [f"{where}: lengths {len(first)} and {len(second)}"]
        pairs = enumerate(zip(first, second, strict=True))
        return [text for i, (mine, other) in pairs for text in differences(mine, other, f"{where}[{i}]")]
    is_same = first.equal(second) if isinstance(first, torch.Tensor) else first == second
    return [] if is_same else [f"{where}: {str(first)[:60]} and {str(second)[:60]}"]


class Run:
    """Fits in parts, each in fresh objects and with settings of its own if `data` is a list; what the last part left."""

    def __init__(
        self,
        directory: str,
        parts: list[int],
        data: dict[str, Any] | list[dict[str, Any]],
        every_env_steps: int | None = SPACING,
        **settings: Any,
    ) -> None:
        Path(directory).mkdir()
        self.curve = Path(directory) / "curve.json"
        self.rollouts: list[Any] = []
        self.batches: list[Any] = []
        for number, updates in enumerate(parts):
            ckpt_path = str(Path(directory) / CKPT) if number else None
            callbacks = [
                GreedyEvaluation(every_env_steps=every_env_steps, num_episodes=2),
                StopWhenSolved(threshold=1e9),
                CurveExport(str(self.curve)),
                RunCheckpoint(f"{directory}/checkpoints", every_n_updates=100),
            ]
            self.module, self.data = fit(
                updates,
                *callbacks,
                module=cartpole_module(learning_rate=0.01, total_env_steps=2000, **settings),
                data=small_data("CartPole-v1", **(data[number] if isinstance(data, list) else data)),
                ckpt_path=ckpt_path,
            )
            self.rollouts += self.data.rollouts
            self.batches += self.module.batches
        self.checkpoint = torch.load(Path(directory) / CKPT, weights_only=True)
        self.checkpoint["callbacks"] = {
            # paths differ between two directories, and nothing else may
            name.partition("{")[0]: {key: value for key, value in state.items() if not key.endswith("path")}
            for name, state in self.checkpoint["callbacks"].items()
        }


@pytest.mark.parametrize(
    "data",
    [
        {"num_envs": 1, "horizon": 33},
        {"num_envs": 8, "horizon": 13},
        {"num_envs": 8, "horizon": 13, "num_workers": 2},
        {"num_envs": 64, "horizon": 3},
        {"num_envs": 8, "horizon": 13, "vectorization": "native"},
        {"num_envs": 64, "horizon": 3, "vectorization": "native"},
    ],
    ids=["sync-1", "sync-8", "sync-8-in-2-workers", "sync-64", "native-8", "native-64"],
)
def test_run_resumed_half_way_equals_the_run_in_one_go_bit_for_bit(data: dict[str, Any]) -> None:
    settings = {"target_kl": 0.01, "clip_decay": "linear", "update_epochs": 3}
    straight, resumed = Run("straight", [2 * N], data, **settings), Run("resumed", [N, 2 * N], data, **settings)
    assert same(parameters(straight.module), parameters(resumed.module))
    assert straight.curve.read_bytes() == resumed.curve.read_bytes()
    boundaries, evaluated = [*(rollout.env_steps for rollout in straight.rollouts[1:]), straight.data.env_steps], [0]
    for env_steps in boundaries:
        evaluated += [env_steps] if env_steps // SPACING > evaluated[-1] // SPACING else []
    assert TrainLog.read(resumed.curve).steps == evaluated and len(evaluated) > 1
    # every rollout and batch: observations, actions, values, counters; so the next actions after the break as well
    for mine, other in ((straight.rollouts, resumed.rollouts), (straight.batches, resumed.batches)):
        assert differences(mine, other) == []
    # optimizer, schedules, loops, datamodule with its half-finished episodes, callbacks
    assert differences(straight.checkpoint, resumed.checkpoint) == []
    steps = straight.module.metrics.pop("optimizer/steps")
    passes = -(-len(straight.batches[-1].actions) // 10)
    assert steps % passes == 0 and steps > 0


def test_target_kl_and_annealing_are_at_work_in_the_resumed_run() -> None:
    """Else the test above would not show that they are resumed."""
    run = Run("run", [N, 2 * N], {"num_envs": 8, "horizon": 13}, target_kl=1e-9, update_epochs=3)
    assert run.module.metrics["optimizer/steps"] == 11  # one pass of ceil(104 / 10) minibatches
    # update 5 begins at 5 * 104 env steps
    assert run.module.metrics["optimizer/learning_rate"] == pytest.approx(0.01 * (1 - 520 / 2000))


def test_resuming_three_times_changes_nothing() -> None:
    data = {"num_envs": 2, "horizon": 15}
    straight, resumed = Run("straight", [4], data), Run("resumed", [1, 2, 3, 4], data)
    assert differences(straight.checkpoint, resumed.checkpoint) == []


def test_resumed_run_is_evaluated_where_the_lengths_of_greedy_episodes_say() -> None:
    """The default: the break comes while an evaluation is due by its spacing and not yet by its length."""
    data = {"num_envs": 2, "horizon": 10}
    runs = [Run(name, parts, data, every_env_steps=None) for name, parts in (("straight", [20]), ("resumed", [*range(1, 21)]))]
    curves = [TrainLog.read(run.curve).steps for run in runs]
    assert curves[0] == curves[1]
    spacing = spacing_of(None, 2000)
    assert any(after - before > spacing for before, after in pairwise(curves[0]))  # the lengths decide
    assert differences(*(run.checkpoint for run in runs)) == []


def test_resumed_run_stops_at_max_epochs_counted_from_the_first_update() -> None:
    fit(2, RunCheckpoint("checkpoints"))
    _, data = fit(3, RunCheckpoint("checkpoints"), ckpt_path=CKPT)
    assert len(data.rollouts) == 1 and data.update == 3


def test_run_that_was_solved_has_nothing_left_to_do() -> None:
    callbacks = lambda: [GreedyEvaluation(1, 1), StopWhenSolved(0.0, 0), RunCheckpoint("checkpoints")]  # noqa: E731
    _, first = fit(5, *callbacks())
    _, second = fit(5, *callbacks(), ckpt_path=CKPT)
    assert first.update == second.update == 1
    assert second.rollouts == []


def test_checkpoint_of_a_validation_needs_no_environments_of_training() -> None:
    fit(1, RunCheckpoint("checkpoints"))
    trainer, data = bare_trainer(1, RunCheckpoint("checkpoints")), small_data(validation_episodes=2)
    trainer.validate(small_module(), datamodule=data, ckpt_path=CKPT, verbose=False)
    assert isinstance(data, KeptData) and len(data.results.returns) == 2
