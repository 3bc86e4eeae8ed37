"""How many faults a run survives, and how long it waits before each new worker. Pure: no clock, no process."""

from typing import Final

_BACK_OFF_S: Final = 0.02
_MAX_BACK_OFF_S: Final = 2.0


class RestartBudget:
    """Counts the faults of the last `window` steps.

    Args:
        max_restarts: Faults that are survived in every window.
        window: Length of the window, steps.
    """

    def __init__(self, max_restarts: int, window: int) -> None:
        self._max_restarts, self._window = max_restarts, window
        self._faults: list[int] = []  # the steps at which they happened
        self._last_crash: tuple[int, int] | None = None  # worker and step

    def spend(self, step: int, crashed_worker: int | None) -> str | None:
        """Count one more fault.

        Args:
            step: Steps of all environments so far.
            crashed_worker: Number of the worker that failed as a process; None if an environment was at fault.

        Returns:
            None to go on, or the reason to give up.
        """
        self._faults = [earlier for earlier in self._faults if step - earlier < self._window] + [step]
        if len(self._faults) > self._max_restarts:
            return (
                f"{len(self._faults)} faults within {self._window} steps are more than data.max_restarts={self._max_restarts}"
            )
        if crashed_worker is not None:
            if self._last_crash == (crashed_worker, step):
                return "the same step killed the worker twice: a deterministic crash"
            self._last_crash = crashed_worker, step
        return None

    def succeeded(self) -> None:
        """What failed has succeeded now: another crash at this step is a new one."""
        self._last_crash = None

    @property
    def back_off_s(self) -> float:
        """How long to wait before the next worker: nothing after the first fault in a window, then twice as long each time."""
        return min(_MAX_BACK_OFF_S, _BACK_OFF_S * (2.0 ** (len(self._faults) - 1) - 1))
