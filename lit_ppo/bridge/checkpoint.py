"""What a checkpoint holds of the environments, and which environments may continue from it."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lit_ppo.bridge.journal import Journal, JournalMark, to_text
from lit_ppo.bridge.restoration import Restoration
from lit_ppo.bridge.settings import EnvironmentSettings
from lit_ppo.errors import ConfigError

_ALWAYS_FIXED = (
    "env_id",
    "wrappers",
    "max_episode_steps",
    "frame_stack",
    "obs_keys",
    "action_mask",
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
