"""What a checkpoint holds of the environments, and which environments may continue from it."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lit_ppo.bridge.journal import Journal, JournalMark, from_text, to_text
from lit_ppo.bridge.restoration import Recorded, Restoration
from lit_ppo.bridge.settings import EnvironmentSettings
from lit_ppo.bridge.worker_slice import WorkerSlice
from lit_ppo.errors import ConfigError, ContractViolation

_ALWAYS_FIXED = (
    "env_id",
    "wrappers",
    "max_episode_steps",
    "frame_stack",
    "obs_keys",
    "action_mask",
    "remake_each_episode",
    "num_envs",
    "vectorization",
)


@dataclass(frozen=True, eq=False)
class BridgeMark:
    """Where all episodes were at one moment: O(N), however long they are."""

    journal: JournalMark
    restoration: dict[str, Any]
    rows: NDArray[np.uint8]  # (N, size), the observations to act on next
    episodes: list[int]
    restarts: int
    abandoned_episodes: int

    def state_dict(self, identity: dict[str, Any], journal: Journal, restoration: Restoration) -> dict[str, Any]:
        """As plain data; every step before the mark must have its digest.

        Args:
            identity: Environment, number of environments and workers, vectorization.
            journal, restoration: Those that made the mark.
        """
        return {
            **identity,
            "episodes": self.episodes,
            "rows": to_text(self.rows.tobytes()),
            "restarts": self.restarts,
            "abandoned_episodes": self.abandoned_episodes,
            "journal": journal.state_dict(self.journal),
            **restoration.state_dict(self.restoration),
        }


def joined(states: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The states of neighbouring environments, those of each rank, as one.

    Args:
        states: As `BridgeMark.state_dict` made them, in the order of the environments.
    """
    first, state = states[0], dict(states[0])
    for key in ("num_envs", "num_workers", "restarts", "abandoned_episodes"):
        state[key] = sum(part[key] for part in states)
    for key in ("rows", "ended"):
        if key in first:
            state[key] = to_text(b"".join(from_text(part[key]) for part in states))
    for key in ("episodes", "snapshots"):
        if key in first:
            state[key] = [item for part in states for item in part[key]]
    state["journal"] = {key: [item for part in states for item in part["journal"][key]] for key in first["journal"]}
    return state


def dealt(state: dict[str, Any], envs: slice) -> dict[str, Any]:
    """The state of some neighbouring environments: the part of a rank.

    Args:
        state: Of all environments, as `joined` makes it.
        envs: The rank's, start and stop. Counts of the run as a whole go to the rank with the first environment.
    """
    total, count = state["num_envs"], envs.stop - envs.start
    part = state | {"num_envs": count, "episodes": state["episodes"][envs]}
    part["num_workers"] = state["num_workers"] * count // total
    if envs.start > 0:
        part["restarts"] = part["abandoned_episodes"] = 0
    for key in ("rows", "ended"):
        if key in state:
            data = from_text(state[key])
            size = len(data) // total
            part[key] = to_text(data[envs.start * size : envs.stop * size])
    if "snapshots" in state:
        of_envs = total // len(state["snapshots"])
        part["snapshots"] = state["snapshots"][envs.start // of_envs : envs.stop // of_envs]
    part["journal"] = {key: items[envs] for key, items in state["journal"].items()}
    return part


def require_same_environments(state: dict[str, Any], identity: dict[str, Any], fixed_settings: Iterable[str]) -> None:
    """Refuse the state of other environments.

    Args:
        state: As `BridgeMark.state_dict` made it.
        identity: Of the environments that are to continue from it.
        fixed_settings: What must be the same besides environment, number and vectorization.

    Raises:
        ConfigError: Says what differs.
    """
    saved = {**state, **asdict(EnvironmentSettings.of(state))}
    for key in (*_ALWAYS_FIXED, *fixed_settings):
        if saved[key] != identity[key]:
            raise ConfigError(f"data.{key}={identity[key]}: the checkpoint holds episodes with {key}={saved[key]}; use that")


def restored_rows(state: dict[str, Any], recorded: Recorded, restoration: Restoration) -> NDArray[np.uint8]:
    """Bring fresh workers to where a state was taken; the observations to act on next, shape (N, size).

    Args:
        state: As `BridgeMark.state_dict` made it, of these environments.
        recorded, restoration: Those of the run that continues.

    Raises:
        EnvironmentFault, BridgeError, ProtocolError: It failed more often than it may.
    """
    recorded.journal.load_state_dict(state["journal"])
    recorded.episodes.start(state["episodes"])
    recorded.episodes.given_up = state["abandoned_episodes"]
    restoration.load_state_dict(state)
    seen = np.frombuffer(from_text(state["rows"]), np.uint8).reshape(recorded.journal.num_envs, recorded.row.size)
    rows = np.empty_like(seen)
    for part in recorded.slices:
        recorded.retry(part, "resume", lambda part=part: _resume(part, seen, restoration))  # type: ignore[misc]
        rows[part.rows] = part.obs_rows()
    return rows


def _resume(part: WorkerSlice, seen: NDArray[np.uint8], restoration: Restoration) -> None:
    """Restore one slice; the last observations must be those that were saved, bit for bit."""
    begun = restoration.rebuild(part, set())
    restored = part.obs_rows()
    for env in range(part.rows.start, part.rows.stop):
        if env not in begun and restored[env - part.rows.start].tobytes() != seen[env].tobytes():
            raise ContractViolation(f"obs[{env}]", "the observation of the checkpoint, bit for bit", "another", env)
