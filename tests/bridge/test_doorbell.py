"""Doorbell: polls as long as polling is the faster way to wait, and sleeps when it is not."""

from collections.abc import Callable

import pytest

from lit_ppo.bridge import doorbell
from lit_ppo.bridge.doorbell import Doorbell


class Machine:
    """A clock that runs only while somebody looks at it or yields, and a peer that answers when its time has come."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.answer_at, self.number = 0.0, float("inf"), 0
        self.words = memoryview(bytearray(16)).cast("Q")
        monkeypatch.setattr(doorbell, "perf_counter", self.clock)
        monkeypatch.setattr(doorbell.os, "sched_yield", lambda: self.pass_time(1e-6))
        self.doorbell = Doorbell(self.words, 1)

    def clock(self) -> float:
        self.pass_time(1e-7)
        return self.now

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        if self.now >= self.answer_at:
            self.words[1] = self.number

    def wait(self, if_polled_s: float, if_slept_s: float) -> str:
        """One wait for an answer that takes so long if it is polled for, and so long if it is slept for: how it went."""
        self.number += 1
        start, self.answer_at = self.now, self.now + if_polled_s
        if self.doorbell.poll(self.number):
            return "polled"
        in_vain = self.now - start
        self.now = max(start + if_slept_s, self.now)
        self.words[1] = self.number
        self.doorbell.slept(self.now - start - in_vain)
        return "slept after polling" if in_vain > 1e-5 else "slept"


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    monkeypatch.setattr(doorbell, "_ORDERED_STORES", True)
    return Machine(monkeypatch)


def ways(wait: Callable[[], str], count: int = 320) -> dict[str, float]:
    went = [wait() for _ in range(count)]
    return {way: went.count(way) / count for way in set(went)}


def test_number_that_is_there_already_is_no_wait(machine: Machine) -> None:
    machine.words[1] = 7
    assert machine.doorbell.poll(7) and machine.now == 0.0


def test_on_an_idle_machine_almost_all_waits_are_polled(machine: Machine) -> None:
    assert ways(lambda: machine.wait(if_polled_s=30e-6, if_slept_s=130e-6))["polled"] > 0.95


def test_on_a_busy_machine_almost_all_waits_are_slept_through(machine: Machine) -> None:
    ways(lambda: machine.wait(if_polled_s=30e-6, if_slept_s=130e-6))
    assert ways(lambda: machine.wait(if_polled_s=3e-3, if_slept_s=200e-6)).get("slept", 0) > 0.8
    assert ways(lambda: machine.wait(if_polled_s=3e-3, if_slept_s=200e-6)).get("slept", 0) > 0.95


def test_when_a_busy_machine_becomes_idle_again_waits_are_polled_again(machine: Machine) -> None:
    ways(lambda: machine.wait(if_polled_s=3e-3, if_slept_s=200e-6))
    ways(lambda: machine.wait(if_polled_s=30e-6, if_slept_s=130e-6), 2000)
    assert ways(lambda: machine.wait(if_polled_s=30e-6, if_slept_s=130e-6))["polled"] > 0.95


def test_wait_for_a_slow_environment_is_not_polled_through(machine: Machine) -> None:
    start = machine.now
    assert machine.wait(if_polled_s=2.0, if_slept_s=2.0) == "slept after polling"
    assert machine.doorbell._spent_s < 5e-3 and machine.now - start >= 2.0


def test_nothing_is_polled_where_stores_may_be_seen_out_of_order(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doorbell, "_ORDERED_STORES", False)
    assert set(ways(lambda: machine.wait(if_polled_s=30e-6, if_slept_s=130e-6))) == {"slept"}
