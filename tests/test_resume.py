"""Stop and resume: a run in two parts is the run in one part, bit for bit."""

import contextlib
import inspect
import itertools
import re
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer

from lit_ppo.callbacks.curve_export import CurveExport
from lit_ppo.callbacks.greedy_evaluation import GreedyEvaluation, data_of, spacing_of
from lit_ppo.callbacks.run_checkpoint import RunCheckpoint
from lit_ppo.callbacks.stop_when_solved import StopWhenSolved
from lit_ppo.checkpoint_io import read_checkpoint
from lit_ppo.checkpoint_structure import WEIGHTS_ONLY_KEY
from lit_ppo.curve import TrainLog
from lit_ppo.errors import CheckpointError
from lit_ppo.module import PPOModule
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


# -- checkpoints of any moment

HOOKS = [name for name, value in vars(Callback).items() if inspect.isfunction(value) and re.match("on_|setup|teardown", name)]
# That a checkpoint is saved or loaded is no moment of a run; the others are called in no run of ours.
NO_MOMENTS = "on_(save|load)_checkpoint|on_sanity|on_before_zero_grad"
MOMENTS = [name for name in HOOKS if not re.match(NO_MOMENTS, name)] + ["after fit", "after a failure"]
# One of each kind of moment for the quick tests; the others are slow ones.
FEW = ["setup", "on_train_epoch_start", "on_train_batch_start", "on_before_optimizer_step", "on_train_epoch_end", "on_fit_end"]
UPDATES = 3


class Saves(Callback):
    """Saves a checkpoint when one hook is called: the first times, and once more in a later update.

    Args:
        hook: Name of the hook.
    """

    def __init__(self, hook: str) -> None:
        self.files: list[str] = []
        calls = itertools.count()

        def save(trainer: Trainer, *arguments: Any, **named: Any) -> None:
            if (number := next(calls)) in (0, 1, 2, 25):
                self.files.append(f"{hook}-{number}.ckpt")
                trainer.save_checkpoint(self.files[-1])

        # bound, since Lightning looks for hooks that a class overrides
        self.__class__ = type("Saves", (Saves,), {hook: lambda _, *arguments, **named: save(*arguments, **named)})


class FailsAt(Callback):
    """Raises at the end of an update.

    Args:
        update: Number of updates by then.
    """

    def __init__(self, update: int) -> None:
        self.update = update

    def on_train_batch_end(self, trainer: Trainer, *arguments: Any) -> None:
        if data_of(trainer).update == self.update:
            raise OSError("of another")


def run_to_the_end(*callbacks: Callback, ckpt_path: str | None = None, **data: Any) -> tuple[Trainer, Any, Any, Any]:
    """A run with memory, moments, running returns and a schedule; Trainer, module, data, and the curve of its evaluations."""
    evaluation = GreedyEvaluation(every_env_steps=60, num_episodes=2)
    curve = CurveExport("curve.json")
    trainer = bare_trainer(UPDATES, *callbacks, evaluation, curve)
    module = cartpole_module(
        memory="gru", memory_size=8, sequence_length=5, normalize_observations=True, normalize_rewards=True
    )
    made = small_data("CartPole-v1", **({"bridge": "inprocess", "horizon": 25, "validation_episodes": 2} | data))
    with contextlib.suppress(OSError):
        trainer.fit(module, datamodule=made, ckpt_path=ckpt_path)
    return trainer, module, made, curve.state_dict()


def left_by(run: tuple[Trainer, Any, Any, Any]) -> list[Any]:
    """What a run has come to: parameters, moments, optimizer, counts, unfinished episodes, curve."""
    trainer, module, data, curve = run
    trainer.save_checkpoint("left.ckpt")
    left = read_checkpoint("left.ckpt")
    others = {name: left[name] for name in left if name not in ("callbacks", "hyper_parameters", "loops")}
    if data.update == UPDATES:  # Lightning calls nothing in a run that has nothing left to do, so nothing evaluates its end
        curve = {name: values[:-1] if curve["steps"][-1] == data.env_steps else values for name, values in curve.items()}
    return [parameters(module), curve, left["loops"]["fit_loop"], others]


@cache
def left_in_one_go(**data: Any) -> list[Any]:
    return left_by(run_to_the_end(**data))


@pytest.mark.filterwarnings("ignore:Be aware")
@pytest.mark.parametrize(
    ("moment", "data"),
    [
        *(
            pytest.param(moment, {}, marks=[] if moment in FEW or moment.startswith("after") else pytest.mark.slow)
            for moment in MOMENTS
        ),
        *((moment, {"vectorization": "native", "bridge": "process"}) for moment in ("on_train_batch_start", "after fit")),
    ],
    ids=str,
)
def test_checkpoint_of_any_moment_is_exact_or_says_that_it_is_weights_only(
    moment: str, data: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    straight = left_in_one_go(**data)
    is_failing = moment in ("on_exception", "after a failure")
    saves = Saves(moment)
    trainer, module, made, _ = run_to_the_end(saves, *([FailsAt(2)] if is_failing else []), **data)
    for stage in ("validate", "test", "predict"):
        if moment.startswith(f"on_{stage[:5]}"):
            getattr(trainer, stage)(module, datamodule=made)
    if moment.startswith("after"):
        saves.files = ["after.ckpt"]
        trainer.save_checkpoint("after.ckpt")
    if not is_failing:
        assert differences(straight[0], parameters(module)) == []
    assert saves.files
    num_exact = 0
    for file in saves.files:
        PPOModule.load_from_checkpoint(file)
        if WEIGHTS_ONLY_KEY in read_checkpoint(file):
            with pytest.raises(CheckpointError, match="weights only"):
                run_to_the_end(ckpt_path=file, **data)
            continue
        assert differences(straight, left_by(run_to_the_end(ckpt_path=file, **data))) == [], file
        num_exact += 1
    num_warnings = len([record for record in caplog.records if "weights only" in record.message])
    expected = (0, 1) if moment == "setup" else (len(saves.files), 0)
    assert (num_exact, num_warnings) == expected


@pytest.mark.filterwarnings("ignore:Be aware")
@pytest.mark.parametrize("moment", ["on_fit_start", "on_train_start", "on_train_epoch_start", "on_before_optimizer_step"])
def test_checkpoint_of_a_resumed_run_is_exact_once_all_of_it_is_restored(moment: str) -> None:
    first = Saves("on_train_batch_end")
    run_to_the_end(first)
    saves = Saves(moment)
    run_to_the_end(saves, ckpt_path=first.files[0])
    for file in saves.files:
        if moment == "on_fit_start":
            assert WEIGHTS_ONLY_KEY in read_checkpoint(file)
        else:
            assert differences(left_in_one_go(), left_by(run_to_the_end(ckpt_path=file))) == []
    assert saves.files


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks used to create the checkpoint")
def test_checkpoint_of_a_validation_alone_or_of_another_policy_is_weights_only() -> None:
    trainer, module, data, _ = run_to_the_end()
    trainer.save_checkpoint("exact.ckpt")
    trainer.validate(module, datamodule=data, ckpt_path="exact.ckpt", verbose=False)
    trainer.save_checkpoint("other.ckpt")
    alone = bare_trainer(UPDATES)
    alone.validate(module, datamodule=data, ckpt_path="exact.ckpt", verbose=False)
    alone.save_checkpoint("alone.ckpt")
    trainer.save_checkpoint("asked.ckpt", weights_only=True)
    assert [WEIGHTS_ONLY_KEY in read_checkpoint(f"{name}.ckpt") for name in ("exact", "other", "alone", "asked")] == [
        False,
        *[True] * 3,
    ]
