"""Reports of faults, played again."""

import json
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest

from lit_ppo.bridge.client import EnvBridge
from lit_ppo.bridge.settings import BridgeSettings, EnvironmentSettings
from lit_ppo.contract import ContractSettings
from lit_ppo.errors import BridgeError, ConfigError, EnvironmentFault
from lit_ppo.replay import is_same, replay

FAULTY = "tests.fault_envs:Faulty-v0"


def seed_of(env: int, episode: int) -> int:
    return 100 * env + episode + 1


def report_of(
    env_kwargs: dict[str, Any],
    env_id: str = FAULTY,
    actions: Callable[[], np.ndarray] = lambda: np.zeros(2, np.int64),
    obs_keys: list[str] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """The report of the fault that such an environment comes to, in two rows of which the second is at fault."""
    with EnvBridge(EnvironmentSettings(env_id, env_kwargs, obs_keys=obs_keys), 2, seed_of, **options) as bridge:
        try:
            bridge.reset()
            for _ in range(100):
                bridge.step(actions())
        except (EnvironmentFault, BridgeError) as fault:
            return fault.report
    raise AssertionError("the fault did not happen")


@pytest.mark.parametrize("call", ["step", "reset"])
def test_fault_of_one_episode_happens_again_in_its_step_or_in_the_reset_that_begins_it(call: str) -> None:
    report = report_of({"fault": "raise", "at_step": 2, "of_seeds": {str(seed_of(1, 1)): call}})
    again = replay(report)
    assert again is not None and "the pole is on fire" in str(again)
    assert again.report["seed"] == report["seed"] and again.report["actions"] == report["actions"]
    assert is_same(again, report)


@pytest.mark.parametrize("action", ["box", "multi_discrete", "multi_binary"])
def test_fault_in_a_part_of_a_nested_observation_happens_again_after_the_same_actions(action: str) -> None:
    space: Any = gymnasium.make("tests.fault_envs:Sum-v0", action=action).action_space
    space.seed(3)
    found = report_of(
        {"action": action},
        "tests.fault_envs:Sum-v0",
        lambda: np.stack([0 * space.sample(), np.abs(space.sample())]),  # the sum of row 0 stays 0
        obs_keys=["camera", "pair"],
        contract=ContractSettings(check_membership="error"),
    )
    report = json.loads(json.dumps(found))  # as it stands in its file
    again = replay(report)
    assert len(report["actions"]) > 1 and report["env"] == 1 and report["obs_keys"] == ["camera", "pair"]
    assert again is not None and report["field"] == "obs.pair/0[1, 0]" and again.report["field"] == "obs.pair/0[0, 0]"
    assert again.report["value"] == report["value"]  # the sum of all actions, to the last bit
    assert again.report["actions"] == report["actions"] and is_same(again, report)


def test_fault_that_does_not_happen_again_is_none() -> None:
    report = report_of({"fault": "raise", "at_step": 2, "of_seeds": {str(seed_of(1, 0)): "step"}})
    assert replay({**report, "seed": 12345}) is None


@pytest.mark.parametrize(("fault", "call"), [("segv", "step"), ("exit 7", "reset"), ("hang", "step"), ("kill", "step")])
def test_worker_that_dies_in_an_environment_dies_again_in_the_same_step(fault: str, call: str) -> None:
    kwargs = {"fault": fault, "of_seeds": {str(seed_of(1, 1)): call}}
    report = json.loads(json.dumps(report_of(kwargs, settings=BridgeSettings(max_restarts=0, step_timeout_s=1.0))))
    again = replay(report)
    assert isinstance(again, BridgeError) and is_same(again, report)
    assert (again.report["env"], again.report["step"]) == (0, report["step"])
    other = replay({**report, "env_kwargs": {**kwargs, "fault": "exit 7" if fault == "segv" else "segv"}})
    assert other is not None and not is_same(other, report)  # another signal is another fault


@pytest.mark.parametrize("change", [{"kind": "raised"}, {"field": "obs[1, 0]"}, {"field": "rewards[1]"}, {"step": 4}])
def test_fault_of_another_kind_field_or_step_is_another_fault(change: dict[str, Any]) -> None:
    report = report_of({"fault": "obs nan"})
    again = replay(report)
    assert again is not None and report["field"] == "obs[0, 1]"
    assert is_same(again, report) and is_same(again, {**report, "field": "obs[7, 1]"})  # the row is not the fault's
    assert not is_same(again, {**report, **change})


def test_replay_has_the_limits_of_the_run() -> None:
    """With them the file that is written is too large; without them nothing happens."""
    kwargs = {"fault": "write 64 KiB", "row": 0}
    report = report_of(kwargs, settings=BridgeSettings(rlimits={"fsize": 1 << 15}))
    again = replay(report)
    assert report["kind"] == "raised" and "File too large" in report["value"]
    assert again is not None and is_same(again, report)
    assert replay({**report, "processes": {**report["processes"], "rlimits": None}}) is None


def test_replay_has_the_interpreter_of_the_run() -> None:
    report = report_of({"fault": "raise"})
    with pytest.raises(ConfigError, match=r"data\.python=/no/such/python"):
        replay({**report, "processes": {**report["processes"], "python": "/no/such/python"}})


def test_native_fault_is_not_replayed_as_if_it_were_one_environments() -> None:
    report = report_of({"fault": "raise"})
    with pytest.raises(ConfigError, match="native rows share one random stream"):
        replay({**report, "processes": {**report["processes"], "vectorization": "native"}})
