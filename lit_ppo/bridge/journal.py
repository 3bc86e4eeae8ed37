"""The journal: what is needed to bring N environments back to where they are, and to see whether that worked.

For each environment (sync): the seed of the episode under way, the actions since, and a digest of each answer. For native
vector environments, whose rows share one random stream: the actions and digests since the newest snapshot. Replaying the
actions and comparing the digests restores any deterministic environment bit for bit.

Actions and digests of all environments stand side by side, one row for each step, so that writing a step is one row copy; rows
that neither an episode under way nor a mark needs are dropped. Digests are computed for many steps at once, while the workers
step. A mark is a position in the journal: O(N), however long the episodes are. Text is made only of what is saved.
"""

import base64
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lit_ppo.errors import CheckpointError

# A longer episode can no longer be rebuilt; without a bound an endless one would eat all memory.
MAX_EPISODE_STEPS: Final = 1_000_000
_FIRST_ROWS: Final = 1024


def to_text(data: bytes) -> str:
    """Bytes as text: a checkpoint that is read without unpickling cannot hold empty `bytes`."""
    return base64.b64encode(data).decode()


def from_text(text: str) -> bytes:
    """The bytes that `to_text` was given."""
    return base64.b64decode(text, validate=True)


def saved_numbers(text: str, dtype: "np.dtype[Any]", key: str, count: int | None = None) -> NDArray[Any]:
    """The numbers that a checkpoint holds as text.

    Args:
        text: As `to_text` made it.
        dtype: Of the numbers; with a shape, of each item.
        key: How messages call the text.
        count: How many items there must be; None for any number.

    Raises:
        CheckpointError: It holds something else.
    """
    try:
        data = from_text(text)
    except ValueError as error:
        raise CheckpointError(f"the checkpoint's datamodule.bridge.{key}: expected base64: {error}") from None
    if len(data) % dtype.itemsize or count not in (None, len(data) // dtype.itemsize):
        expected = f"whole items of {dtype.itemsize} bytes" if count is None else f"{count} items of {dtype.itemsize} bytes"
        raise CheckpointError(f"the checkpoint's datamodule.bridge.{key}: expected {expected}, got {len(data)} bytes")
    return np.frombuffer(data, dtype)


def digest_rows(rows: NDArray[np.uint8], rewards: NDArray[np.float64] | None = None) -> NDArray[np.uint64]:
    """One 64-bit number for each row (and its reward), sensitive to every bit.

    Args:
        rows: Shape (..., size), uint8.
        rewards: Shape (...).
    """
    raw = np.ascontiguousarray(rows)
    words = raw.view(np.uint32) if raw.shape[-1] % 4 == 0 else raw
    # einsum, not matmul, which would need a copy of all words as uint64: images take two thirds of the time
    total: NDArray[np.uint64] = np.einsum("...j,j", words, _weights(words.shape[-1]))
    if rewards is not None:
        total = total * np.uint64(0xBF58476D1CE4E5B9) + rewards.view(np.uint64)
    mixed: NDArray[np.uint64] = total ^ (total >> np.uint64(31))
    return mixed


@lru_cache
def _weights(num_words: int) -> NDArray[np.uint64]:
    """Distinct odd numbers: a changed word changes the sum of words times weights, modulo 2^64."""
    return np.arange(1, 2 * num_words, 2, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True, eq=False)
class JournalMark:
    """Where the episodes under way began and how far they were at one moment; arrays of shape (N,)."""

    end: int  # the step that was next
    seeds: NDArray[np.int64]
    first_digests: NDArray[np.uint64]
    begins: NDArray[np.int64]
    lost: NDArray[np.bool_]


class Journal:
    """Seeds, actions and digests of the episodes under way.

    Args:
        num_envs: N.
    """

    def __init__(self, num_envs: int) -> None:
        self.num_envs = num_envs
        self.seeds = np.zeros(num_envs, np.int64)
        self.first_digests = np.zeros(num_envs, np.uint64)
        self.begins = np.zeros(num_envs, np.int64)  # the step with which each episode began
        self.lost = np.zeros(num_envs, np.bool_)  # episodes that can no longer be rebuilt
        self.steps = 0  # of all environments, never counted anew
        self._base = 0  # the step of row 0
        self.digested = 0  # steps before this one have their digests; the observations of later ones must be at hand
        self._stepped = np.empty((_FIRST_ROWS, num_envs), np.bool_)
        self._digests = np.empty((_FIRST_ROWS, num_envs), np.uint64)
        self.hold_actions((), np.dtype(np.int64))
        self._marks: weakref.WeakSet[JournalMark] = weakref.WeakSet()

    def hold_actions(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        """Say what an action is; before the first step."""
        self._actions = np.empty((len(self._stepped), self.num_envs, *shape), dtype)

    def begin(self, envs: Sequence[int], seeds: NDArray[np.int64], first_rows: NDArray[np.uint8]) -> None:
        """New episodes begin with the next step.

        Args:
            envs: Which environments, K of them.
            seeds: Of the episodes, shape (K,).
            first_rows: Their first observations, shape (K, size).
        """
        for env, seed, digest in zip(envs, seeds.tolist(), digest_rows(first_rows).tolist(), strict=True):
            self.seeds[env] = seed
            self.first_digests[env] = digest
            self.begins[env] = self.steps
            self.lost[env] = False

    def append(self, actions: NDArray[Any], active: NDArray[np.uint8] | None) -> None:
        """One step of all environments: actions of shape (N, *shape), and the rows that were stepped, None for all."""
        row = self.steps - self._base
        if row == len(self._actions):
            self._make_room()
            row = self.steps - self._base
        self._actions[row] = actions
        self._stepped[row] = True if active is None else active
        self.steps += 1

    def add_digests(self, rows: NDArray[np.uint8], rewards: NDArray[np.float64]) -> None:
        """Digests of the oldest steps that have none yet: shapes (K, N, size) and (K, N)."""
        row = self.digested - self._base
        self._digests[row : row + len(rewards)] = digest_rows(rows, rewards)
        self.digested += len(rewards)

    @property
    def room(self) -> int:
        """Number of steps for which memory is reserved."""
        return len(self._actions)

    def _make_room(self) -> None:
        too_old = self.steps - self.begins > MAX_EPISODE_STEPS
        self.lost |= too_old
        self.begins[too_old] = self.steps
        # rows are kept for the episodes under way, for those of each mark, and until they have their digests
        oldest = min(int(self.begins.min()), self.digested, *(int(mark.begins.min()) for mark in self._marks))
        keep = slice(oldest - self._base, self.steps - self._base)
        rows = keep.stop - keep.start
        size = len(self._actions) if rows <= len(self._actions) // 2 else 2 * len(self._actions)
        for name in ("_actions", "_stepped", "_digests"):
            old = getattr(self, name)
            new = np.empty((size, *old.shape[1:]), old.dtype)
            new[:rows] = old[keep]
            setattr(self, name, new)
        self._base = oldest

    def episode(self, env: int, mark: JournalMark | None = None) -> tuple[NDArray[Any], NDArray[np.uint64]]:
        """Actions and digests of one episode, oldest first; every step must have its digest.

        Args:
            env: Row of the environment.
            mark: The moment that is meant; None for now.
        """
        begins, end = (self.begins, self.steps) if mark is None else (mark.begins, mark.end)
        rows = slice(int(begins[env]) - self._base, end - self._base)
        stepped = self._stepped[rows, env]
        return self._actions[rows, env][stepped], self._digests[rows, env][stepped]

    def actions(self, env: int) -> list[Any]:
        """Actions of one episode under way, oldest first, as plain data."""
        rows = slice(int(self.begins[env]) - self._base, self.steps - self._base)
        actions: list[Any] = self._actions[rows, env][self._stepped[rows, env]].tolist()
        return actions

    def begin_all(self) -> None:
        """All episodes begin with the next step, at a snapshot or a reset of everything."""
        self.begins[:] = self.steps

    def mark(self) -> JournalMark:
        """This moment, O(N); what `state_dict` needs of it is kept for as long as the mark is."""
        mark = JournalMark(self.steps, self.seeds.copy(), self.first_digests.copy(), self.begins.copy(), self.lost.copy())
        self._marks.add(mark)
        return mark

    def state_dict(self, mark: JournalMark) -> dict[str, Any]:
        """What stood in the journal at `mark`, as plain data: numbers and text.

        Raises:
            ValueError: The mark was made before `load_state_dict`, or of another journal.
        """
        if mark not in self._marks:
            raise ValueError("mark: expected one of this journal, made since it was last loaded")
        episodes = [self.episode(env, mark) for env in range(self.num_envs)]
        return {
            "seeds": mark.seeds.tolist(),
            "first_digests": [int(digest) for digest in mark.first_digests],
            "lost": mark.lost.tolist(),
            "actions": [to_text(actions.astype(actions.dtype.newbyteorder("<")).tobytes()) for actions, _ in episodes],
            "digests": [to_text(digests.astype("<u8").tobytes()) for _, digests in episodes],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned: the episodes are laid side by side so that all end with the last row.

        Raises:
            CheckpointError: The texts do not hold actions and as many digests.
        """
        kind = np.dtype((self._actions.dtype.newbyteorder("<"), self._actions.shape[2:]))
        actions = [saved_numbers(text, kind, f"journal.actions[{env}]") for env, text in enumerate(state["actions"])]
        digest_lists = [
            saved_numbers(text, np.dtype("<u8"), f"journal.digests[{env}]", len(actions[env]))
            for env, text in enumerate(state["digests"])
        ]
        longest = max(len(episode) for episode in actions)
        rows = max(_FIRST_ROWS, longest + 1)
        self._marks.clear()
        self._base, self.steps = self.steps, self.steps + longest
        self.digested = self.steps
        self._actions = np.zeros((rows, self.num_envs, *self._actions.shape[2:]), self._actions.dtype)
        self._stepped, self._digests = np.zeros((rows, self.num_envs), np.bool_), np.zeros((rows, self.num_envs), np.uint64)
        for env, (episode, digests) in enumerate(zip(actions, digest_lists, strict=True)):
            self._actions[longest - len(episode) : longest, env] = episode
            self._stepped[longest - len(episode) : longest, env] = True
            self._digests[longest - len(episode) : longest, env] = digests
            self.begins[env] = self.steps - len(episode)
        self.seeds[:] = state["seeds"]
        self.first_digests[:] = np.array(state["first_digests"], np.uint64)
        self.lost[:] = state["lost"]
