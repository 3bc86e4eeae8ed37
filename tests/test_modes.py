"""Every kind of space and policy keeps the promises that CartPole's has: resumed and recovered bit for bit."""

import os
import signal
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_ppo.callbacks.curve_export import CurveExport
from lit_ppo.callbacks.greedy_evaluation import GreedyEvaluation
from lit_ppo.callbacks.run_checkpoint import RunCheckpoint
from lit_ppo.callbacks.stop_when_solved import StopWhenSolved
from lit_ppo.module import PPOModule
from lit_ppo.ppo_settings import PPOSettings
from lit_ppo.rollout import Batch, Rollout
from lit_ppo.update import CompiledGradients
from tests.bridge.test_client import all_ended, worker_pid
from tests.runs import KeptData, KeptModule, fit
from tests.test_resume import differences

ANYTHING = "tests.toy_envs:Anything-v0"
GRU = {"memory": "gru", "memory_size": 5, "sequence_length": 4}
LSTM = {"memory": "lstm", "memory_size": 5, "sequence_length": 4, "shared_torso": True}
NORMALIZED = {"normalize_observations": True, "normalize_rewards": True}


@dataclass(frozen=True)
class Mode:
    """What a run is made of."""

    env_kwargs: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)


MASKED = {"action_mask": "info:possible"}
MODES = {
    "image": Mode({"observation": "image"}, settings={"shared_torso": True}),
    "nested Dict": Mode({"observation": "nested"}),
    "obs_keys": Mode({"observation": "nested"}, {"obs_keys": ["pair", "camera"]}),
    "wrapped and stacked": Mode(
        {"observation": "nested"},
        {"wrappers": ["tests.toy_wrappers.Repeat"], "frame_stack": 3, "max_episode_steps": 4, "obs_keys": ["pair", "camera"]},
    ),
    "gru": Mode(settings=GRU),
    "lstm": Mode(settings=LSTM),
    "masked": Mode({"masked": True}, MASKED),
    "box": Mode({"action": "box"}, settings={"log_std": "state"}),
    "gsde": Mode({"action": "box"}, settings=GRU | {"gsde": True, "gsde_steps": 3}),
    "multi_discrete": Mode({"action": "multi_discrete"}),
    "multi_binary": Mode({"action": "multi_binary"}),
    "normalised": Mode({"action": "box"}, settings=NORMALIZED),
    "normalised with memory": Mode({"action": "box"}, settings=NORMALIZED | LSTM),
    "everything": Mode(
        {"observation": "nested", "masked": True}, MASKED | {"num_workers": 2}, NORMALIZED | GRU | {"clip_decay": "linear"}
    ),
}


class StruckData(KeptData):
    """Its first worker is killed before rollout `strike`, while its episodes are under way."""

    strike: int | None = None

    def next_rollout(self) -> Rollout:
        if self.update == self.strike:
            assert self._bridge is not None
            pid = worker_pid(self._bridge)
            pidfd = os.pidfd_open(pid)
            os.kill(pid, signal.SIGKILL)
            assert all_ended([pidfd])
        return super().next_rollout()


@dataclass(frozen=True)
class Outcome:
    """What a run left."""

    rollouts: list[Any]
    checkpoint: dict[str, Any]
    curve: bytes
    restarts: int


def run(mode: Mode, directory: Path, *parts: int, strike: int | None = None) -> Outcome:
    """Fit in parts, each in fresh objects."""
    rollouts: list[Any] = []
    restarts = 0
    for number, updates in enumerate(parts):
        data = StruckData(ANYTHING, mode.env_kwargs, num_envs=2, horizon=16, evaluation_envs=2, **mode.data)
        data.strike = strike
        module = KeptModule(
            data.spec,
            actor_hidden_sizes=(8,),
            critic_hidden_sizes=(8,),
            minibatch_size=12,
            learning_rate=0.01,
            total_env_steps=500,
            **mode.settings,
        )
        callbacks = [
            GreedyEvaluation(every_env_steps=64, num_episodes=3),
            StopWhenSolved(threshold=1e9),
            CurveExport(str(directory / "curve.json")),
            RunCheckpoint(str(directory / "checkpoints"), every_n_updates=100),
        ]
        last = str(directory / "checkpoints/last.ckpt")
        fit(updates, *callbacks, module=module, data=data, ckpt_path=last if number else None)
        rollouts += data.rollouts
        restarts += int(data.metrics["env/restarts"])
    checkpoint = torch.load(directory / "checkpoints/last.ckpt", weights_only=True)
    checkpoint[StruckData.__qualname__]["bridge"].pop("restarts")
    for name, state in checkpoint.pop("callbacks").items():
        # paths differ between two directories, and nothing else may
        checkpoint[name.partition("{")[0]] = {key: value for key, value in state.items() if not key.endswith("path")}
    return Outcome(rollouts, checkpoint, (directory / "curve.json").read_bytes(), restarts)


@pytest.mark.parametrize("name", MODES)
def test_run_that_is_resumed_or_loses_its_worker_is_the_run_in_one_go_bit_for_bit(name: str, tmp_path: Path) -> None:
    mode = MODES[name]
    directories = [tmp_path / each for each in ("straight", "resumed", "struck")]
    for directory in directories:
        directory.mkdir()
    straight = run(mode, directories[0], 4)
    resumed = run(mode, directories[1], 2, 4)
    struck = run(mode, directories[2], 4, strike=2)
    assert straight.restarts == 0 and struck.restarts == 1
    assert any(rollout.final_steps.numel() for rollout in straight.rollouts)  # episodes end within rollouts
    for other in (resumed, struck):
        assert differences(straight.rollouts, other.rollouts) == []
        assert differences(straight.checkpoint, other.checkpoint) == []
        assert straight.curve == other.curve


@pytest.mark.slow
@pytest.mark.parametrize("name", MODES)
def test_run_of_every_mode_is_compiled_without_falling_back(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Without the code that would be generated, which takes most of a compiler's time; `test_update.py` compares gradients."""
    torch.compiler.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager", fullgraph=True))
    calls: list[Batch] = []
    compiled = CompiledGradients.__call__

    def counted(self: CompiledGradients, part: Batch, *arguments: Any) -> Any:
        calls.append(part)
        return compiled(self, part, *arguments)

    monkeypatch.setattr(CompiledGradients, "__call__", counted)
    run(replace(MODES[name], settings=MODES[name].settings | {"compile": True}), tmp_path, 1)
    assert [record.getMessage() for record in caplog.records if record.name == "lit_ppo.compilation"] == []
    assert len(calls) > PPOSettings().update_epochs  # the blank ones, and those of the update


def test_policy_that_is_loaded_alone_has_normaliser_and_memory(tmp_path: Path) -> None:
    run(MODES["everything"], tmp_path, 2)
    module = PPOModule.load_from_checkpoint(tmp_path / "checkpoints/last.ckpt", weights_only=True)
    normalizer = module.policy.observation_normalizer
    assert normalizer is not None and module.settings.normalize_observations is True
    moments = normalizer.leaves[0].moments  # type: ignore[operator, union-attr]
    assert moments.count == 2 * 2 * 16 and moments.mean.dtype == torch.float64
    assert abs(float(moments.mean[0]) - 5) < 3  # of `vector`
    obs = {leaf.path: torch.zeros(2, *leaf.shape, dtype=getattr(torch, leaf.dtype)) for leaf in module.spec.observation}
    obs["mode"] += 1
    assert module.spec.mask is not None
    obs[module.spec.mask] += 1
    obs["pair/0"] += moments.mean
    seen = normalizer(obs)["pair/0"]
    torch.testing.assert_close(seen, torch.zeros(2, 3), rtol=0, atol=1e-5)
    actions, state = module(obs)
    assert actions.shape == (2,) and state is not None and state.shape == (2, 10)
    _, later = module(obs, state)
    assert later is not None and not later.equal(state)


@pytest.mark.parametrize(
    ("horizon", "minibatch", "message"),
    [
        (18, 8, "data.horizon=18: expected a multiple of model.sequence_length=4"),
        (16, 3, "model.minibatch_size=3: expected at least model.sequence_length=4"),
    ],
)
def test_sequences_that_do_not_fit_are_refused(horizon: int, minibatch: int, message: str) -> None:
    data = KeptData(ANYTHING, num_envs=2, horizon=horizon)
    with pytest.raises(Exception) as refused:
        fit(1, module=PPOModule(data.spec, minibatch_size=minibatch, **GRU), data=data)
    assert str(refused.value) == message


def test_episode_that_cannot_be_restored_begins_anew_for_memory_and_statistics_too(tmp_path: Path) -> None:
    drifting: dict[str, Any] = {
        "env_id": "tests.fault_envs:Faulty-v0",
        "env_kwargs": {"drift": True},
        "num_envs": 2,
        "horizon": 2,
        "evaluation_envs": 2,
    }
    data = KeptData(**drifting)
    module = KeptModule(data.spec, minibatch_size=4, **(GRU | {"sequence_length": 2}))
    fit(1, RunCheckpoint(str(tmp_path)), module=module, data=data)
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)["KeptData"]
    assert saved["begins"] == [False, False] and saved["statistics"]["lengths"] == [2, 2]
    assert saved["policy_state"].any()
    data = KeptData(**drifting)
    module = KeptModule(data.spec, minibatch_size=4, **(GRU | {"sequence_length": 2}))
    fit(2, RunCheckpoint(str(tmp_path)), module=module, data=data, ckpt_path=str(tmp_path / "last.ckpt"))
    assert data.rollouts[0].begins.tolist() == [True, True]
    assert data._statistics.state_dict()["lengths"] == [2, 2]
    batch = module.batches[0]
    # the old state is not seen: from zeros it comes out the same
    assert batch.state is not None and batch.begins is not None and batch.begins.view(2, 2)[:, 0].all()
    blank = module.policy(batch.obs, torch.zeros_like(batch.state), batch.begins)
    assert blank.values.equal(module.policy(batch.obs, batch.state, batch.begins).values)
