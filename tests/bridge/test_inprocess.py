"""The worker without a process: the numbers of the bridge, and an interpreter that stays as it was."""

import gc
import os
import signal
import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from lit_ppo.bridge.client import EnvBridge
from lit_ppo.bridge.settings import BridgeSettings, EnvironmentSettings
from lit_ppo.errors import ConfigError, EnvironmentRaised
from tests.test_resume import Run, differences

FAULTY = "tests.fault_envs:Faulty-v0"


def seed_of(env: int, episode: int) -> int:
    return 1000 * env + episode


def bridge_of(env_kwargs: dict[str, Any] | None = None, **settings: Any) -> EnvBridge:
    return EnvBridge(
        EnvironmentSettings(FAULTY, env_kwargs), 2, seed_of, settings=BridgeSettings(bridge="inprocess", **settings)
    )


def play(bridge: EnvBridge, steps: int) -> list[bytes]:
    seen = [bridge.reset()[""].tobytes()]
    for k in range(steps):
        step = bridge.step(np.full(2, k % 2))
        seen += [step.obs[""].tobytes(), step.rewards.tobytes(), step.terminated.tobytes(), step.truncated.tobytes()]
    return seen


@pytest.mark.parametrize("vectorization", ["sync", "native"])
def test_run_in_process_is_that_of_the_bridge_and_each_resumes_the_other(
    vectorization: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = {"num_envs": 4, "horizon": 13, "vectorization": vectorization}
    own, joined = ({**settings, "bridge": kind} for kind in ("process", "inprocess"))
    straight = Run("straight", [4], own)
    for name, parts in {"in process": [joined, joined], "first": [joined, own], "second": [own, joined]}.items():
        run = Run(name, [2, 4], parts)
        found = differences(run.checkpoint, straight.checkpoint)
        # the setting itself is a hyperparameter, and may differ
        assert [line for line in found if not line.startswith(".datamodule_hyper_parameters.bridge:")] == []
        assert run.curve.read_bytes() == straight.curve.read_bytes()


def test_environment_that_is_registered_here_alone_is_found_in_process_only() -> None:
    gymnasium.register("OnlyHere-v0", entry_point=lambda: gymnasium.make(FAULTY).unwrapped)
    try:
        with EnvBridge("OnlyHere-v0", 1, seed_of, settings=BridgeSettings(bridge="inprocess")) as bridge:
            assert bridge.reset()[""].shape == (1, 3)
        with pytest.raises(ConfigError, match="registered in this process only"):
            EnvBridge("OnlyHere-v0", 1, seed_of)
    finally:
        del gymnasium.registry["OnlyHere-v0"]


def test_interpreter_stays_as_it_was() -> None:
    def state() -> list[Any]:
        handlers = [signal.getsignal(number) for number in signal.valid_signals()]
        streams = [os.fstat(descriptor)[:2] for descriptor in (0, 1, 2)]
        return [handlers, streams, sys.stdin, sys.stdout, sys.stderr, os.getcwd(), gc.get_freeze_count(), sorted(os.environ)]

    before = state()
    with bridge_of() as bridge:
        play(bridge, 30)
        assert state() == before
    assert state() == before


def test_exception_is_a_fault_and_a_replacement_is_fresh() -> None:
    with bridge_of({"fault": "raise"}) as bridge, pytest.raises(EnvironmentRaised, match="the pole is on fire"):
        play(bridge, 10)
    settings = {"fault": "raise", "of_seeds": {"1001": "step"}}
    with bridge_of() as undisturbed, bridge_of(settings, on_violation="restart") as bridge:
        bridge.reset(), undisturbed.reset()
        for _ in range(40):
            ours, theirs = bridge.step(np.zeros(2, np.int64)), undisturbed.step(np.zeros(2, np.int64))
            assert ours.obs[""][0].tobytes() == theirs.obs[""][0].tobytes()  # the other environment goes on
        assert bridge.restarts == bridge.abandoned_episodes == 1


def test_environment_that_exits_does_not_end_the_process() -> None:
    with bridge_of({"fault": "sys.exit"}) as bridge, pytest.raises(EnvironmentRaised, match="raised in step: SystemExit: 3"):
        play(bridge, 13)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_workers", 2),
        ("python", "/bin/true"),
        ("sandbox", "strict"),
        ("rlimits", {"as": 1}),
        ("worker_cwd", "/usr/share"),
        ("worker_env", ["HOME"]),
    ],
)
def test_setting_that_needs_a_process_is_refused(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"data\.{name}=.*: needs a process; use data.bridge=process"):
        BridgeSettings(bridge="inprocess", **{name: value})
