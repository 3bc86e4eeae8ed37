"""`data.num_workers=auto`: when the environments are shared among workers, and that this changes no number."""

from itertools import count
from typing import Any

import numpy as np
import pytest

from lit_ppo.bridge import client, pool
from lit_ppo.bridge.client import EnvBridge
from lit_ppo.bridge.dealing import Dealing
from lit_ppo.bridge.settings import BridgeSettings, EnvironmentSettings

FAULTY = "tests.fault_envs:Faulty-v0"
ACTIONS = np.random.default_rng(0).integers(0, 2, (60, 4))


@pytest.mark.parametrize(
    ("step_s", "num_envs", "num_cores", "workers"),
    [
        (0.016, 16, 2, 2),  # 1 ms each: 8 ms for each worker
        (0.016, 16, 64, 8),  # 2 ms for each worker
        (0.016, 16, 1, 1),
        (0.0001, 8, 64, 1),  # CartPole
        (0.0039, 8, 64, 1),  # 2 ms for one and a half
        (1.0, 6, 4, 3),  # 4 does not divide 6
        (1.0, 7, 4, 1),
    ],
)
def test_each_worker_has_2_ms_of_each_step_and_a_core(step_s: float, num_envs: int, num_cores: int, workers: int) -> None:
    dealing, found = Dealing(num_envs, num_cores), None
    while found is None:
        found = dealing.workers_after(step_s)
    assert found == workers


def test_measurement_is_long_enough_and_not_too_long_and_forgives_a_slow_first_step() -> None:
    dealing = Dealing(16, 4)
    assert [dealing.workers_after(step_s) for step_s in (0.4, *[1e-4] * 15)] == [*[None] * 15, 1]
    dealing = Dealing(16, 4)
    assert [dealing.workers_after(0.3) for _ in range(3)] == [None, None, 4]


def bridge_of(env_kwargs: dict[str, Any] | None = None, num_workers: Any = "auto", **more: Any) -> EnvBridge:
    settings = BridgeSettings(num_workers=num_workers)
    return EnvBridge(
        EnvironmentSettings(FAULTY, env_kwargs), 4, lambda env, episode: 100 * env + episode, settings=settings, **more
    )


def steps_of(bridge: EnvBridge, actions: np.ndarray) -> list[bytes]:
    seen = []
    for step in map(bridge.step, actions):
        parts = (step.obs[""], step.rewards, step.terminated, step.truncated, step.valid)
        seen.append(b"".join(np.ascontiguousarray(part).tobytes() for part in parts))
    return seen


@pytest.fixture
def two_workers_after_20_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = []
    monkeypatch.setattr(
        Dealing, "workers_after", lambda self, step_s: steps.append(step_s) or (2 if len(steps) == 20 else None)
    )


@pytest.mark.usefixtures("two_workers_after_20_steps")
def test_sharing_in_the_middle_of_episodes_changes_no_number_and_no_checkpoint() -> None:
    with bridge_of(num_workers=1) as alone:
        first = alone.reset()[""].tobytes()
        expected = steps_of(alone, ACTIONS)
        state = alone.state_dict()
    with bridge_of() as bridge:
        assert bridge.reset()[""].tobytes() == first
        assert steps_of(bridge, ACTIONS[:19]) == expected[:19] and len(bridge.slices) == 1
        mark = bridge.mark()
        before = bridge.state_dict()
        assert steps_of(bridge, ACTIONS[19:30]) == expected[19:30] and len(bridge.slices) == 2
        assert bridge.state_dict(mark) == before
        bridge.slices[1].worker.kill()
        assert steps_of(bridge, ACTIONS[30:]) == expected[30:] and bridge.restarts == 1
        assert {**bridge.state_dict(), "restarts": 0} == state
    with bridge_of() as resumed:
        resumed.load_state_dict(before)
        assert steps_of(resumed, ACTIONS[19:]) == expected[19:]


@pytest.mark.usefixtures("two_workers_after_20_steps")
def test_environments_that_cannot_be_replayed_stay_where_they_are() -> None:
    events: list[str] = []
    with bridge_of({"drift": True}, on_event=events.append) as bridge:
        bridge.reset()
        [worker] = [part.worker for part in bridge.slices]
        steps_of(bridge, ACTIONS)
        assert [part.worker for part in bridge.slices] == [worker]
        assert bridge.restarts == bridge.abandoned_episodes == 0
    assert len(events) == 1 and "one worker goes on alone, since 2 cannot be used: replay: expected" in events[0]


@pytest.mark.usefixtures("two_workers_after_20_steps")
def test_environments_of_episodes_without_a_journal_stay_where_they_are() -> None:
    with bridge_of(num_workers=1) as alone:
        alone.reset()
        expected = steps_of(alone, ACTIONS)
    with bridge_of() as bridge:
        bridge.reset()
        assert steps_of(bridge, ACTIONS[:19]) == expected[:19]
        bridge._journal.lost[1] = True
        assert steps_of(bridge, ACTIONS[19:]) == expected[19:] and len(bridge.slices) == 1
        assert bridge.abandoned_episodes == 0


def test_default_run_of_a_fast_environment_starts_one_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool.os, "sched_getaffinity", lambda pid: range(64))
    monkeypatch.setattr(client, "perf_counter", count(step=0.0001).__next__)  # each step takes 100 us
    started = []
    start = pool.started_worker
    with bridge_of(start_worker=lambda *args: started.append(args) or start(*args)) as bridge:
        bridge.reset()
        steps_of(bridge, ACTIONS)
        assert len(started) == len(bridge.slices) == 1 and not bridge._pool.is_measuring
