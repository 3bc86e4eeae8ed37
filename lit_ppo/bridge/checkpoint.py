"""What a checkpoint holds of the environments, and which environments may continue from it."""

from collections.abc import Iterable
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
