"""What competitors in training throughput share: the work, and the clock that gives them turns."""

import json
import os
import sys
from time import perf_counter
from typing import Any, Final

from benchmarks.memory import peak_rss_mib

HORIZON: Final = 128
UPDATE_EPOCHS: Final = 4
LEARNING_RATE: Final = 2.5e-4


class Turns:
    """Waits for `go` on standard input before each turn; says how long the turn took."""

    def __init__(self) -> None:
        self._start: float | None = None
        self._phases: dict[str, float] = {}

    def ready(self) -> None:
        """Everything is made and warm."""
        self._tell(rss_mib=peak_rss_mib(os.getpid()))

    def next(self) -> bool:
        """Wait for a turn; false when there is none left."""
        line = sys.stdin.readline()
        self._phases, self._start = {}, perf_counter()
        return line.strip() == "go"

    def add(self, phase: str, seconds: float) -> None:
        """Part of this turn was spent on `phase`."""
        self._phases[phase] = self._phases.get(phase, 0.0) + seconds

    def done(self) -> None:
        """The turn is over."""
        assert self._start is not None
        self._tell(seconds=perf_counter() - self._start, phases=self._phases, rss_mib=peak_rss_mib(os.getpid()))

    @staticmethod
    def _tell(**message: Any) -> None:
        sys.__stdout__.write(json.dumps(message) + "\n")  # type: ignore[union-attr]
        sys.__stdout__.flush()  # type: ignore[union-attr]


class NoMoreTurns(Exception):
    """Ends a training loop that has no way to be asked to stop."""


class UpdateCounter:
    """Turns for a loop that is not ours: `updated` is called after each update, and every so many of them are a turn.

    Args:
        updates_per_turn: How many; as many go before the first turn, as its warm-up.
    """

    def __init__(self, updates_per_turn: int) -> None:
        self.turns, self._updates, self._updates_per_turn = Turns(), 0, updates_per_turn

    def updated(self) -> None:
        """An update is over.

        Raises:
            NoMoreTurns: So was the last turn.
        """
        self._updates += 1
        if self._updates % self._updates_per_turn:
            return
        if self._updates == self._updates_per_turn:
            self.turns.ready()
        else:
            self.turns.done()
        if not self.turns.next():
            raise NoMoreTurns
