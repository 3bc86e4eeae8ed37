"""Polls the other side's number in shared memory for as long as that is quicker than sleeping; after that the caller sleeps.

Waking a sleeping process on another core takes some 100 us, a polled hand-over a few. But a process that polls too long takes
the core from the one that it waits for. So the time for polling follows past waits, and polling yields to other processes.
"""

import os
import platform
from time import perf_counter
from typing import Final

# Elsewhere a core may show another's stores out of order; a pipe's system calls are barriers there, plain loads are not.
_ORDERED_STORES: Final = platform.machine() in ("x86_64", "AMD64")
_CHECKS_PER_YIELD: Final = 16
_LEAST_BUDGET_S: Final = 20e-6
_MOST_BUDGET_S: Final = 4e-3
_CONTENDED_YIELD_S: Final = 150e-6  # a yield that took this long let another process run
_LEAST_REST: Final = 16  # waits that are slept through after a contended one; doubled each time it happens again
_MOST_REST: Final = 1024
_TREND: Final = 0.05  # weight of the newest wait in the running mean


class Doorbell:
    """Polls one word of a shared mapping.

    Args:
        words: The mapping as 8-byte words.
        index: Which word the other side writes its number to.
    """

    def __init__(self, words: "memoryview[int]", index: int) -> None:
        self._words, self._index = words, index
        self._mean_wait_s = 200e-6
        self._rest, self._next_rest = 0, _LEAST_REST

    def budget_s(self) -> float:
        """How long polling is worth while: some times the usual wait, or hardly at all if that is too long."""
        if self._mean_wait_s > _MOST_BUDGET_S / 2:
            return _LEAST_BUDGET_S
        return min(_MOST_BUDGET_S, max(_LEAST_BUDGET_S, 3 * self._mean_wait_s))

    def poll(self, number: int) -> bool:
        """Wait for `number` by polling; false when it has not come within the budget."""
        words, index = self._words, self._index
        if not _ORDERED_STORES:
            return False
        if self._rest:  # a sleeper is woken ahead of those that compute; one that polls has used up its turn
            self._rest -= 1
            return words[index] == number
        now = start = perf_counter()
        end = start + self.budget_s()
        while True:
            for _ in range(_CHECKS_PER_YIELD):
                if words[index] == number:
                    self.waited(perf_counter() - start)
                    self._next_rest = max(_LEAST_REST, self._next_rest - 1)
                    return True
            os.sched_yield()
            before, now = now, perf_counter()
            if now - before > _CONTENDED_YIELD_S:
                self._rest, self._next_rest = self._next_rest, min(_MOST_REST, 2 * self._next_rest)
                return words[index] == number
            if now > end:
                return words[index] == number

    def waited(self, seconds: float) -> None:
        """Learn from a wait that has ended, by polling or by blocking."""
        self._mean_wait_s += _TREND * (min(seconds, 2 * _MOST_BUDGET_S) - self._mean_wait_s)
