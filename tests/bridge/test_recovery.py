"""Whatever exchange with a worker fails, and however: the caller gets the same numbers. Over a wire without processes."""

from typing import Any

import numpy as np
import pytest

from lit_ppo.bridge import restoration
from lit_ppo.bridge.client import EnvBridge
from lit_ppo.bridge.settings import BridgeSettings
from lit_ppo.errors import ProtocolError, WorkerExited, WorkerTimeout
from tests.fake_wire import FakeWire

NUM_ENVS, STEPS = 4, 24
ACTIONS = np.random.default_rng(0).integers(0, 2, (STEPS, NUM_ENVS))
PROBE_STEPS = 2, 2  # each step is an exchange that fails once
FAILURES = (WorkerExited, WorkerTimeout, ProtocolError)


class Exchanges:
    """Counts the exchanges of all workers, and lets some of them fail.

    Args:
        failing: Numbers of the exchanges that fail.
    """

    def __init__(self, failing: set[int] | None = None) -> None:
        self.failing, self.log, self.wires = failing or set(), list[str](), list[FakeWire]()

    def start(self, python: str | None, name: str, rows: range, confinement: dict[str, Any]) -> FakeWire:
        self.wires.append(FakeWire(name, rows, self.before))
        return self.wires[-1]

    def before(self, exchange: str) -> None:
        self.log.append(exchange)
        number = len(self.log) - 1
        if number in self.failing:
            raise FAILURES[number % 3](f"exchange {number} ({exchange}) fails")


def run(exchanges: Exchanges, vectorization: str) -> tuple[list[bytes], dict[str, Any], int]:
    """Reset, steps with a checkpoint in the middle; all that the caller saw, the checkpoint, and the number of restarts."""
    settings = BridgeSettings(vectorization=vectorization, num_workers=2, max_restarts=9)  # type: ignore[arg-type]
    seen = []
    with EnvBridge(
        "CartPole-v1", NUM_ENVS, lambda env, episode: 10 * env + episode, settings=settings, start_worker=exchanges.start
    ) as bridge:
        seen.append(bridge.reset()[""].tobytes())
        for k, actions in enumerate(ACTIONS):
            if k == STEPS // 2:
                state = bridge.state_dict()
            step = bridge.step(actions)
            ended = step.terminated | step.truncated
            parts = (step.obs[""], step.final_obs[""][ended], step.rewards, step.terminated, step.truncated, step.valid)
            seen += [np.ascontiguousarray(part).tobytes() for part in parts]
    assert not any(wire.is_open for wire in exchanges.wires)
    return seen, {key: value for key, value in state.items() if key != "restarts"}, bridge.restarts


@pytest.mark.parametrize("vectorization", ["sync", "native"])
def test_failure_of_any_one_exchange_changes_nothing(vectorization: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restoration, "PROBE_STEPS", PROBE_STEPS)
    undisturbed = Exchanges()
    expected = run(undisturbed, vectorization)
    assert expected[2] == 0 and {"make", "attach", "reset", "step"} <= set(undisturbed.log)
    for number in range(len(undisturbed.log)):
        seen, state, restarts = run(Exchanges({number}), vectorization)
        assert (seen, state) == expected[:2] and restarts == 1, f"exchange {number}: {undisturbed.log[number]}"


@pytest.mark.parametrize("vectorization", ["sync", "native"])
def test_failures_while_a_failure_is_made_good_change_nothing(vectorization: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restoration, "PROBE_STEPS", PROBE_STEPS)
    undisturbed = Exchanges()
    expected = run(undisturbed, vectorization)
    first = len(undisturbed.log) - 5  # in one of the last steps, so that there is something to replay
    once = Exchanges({first})
    run(once, vectorization)
    again = range(first + 1, first + 1 + len(once.log) - len(undisturbed.log))
    assert len(again) > 10
    for number in again:
        if number % 3 != 2 and first % 3 != 2:
            # the same step fails twice as a process: that is taken for a deterministic crash
            with pytest.raises((WorkerExited, WorkerTimeout), match="a deterministic crash"):
                run(Exchanges({first, number}), vectorization)
            continue
        seen, state, restarts = run(Exchanges({first, number}), vectorization)
        assert (seen, state) == expected[:2] and restarts == 2, number


@pytest.mark.parametrize("interval", [13, 4096])
@pytest.mark.parametrize("vectorization", ["sync", "native"])
def test_state_of_a_mark_is_that_of_its_moment_and_can_be_continued(
    vectorization: str, interval: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if a snapshot was taken since."""
    monkeypatch.setattr(restoration, "STEPS_PER_SNAPSHOT", interval)
    exchanges = Exchanges()
    settings = BridgeSettings(vectorization=vectorization, num_workers=2)  # type: ignore[arg-type]

    def bridge() -> EnvBridge:
        return EnvBridge(
            "CartPole-v1", NUM_ENVS, lambda env, episode: 10 * env + episode, settings=settings, start_worker=exchanges.start
        )

    with bridge() as straight:
        straight.reset()
        for actions in ACTIONS[:10]:
            obs = straight.step(actions).obs[""].copy()
        mark = straight.mark()
        expected = [straight.step(actions).obs[""].copy() for actions in ACTIONS[10:]]
        saves = exchanges.log.count("save")
        state = straight.state_dict(mark)
        assert exchanges.log.count("save") == saves  # what stands there suffices
    with bridge() as resumed:
        assert resumed.load_state_dict(state)[""].tobytes() == obs.tobytes()
        saves = exchanges.log.count("save")
        assert [resumed.step(actions).obs[""].tobytes() for actions in ACTIONS[10:13]] == [
            row.tobytes() for row in expected[:3]
        ]
        assert exchanges.log.count("save") == saves
        assert [resumed.step(a).obs[""].tobytes() for a in ACTIONS[13:15]] == [row.tobytes() for row in expected[3:5]]
        # the interval counts from the snapshot that was loaded, not from the loading
        is_due = (vectorization, interval) == ("native", 13)
        assert exchanges.log.count("save") == saves + (2 if is_due else 0)
        assert [resumed.step(actions).obs[""].tobytes() for actions in ACTIONS[15:]] == [row.tobytes() for row in expected[5:]]


def test_native_environments_are_saved_for_checkpoints_and_not_for_marks() -> None:
    exchanges = Exchanges()
    settings = BridgeSettings(vectorization="native")
    with EnvBridge(
        "CartPole-v1", NUM_ENVS, lambda env, episode: episode, settings=settings, start_worker=exchanges.start
    ) as bridge:
        bridge.reset()
        in_reset = exchanges.log.count("save")
        for actions in ACTIONS:
            bridge.mark()
            bridge.step(actions)
        assert exchanges.log.count("save") == in_reset
        bridge.state_dict()
        assert exchanges.log.count("save") == in_reset + 1


def test_mark_outlives_the_history() -> None:
    exchanges = Exchanges()
    with EnvBridge("CartPole-v1", 1, lambda env, episode: episode, start_worker=exchanges.start) as bridge:
        bridge.reset()
        bridge.step(np.zeros(1, np.int64))
        mark, state = bridge.mark(), bridge.state_dict()
        for _ in range(bridge.history_steps + 10):
            bridge.step(np.zeros(1, np.int64))
        assert bridge.state_dict(mark) == state
