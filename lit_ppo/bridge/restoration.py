"""How environments come back to where they were in a fresh worker: by replaying their actions, or from a snapshot.

`Replay` is for ordinary environments, each with seeds of its own: a seeded reset and the actions since. `Snapshots` is for
native vector environments, whose rows share one random stream: the saved state of the whole, and the actions since. What
else differs between the two kinds (who resets when, which rows may be stepped) is here as well, and nowhere else.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from lit_ppo.bridge.episodes import Episodes
from lit_ppo.bridge.history import History, Slot
from lit_ppo.bridge.journal import Journal, digest_rows, saved_numbers, to_text
from lit_ppo.bridge.reports import Fault, FaultReports
from lit_ppo.bridge.settings import BridgeSettings, Vectorization
from lit_ppo.bridge.worker_slice import WorkerSlice
from lit_ppo.contract import Contract
from lit_ppo.errors import BridgeError, CheckpointError, ConfigError, ContractViolation, EnvironmentFault, EnvironmentRaised
from lit_ppo.random_actions import random_actions
from lit_ppo.spaces import Row

STEPS_PER_SNAPSHOT: Final = 4096  # bounds what a failed worker has to be stepped again, and the journal
PROBE_STEPS: Final = 64, 512  # random ones before and after a snapshot: at least the first, at most the second, until one ends
Requested = tuple[NDArray[np.int64] | None, NDArray[np.uint8] | None]  # next seeds and rows to step, shape (N,) each
_NOTHING_REQUESTED: Final[Requested] = (None, None)


@dataclass(frozen=True)
class Recorded:
    """What a restoration works with: the run's records, its rules, and its workers."""

    env_id: str
    settings: BridgeSettings
    slices: Sequence[WorkerSlice]
    row: Row
    journal: Journal
    history: History
    episodes: Episodes
    reports: FaultReports
    contract: Contract
    on_event: Callable[[str], None]
    retry: Callable[[WorkerSlice, str, Callable[[], None]], None]  # an action, on fresh workers while it fails

    def check_first_obs(self, part: WorkerSlice, rows: NDArray[np.uint8]) -> None:
        """Check first observations of one slice, shape (rows, size)."""
        envs = np.arange(part.rows.start, part.rows.stop)
        self.contract.check_observations(self.row.views(rows), rows=envs)

    def replay_differs(self, part: WorkerSlice, envs: list[int]) -> ContractViolation:
        """The environments of a slice that are not deterministic."""
        violation = ContractViolation("replay", "the observations and rewards seen before", "others", envs[0])
        violation.where = {"worker": part.index, "envs": envs}
        return violation


class Restoration(Protocol):
    """One way to restore environments."""

    resets_within_step: ClassVar[bool]  # as in `Contract`
    fixed_settings: ClassVar[tuple[str, ...]]  # of `BridgeSettings`, which a checkpoint fixes

    def __init__(self, recorded: Recorded) -> None: ...
    def first_seeds(self, part: WorkerSlice) -> list[int | None]:
        """What the first reset of a slice gets."""

    def after_reset(self, part: WorkerSlice) -> None:
        """The first reset of a slice has succeeded."""

    def before_step(self, active: NDArray[np.uint8] | None) -> Requested:
        """Check which rows are to be stepped (ValueError), and save what is due; as `request`."""

    def request(self, active: NDArray[np.uint8] | None) -> Requested:
        """Next seeds and rows to step, as the workers want them."""

    def expected_invalid(self, active: NDArray[np.uint8] | None) -> bytes:
        """Which rows of a step must come back as no transition, one byte each."""

    def after_step(self, slot: Slot, ended: NDArray[np.intp] | None) -> None:
        """A step stands in the journal, in which episodes ended and began in these rows."""

    def past_actions(self, env: int) -> list[Any]:
        """Actions since the reset of the episode under way, none where a replay of them would show nothing."""

    def rebuild(self, part: WorkerSlice, give_up: set[int]) -> set[int]:
        """Bring a fresh worker to where the old one was.

        Args:
            part: The slice.
            give_up: Rows whose episode is not to be continued.

        Returns:
            The rows that began a new episode instead.
        """

    def mark(self) -> dict[str, Any]:
        """What `state_dict` needs of this moment besides the journal; O(N)."""

    def before_save(self) -> None:
        """A checkpoint of this very moment is about to be written."""

    def state_dict(self, mark: dict[str, Any]) -> dict[str, Any]:
        """What a checkpoint holds besides the journal, as plain data."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned."""


def complete_in_replay(recorded: Recorded, part: WorkerSlice, fault: Fault, k: int, actions: NDArray[Any] | None) -> None:
    """Give a fault in the replay of an episode its place in that episode, and its report.

    Args:
        recorded: The run's records.
        part: The slice.
        fault: What happened.
        k: Number of the step in each episode.
        actions: Those of the slice in this step, shape (rows, *shape); None in the reset.
    """
    env = fault.env if isinstance(fault, ContractViolation | EnvironmentRaised | BridgeError) else None
    past = recorded.journal.actions(part.rows.start if env is None else env)[:k]
    of_rows = None if actions is None else dict(zip(range(part.rows.start, part.rows.stop), actions, strict=True))
    recorded.reports.complete(fault, part, past, of_rows)


class Replay:
    """A seeded reset and the actions since, compared with the digests of what was seen."""

    resets_within_step: ClassVar[bool] = True
    fixed_settings: ClassVar[tuple[str, ...]] = ()

    def __init__(self, recorded: Recorded) -> None:
        self._recorded, self._journal, self._episodes = recorded, recorded.journal, recorded.episodes
        num_envs = recorded.journal.num_envs
        self._all_requested, self._no_row_invalid = (self._episodes.next_seeds, np.ones(num_envs, np.uint8)), bytes(num_envs)

    def first_seeds(self, part: WorkerSlice) -> list[int | None]:
        seeds: list[int | None] = self._journal.seeds[part.rows].tolist()
        return seeds

    def after_reset(self, part: WorkerSlice) -> None:
        pass

    def before_step(self, active: NDArray[np.uint8] | None) -> Requested:
        if active is None:
            return self._all_requested
        shape = (self._journal.num_envs,)
        if active.dtype != np.uint8 or active.shape != shape or active.tobytes().strip(b"\x00\x01"):
            raise ValueError(f"active: expected uint8 zeros and ones of shape {shape}, got {active!r}")
        return self.request(active)

    def request(self, active: NDArray[np.uint8] | None) -> Requested:
        return self._all_requested if active is None else (self._episodes.next_seeds, active)

    def expected_invalid(self, active: NDArray[np.uint8] | None) -> bytes:
        return self._no_row_invalid if active is None else (1 - active).tobytes()

    def after_step(self, slot: Slot, ended: NDArray[np.intp] | None) -> None:
        if ended is not None:
            self._begin_episodes(ended.tolist(), slot.rows.take(ended, axis=0))

    def _begin_episodes(self, envs: list[int], first_rows: NDArray[np.uint8]) -> None:
        """The next episodes of K environments have begun, each from its seed, with first observations of shape (K, size)."""
        self._journal.begin(envs, self._episodes.next_seeds.take(envs), first_rows)
        for env in envs:
            self._episodes.advance(env)

    def past_actions(self, env: int) -> list[Any]:
        return self._journal.actions(env)

    def rebuild(self, part: WorkerSlice, give_up: set[int]) -> set[int]:
        journal, rows, settings = self._journal, part.rows, self._recorded.settings
        self._recorded.history.digest()
        envs = range(rows.start, rows.stop)
        give_up = give_up | {env for env in envs if journal.lost[env]}
        kept = [env for env in envs if env not in give_up]
        seeds = [None if env in give_up else int(journal.seeds[env]) for env in envs]
        with self._replaying(part):
            first = digest_rows(part.reset(seeds))
        diverged = {env for env in kept if first[env - rows.start] != journal.first_digests[env]}
        episodes = {env: journal.episode(env) for env in kept}
        actions = np.stack([self._recorded.contract.spec.action.neutral()] * len(envs))
        active = np.zeros(len(envs), np.uint8)
        for k in range(max((len(recorded) for recorded, _ in episodes.values()), default=0)):
            replayed = [env for env in kept if env not in diverged and k < len(episodes[env][0])]
            active[:] = 0
            for env in replayed:
                active[env - rows.start], actions[env - rows.start] = 1, episodes[env][0][k]
            with self._replaying(part, k, actions):
                digests, ended = part.replay_step(actions, active)
            diverged |= {env for env in replayed if digests[env - rows.start] != episodes[env][1][k] or ended[env - rows.start]}
        if diverged:
            if settings.on_replay_mismatch == "error":
                raise self._recorded.replay_differs(part, sorted(diverged))
            self._recorded.on_event(
                f"{self._recorded.env_id} is not deterministic: the replay of env {sorted(diverged)} did not come back to what "
                "was seen; a new episode begins there"
            )
        self._give_up(part, give_up | diverged)
        return give_up | diverged

    @contextmanager
    def _replaying(self, part: WorkerSlice, k: int = 0, actions: NDArray[Any] | None = None) -> Iterator[None]:
        """Give a fault of a replay its place, and give up that episode if the run goes on: another replay would fail as well.

        Args:
            part: The slice.
            k: Number of the step in each episode.
            actions: Those of the slice in this step, shape (rows, *shape); None in the reset.
        """
        try:
            yield
        except (EnvironmentFault, BridgeError) as fault:
            complete_in_replay(self._recorded, part, fault, k, actions)
            if isinstance(fault, EnvironmentFault) and "env" in fault.where:
                self._journal.lost[fault.where["env"]] = True
            raise

    def _give_up(self, part: WorkerSlice, envs: set[int]) -> None:
        """Begin new episodes in place of those of these rows."""
        if not envs:
            return
        rows = part.rows
        seeds = [int(self._episodes.next_seeds[env]) if env in envs else None for env in range(rows.start, rows.stop)]
        try:
            first_rows = part.reset(seeds)
            self._recorded.check_first_obs(part, first_rows)
        except EnvironmentFault as fault:
            self._recorded.reports.complete(fault, part, [], begins=True)
            if fault.where["env"] in envs:
                self._episodes.skip(fault.where["env"])
            raise
        begun = sorted(envs)
        self._begin_episodes(begun, first_rows[[env - rows.start for env in begun]])
        self._episodes.given_up += len(envs)

    def mark(self) -> dict[str, Any]:
        return {}

    def before_save(self) -> None:
        pass

    def state_dict(self, mark: dict[str, Any]) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        _require_possible(self._recorded, state)


class Snapshots:
    """The saved state of a native vector environment, and the actions since."""

    resets_within_step: ClassVar[bool] = False
    fixed_settings: ClassVar[tuple[str, ...]] = ("num_workers",)

    def __init__(self, recorded: Recorded) -> None:
        self._recorded, self._journal = recorded, recorded.journal
        self._snapshots: list[dict[str, Any]] = [{} for _ in recorded.slices]
        self._ended_before = bytes(recorded.journal.num_envs)
        self._saved_at = 0  # step of the journal

    def first_seeds(self, part: WorkerSlice) -> list[int | None]:
        first = int(self._journal.seeds[part.rows.start])
        return [first, *[None] * (part.rows.stop - part.rows.start - 1)]

    def after_reset(self, part: WorkerSlice) -> None:
        """Take a first snapshot; in the first worker, prove before that the environment can be restored."""
        snapshot = part.save()
        if part.index == 0:
            self._require_restorable(part)
            part.restore(snapshot)
        self._snapshots = [
            *self._snapshots[: part.index],
            snapshot,
            *self._snapshots[part.index + 1 :],
        ]  # marks keep the old one
        self._ended_before, self._saved_at = bytes(self._journal.num_envs), self._journal.steps

    def _require_restorable(self, part: WorkerSlice) -> None:
        """Compare how the environment goes on with how it does in a fresh process, where state of modules and classes is lost.

        Raises:
            ConfigError: It goes another way there.
        """
        spec, generator = self._recorded.contract.spec, np.random.default_rng(0)
        obs = self._recorded.row.views(part.obs_rows())

        def until_one_ends() -> list[tuple[NDArray[Any], NDArray[np.uint64], NDArray[np.bool_]]]:
            steps: list[tuple[NDArray[Any], NDArray[np.uint64], NDArray[np.bool_]]] = []
            least, most = PROBE_STEPS
            while len(steps) < least or (len(steps) < most and not any(ended.any() for _, _, ended in steps)):
                actions = random_actions(spec, obs, generator)
                steps.append((actions, *part.replay_step(actions)))
            return steps

        until_one_ends()
        snapshot = part.save()
        expected = until_one_ends()
        part.replace(spec)
        part.restore(snapshot)
        if any(not np.array_equal(part.replay_step(actions), answers) for actions, *answers in expected):
            raise ConfigError(
                f"data.vectorization=native: expected {self._recorded.env_id} to go on alike from its saved state in a fresh "
                "process, got other observations, rewards or ends: it is not deterministic, or keeps state where it cannot be "
                "saved; use data.vectorization=sync"
            )

    def before_step(self, active: NDArray[np.uint8] | None) -> Requested:
        if active is not None:
            raise ValueError("step: native environments are stepped all together")
        if self._journal.steps - self._saved_at >= STEPS_PER_SNAPSHOT:
            self.before_save()
        return _NOTHING_REQUESTED

    def request(self, active: NDArray[np.uint8] | None) -> Requested:
        return _NOTHING_REQUESTED

    def expected_invalid(self, active: NDArray[np.uint8] | None) -> bytes:
        return self._ended_before

    def after_step(self, slot: Slot, ended: NDArray[np.intp] | None) -> None:
        self._ended_before = (slot.terminated | slot.truncated).tobytes()

    def past_actions(self, env: int) -> list[Any]:
        return []

    def rebuild(self, part: WorkerSlice, give_up: set[int]) -> set[int]:
        self._recorded.history.digest()
        part.restore(self._snapshots[part.index])
        envs = range(part.rows.start, part.rows.stop)
        actions, digests = zip(*(self._journal.episode(env) for env in envs), strict=True)
        for k in range(len(actions[0])):
            replayed, _ = part.replay_step(np.array([column[k] for column in actions]))
            if (replayed != np.array([column[k] for column in digests])).any():
                raise self._recorded.replay_differs(part, list(envs))
        return set()

    def mark(self) -> dict[str, Any]:
        return {"snapshots": self._snapshots, "ended": self._ended_before}

    def before_save(self) -> None:
        """Save all environments; their journal begins anew."""
        snapshots: list[dict[str, Any]] = []
        for part in self._recorded.slices:

            def save(part: WorkerSlice = part, worker: object = part.worker) -> None:
                if part.worker is not worker:  # it failed, and its successor is fresh
                    self.rebuild(part, set())
                snapshots.append(part.save())

            self._recorded.retry(part, "save", save)
        self._snapshots = snapshots
        self._journal.begin_all()
        self._saved_at = self._journal.steps

    def state_dict(self, mark: dict[str, Any]) -> dict[str, Any]:
        return {"snapshots": mark["snapshots"], "ended": to_text(mark["ended"])}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        _require_possible(self._recorded, state)
        if len(state["snapshots"]) != len(self._recorded.slices):
            expected, got = len(self._recorded.slices), len(state["snapshots"])
            raise CheckpointError(f"the checkpoint's datamodule.bridge.snapshots: expected {expected} of them, got {got}")
        ended = saved_numbers(state["ended"], np.dtype(np.uint8), "ended", self._journal.num_envs)
        self._snapshots, self._ended_before = list(state["snapshots"]), ended.tobytes()
        self._saved_at = int(self._journal.begins.min())


def _require_possible(recorded: Recorded, state: dict[str, Any]) -> None:
    """Refuse saved rows of another size, and actions in the journal that no policy can have chosen.

    Raises:
        CheckpointError: The checkpoint is at fault, not the environment.
    """
    journal = recorded.journal
    saved_numbers(state["rows"], np.dtype((np.uint8, (recorded.row.size,))), "rows", journal.num_envs)
    for env in range(journal.num_envs):
        actions, _ = journal.episode(env)
        try:
            recorded.contract.check_actions(actions)
        except ValueError as error:
            raise CheckpointError(f"the checkpoint's datamodule.bridge.journal.actions[{env}]: {error}") from None


RESTORATIONS: Final[dict[Vectorization, type[Replay] | type[Snapshots]]] = {"sync": Replay, "native": Snapshots}
