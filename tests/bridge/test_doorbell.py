"""Doorbell: polls as long as that pays, and rests where it takes the core from somebody else."""

import itertools

import pytest

from lit_ppo.bridge import doorbell
from lit_ppo.bridge.doorbell import Doorbell


class Machine:
    """A clock that runs only while somebody looks at it or yields, and a peer that answers when its time has come."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.answer_at, self.number, self.yield_s = 0.0, float("inf"), 0, 1e-6
        self.words = memoryview(bytearray(16)).cast("Q")
        monkeypatch.setattr(doorbell, "perf_counter", self.clock)
        monkeypatch.setattr(doorbell.os, "sched_yield", lambda: self.pass_time(self.yield_s))
        monkeypatch.setattr(doorbell, "_ORDERED_STORES", True)
        self.doorbell = Doorbell(self.words, 1)

    def clock(self) -> float:
        self.pass_time(1e-7)
        return self.now

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        if self.now >= self.answer_at:
            self.words[1] = self.number

    def wait(self, seconds: float) -> tuple[bool, float]:
        """One wait for an answer that takes so long: whether it was polled for, and how long something was polled for."""
        self.number += 1
        start, self.answer_at = self.now, self.now + seconds
        polled = self.doorbell.poll(self.number)
        spent = self.now - start
        if not polled:
            self.now = max(self.answer_at, self.now)
            self.words[1] = self.number
            self.doorbell.waited(self.now - start)
        return polled, spent


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


def test_answers_that_come_soon_are_polled_for(machine: Machine) -> None:
    assert all(machine.wait(100e-6)[0] for _ in range(100))


def test_number_that_is_there_already_is_seen_at_once(machine: Machine) -> None:
    machine.words[1] = 7
    assert machine.doorbell.poll(7) and machine.now < 1e-6


def test_answers_that_never_come_soon_are_hardly_polled_for(machine: Machine) -> None:
    spent = [machine.wait(20e-3)[1] for _ in range(100)]
    assert spent[0] < 5e-3 and max(spent[50:]) < 50e-6


def test_one_slow_answer_does_not_end_polling(machine: Machine) -> None:
    for _ in range(50):
        machine.wait(100e-6)
    assert not machine.wait(2.0)[0]
    assert machine.wait(100e-6)[0]


def test_where_somebody_else_wants_the_core_waits_are_slept_through_for_longer_and_longer(machine: Machine) -> None:
    machine.yield_s = 300e-6  # somebody else ran meanwhile
    waits = [machine.wait(1e-3) for _ in range(200)]
    assert not any(polled for polled, _ in waits)
    polls = [number for number, (_, spent) in enumerate(waits) if spent > 100e-6]
    rests = [later - earlier for earlier, later in itertools.pairwise(polls)]
    assert rests == sorted(rests) and rests[-1] > rests[0] > 10


def test_polling_comes_back_when_the_core_is_free_again(machine: Machine) -> None:
    machine.yield_s = 300e-6
    for _ in range(20):
        machine.wait(1e-3)
    machine.yield_s = 1e-6
    polled = [machine.wait(100e-6)[0] for _ in range(200)]
    assert not polled[0] and all(polled[-100:])


def test_nothing_is_polled_for_where_stores_may_be_seen_out_of_order(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doorbell, "_ORDERED_STORES", False)
    assert [machine.wait(100e-6) for _ in range(10)] == [(False, 0.0)] * 10
