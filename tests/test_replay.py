"""Reports of faults, played again."""

from typing import Any

import numpy as np
import pytest

from lit_ppo.bridge.client import EnvBridge
from lit_ppo.errors import EnvironmentFault
from lit_ppo.replay import replay

FAULTY = "tests.fault_envs:Faulty-v0"


def seed_of(env: int, episode: int) -> int:
    return 100 * env + episode + 1


def report_of(env_kwargs: dict[str, Any]) -> dict[str, Any]:
    """The report of the fault that such an environment comes to, in two rows of which the second is at fault."""
    with EnvBridge(FAULTY, 2, seed_of, env_kwargs=env_kwargs) as bridge:
        try:
            bridge.reset()
            for _ in range(100):
                bridge.step(np.zeros(2, np.int64))
        except EnvironmentFault as fault:
            return fault.report
    raise AssertionError("the fault did not happen")


@pytest.mark.parametrize("call", ["step", "reset"])
def test_fault_of_one_episode_happens_again_in_its_step_or_in_the_reset_that_begins_it(call: str) -> None:
    report = report_of({"fault": "raise", "at_step": 2, "of_seeds": {str(seed_of(1, 1)): call}})
    again = replay(report)
    assert again is not None and "the pole is on fire" in str(again)
    assert again.report["seed"] == report["seed"] and again.report["actions"] == report["actions"]


def test_fault_that_does_not_happen_again_is_none() -> None:
    report = report_of({"fault": "raise", "at_step": 2, "of_seeds": {str(seed_of(1, 0)): "step"}})
    assert replay({**report, "seed": 12345}) is None
