"""The last steps of all environments, copied out of shared memory: what is checked is what is used."""

from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lit_ppo.bridge.journal import Journal
from lit_ppo.spaces import EnvSpec

_HISTORY_BYTES: Final = 64 << 20
_MAX_HISTORY_STEPS: Final = 256
# Digests are computed while the workers step: of so much at a time that they are done before the workers are.
_BYTES_OF_A_DIGEST: Final = 1 << 15


class Slot(NamedTuple):
    """Private memory of one step, as the caller and the journal see it, and the part of it that each worker fills."""

    observations: NDArray[Any]  # (K, N, *obs_shape), as in `frame.FrameLayout`
    rewards: NDArray[np.float64]
    flags: NDArray[np.uint8]  # (4, N)
    obs: NDArray[Any]  # (N, *obs_shape), to act on next
    next_obs: NDArray[Any]  # (N, *obs_shape), what the step led to
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    parts: list[tuple[NDArray[Any], NDArray[np.float64], NDArray[np.uint8]]]  # observations, rewards and flags


class History:
    """A ring of slots; their views are made once, since making them costs as much as the copies that go through them.

    Args:
        spec: What the environment announced.
        num_envs: N.
        num_observations: K.
        rows: The rows of each worker.
        journal: Its newest steps are kept here, until it has their digests and beyond.
    """

    def __init__(self, spec: EnvSpec, num_envs: int, num_observations: int, rows: list[slice], journal: Journal) -> None:
        dtype = np.dtype(spec.obs_dtype)
        step_bytes = num_envs * (2 * int(np.prod(spec.obs_shape)) * dtype.itemsize + 8 + 4)
        self.steps = max(4, min(_MAX_HISTORY_STEPS, _HISTORY_BYTES // step_bytes))
        self._steps_of_a_digest = max(1, min(self.steps // 2, _BYTES_OF_A_DIGEST // step_bytes))
        self._observations = np.zeros((self.steps, num_observations, num_envs, *spec.obs_shape), dtype)
        self._rewards = np.zeros((self.steps, num_envs))
        self._flags = np.zeros((self.steps, 4, num_envs), np.uint8)
        self._journal = journal
        self._slots = [self._slot(k, rows) for k in range(self.steps)]

    def _slot(self, k: int, rows: list[slice]) -> Slot:
        observations, rewards, flags = self._observations[k], self._rewards[k], self._flags[k]
        terminated, truncated = flags[:2].view(np.bool_)
        parts = [(observations[:, part], rewards[part], flags[:, part]) for part in rows]
        return Slot(observations, rewards, flags, observations[0], observations[-1], terminated, truncated, parts)

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
            self._journal.add_digests(self._observations[block, -1], self._rewards[block])
