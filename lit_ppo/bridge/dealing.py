"""How many workers share the environments with `data.num_workers=auto`. Pure: no clock, no process.

A second worker costs a start and a wake-up in each step, so it pays only where the environments keep it busy. How long they
take is measured in the first steps of the run itself: nothing is started or stepped to find out.
"""

from statistics import median
from typing import Final

_LEAST_SHARE_S: Final = 2e-3  # of a step, for each worker; below this the trainer polls, and would take a worker's core
_MEASURED_STEPS: Final = 16
_LEAST_MEASURED_STEPS: Final = 3  # the first one may load what the others find
_LONGEST_MEASUREMENT_S: Final = 0.5


class Dealing:
    """Measures steps until it is known how many workers are worth their while.

    Args:
        num_envs: N.
        num_cores: Cores that this process may use.
    """

    def __init__(self, num_envs: int, num_cores: int) -> None:
        self._num_envs, self.num_cores = num_envs, num_cores
        self._measured: list[float] = []

    def workers_after(self, step_s: float) -> int | None:
        """Take in one more step.

        Args:
            step_s: How long one worker took to step all environments, seconds.

        Returns:
            How many workers to use; None while that is not known yet.
        """
        self._measured.append(step_s)
        is_enough = len(self._measured) >= _MEASURED_STEPS or sum(self._measured) >= _LONGEST_MEASUREMENT_S
        if not is_enough or len(self._measured) < _LEAST_MEASURED_STEPS:
            return None
        most = min(self.num_cores, int(median(self._measured) / _LEAST_SHARE_S))
        return next((count for count in range(most, 1, -1) if self._num_envs % count == 0), 1)
