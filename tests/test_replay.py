"""Reports of faults, played again."""

import json
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest

from lit_ppo.bridge.client import EnvBridge
from lit_ppo.bridge.settings import EnvironmentSettings
from lit_ppo.contract import ContractSettings
from lit_ppo.errors import EnvironmentFault
from lit_ppo.replay import replay

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
        except EnvironmentFault as fault:
            return fault.report
    raise AssertionError("the fault did not happen")


@pytest.mark.parametrize("call", ["step", "reset"])
def test_fault_of_one_episode_happens_again_in_its_step_or_in_the_reset_that_begins_it(call: str) -> None:
    report = report_of({"fault": "raise", "at_step": 2, "of_seeds": {str(seed_of(1, 1)): call}})
    again = replay(report)
    assert again is not None and "the pole is on fire" in str(again)
    assert again.report["seed"] == report["seed"] and again.report["actions"] == report["actions"]


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
    assert again.report["actions"] == report["actions"] and again.report["step"] == report["step"]


def test_fault_that_does_not_happen_again_is_none() -> None:
    report = report_of({"fault": "raise", "at_step": 2, "of_seeds": {str(seed_of(1, 0)): "step"}})
    assert replay({**report, "seed": 12345}) is None
