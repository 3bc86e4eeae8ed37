"""The last steps of all environments, copied out of shared memory: what is checked is what is used."""

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lit_ppo.bridge.journal import Journal
from lit_ppo.spaces import Leaves, Row

# Little enough for a core's own cache: with 64 MiB every step was written to memory that no cache had.
_HISTORY_BYTES: Final = 2 << 20
_MAX_HISTORY_STEPS: Final = 256
# Digests are computed while the workers step: of so much at a time that they are done before the workers are.
_BYTES_OF_A_DIGEST: Final = 1 << 15


class Slot(NamedTuple):
    """Private memory of one step, as the caller and the journal see it, and the part of it that each worker fills."""

    rows: NDArray[np.uint8]  # (N, size), what to act on next
    rewards: NDArray[np.float64]
    flags: NDArray[np.uint8]  # (4, N)
    obs: Leaves  # of `rows`
    final_obs: Leaves  # of the final rows; of `rows` where there are none
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    invalid: NDArray[np.bool_]
    parts: list[tuple[NDArray[np.uint8], NDArray[np.float64], NDArray[np.uint8], NDArray[np.uint8]]]
    # rows, rewards, flags and final rows of each worker


class History:
    """A ring of slots; their views are made once, since making them costs as much as the copies that go through them.

    Args:
        row: How leaves lie in a row.
        num_envs: N.
        has_final_rows: As in `frame.FrameLayout`: episodes end and begin in one step.
        slices: The rows of each worker.
        journal: Its newest steps are kept here, until it has their digests and beyond.
    """

    def __init__(self, row: Row, num_envs: int, has_final_rows: bool, slices: list[slice], journal: Journal) -> None:
        step_bytes = num_envs * (2 * row.size + 8 + 4)
        self.steps = max(4, min(_MAX_HISTORY_STEPS, _HISTORY_BYTES // step_bytes))
        self._steps_of_a_digest = max(1, min(self.steps // 2, _BYTES_OF_A_DIGEST // step_bytes))
        self._rows = np.zeros((self.steps, num_envs, row.size), np.uint8)
        self._final_rows = np.zeros((self.steps, num_envs, row.size), np.uint8) if has_final_rows else self._rows
        self._rewards = np.zeros((self.steps, num_envs))
        self._flags = np.zeros((self.steps, 4, num_envs), np.uint8)
        self._journal = journal
        self._slots = [self._slot(k, row, slices) for k in range(self.steps)]

    def _slot(self, k: int, row: Row, slices: list[slice]) -> Slot:
        rows, final_rows, rewards, flags = self._rows[k], self._final_rows[k], self._rewards[k], self._flags[k]
        terminated, truncated, _, invalid = flags.view(np.bool_)
        parts = [(rows[part], rewards[part], flags[:, part], final_rows[part]) for part in slices]
        obs, final_obs = row.views(rows), row.views(final_rows)
        return Slot(rows, rewards, flags, obs, final_obs, terminated, truncated, invalid, parts)

    def slot(self) -> Slot:
        """Where the step goes that is next in the journal."""
        return self._slots[self._journal.steps % self.steps]

    def digest_when_due(self) -> None:
        """Digest the steps that have none, once there are enough of them."""
        if self._journal.steps - self._journal.digested >= self._steps_of_a_digest:
            self.digest()

    def digest(self) -> None:
        """Give the journal the digests it lacks, while the observations are still here."""
        while missing := self._journal.steps - self._journal.digested:
            first = (self._journal.steps - missing) % self.steps
            block = slice(first, min(first + missing, self.steps))
            self._journal.add_digests(self._rows[block], self._rewards[block])
