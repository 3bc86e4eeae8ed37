"""Waiting for the other side's number in shared memory: by polling or by sleeping, whichever has been the faster of late.

On an idle machine a polled hand-over takes a few microseconds, and waking a sleeping peer on another core some hundred. On a
busy one it is the other way round: a side that polls takes the core from the one it waits for. No constant knows which machine
this is, so both ways are tried now and then, and the better one is used.
"""

import os
import platform
from time import perf_counter
from typing import Final

# Elsewhere a core may show another's stores out of order; a pipe's system calls are barriers there, plain loads are not.
_ORDERED_STORES: Final = platform.machine() in ("x86_64", "AMD64")
_CHECKS_PER_YIELD: Final = 16
_LEAST_BUDGET_S: Final = 100e-6
_MOST_BUDGET_S: Final = 4e-3
_MOST_WAIT_S: Final = 10e-3  # of one wait, in the running means: an environment that took a second says nothing of the machine
_TRIAL_EVERY: Final = 32  # waits; the other way is tried once in so many
_WEIGHT: Final = 0.1  # of the newest wait in the running mean


class Doorbell:
    """Polls one word of a shared mapping, as long as that pays.

    A wait is a call of `poll` and, if that was in vain, the caller's own sleep, which it reports with `slept`.

    Args:
        words: The mapping as 8-byte words.
        index: Which word the other side writes its number to.
    """

    def __init__(self, words: "memoryview[int]", index: int) -> None:
        self._words, self._index = words, index
        self._polled_s, self._slept_s = 50e-6, 100e-6  # running means of the waits that began by polling, by sleeping
        self._waits = 0
        self._polls = True  # how the present wait began
        self._spent_s = 0.0  # on polling in vain

    def poll(self, number: int) -> bool:
        """Wait for `number` by polling, if that is the better way; false when it has not come."""
        words, index = self._words, self._index
        if words[index] == number:
            return True
        self._waits += 1
        self._polls = _ORDERED_STORES and (self._polled_s <= self._slept_s) != (self._waits % _TRIAL_EVERY == 0)
        self._spent_s = 0.0
        if not self._polls:
            return False
        now = start = perf_counter()
        end = start + min(_MOST_BUDGET_S, max(_LEAST_BUDGET_S, 4 * self._polled_s))
        while now < end:
            for _ in range(_CHECKS_PER_YIELD):
                if words[index] == number:
                    self._polled_s += _WEIGHT * (perf_counter() - start - self._polled_s)
                    return True
            os.sched_yield()
            now = perf_counter()
        self._spent_s = now - start
        return words[index] == number

    def slept(self, seconds: float) -> None:
        """Learn from a wait that ended in sleep."""
        seconds = min(seconds + self._spent_s, _MOST_WAIT_S)
        if self._polls:
            self._polled_s += _WEIGHT * (seconds - self._polled_s)
        else:
            self._slept_s += _WEIGHT * (seconds - self._slept_s)
