"""What one rank has of the environments: its share of workers and cores, and its part of what a checkpoint holds of them."""

import dataclasses
import json
import os
from typing import Any

from lit_ppo.bridge.checkpoint import joined
from lit_ppo.bridge.settings import BridgeSettings
from lit_ppo.errors import ConfigError
from lit_ppo.rank_watch import boot_id
from lit_ppo.ranks import Ranks
from lit_ppo.shards import Shards


def joined_of_ranks(ranks: Ranks, own: dict[str, Any]) -> dict[str, Any]:
    """The state of the environments of all ranks, sent as JSON.

    Args:
        ranks: Of the run.
        own: Of this rank's environments, as `EnvBridge.state_dict` makes it.
    """
    return joined([json.loads(data) for data in ranks.gather_bytes(json.dumps(own).encode())])


def settings_of_rank(settings: BridgeSettings, shards: Shards) -> BridgeSettings:
    """How the processes of one rank run: with its share of the workers.

    Raises:
        ConfigError: The workers cannot be shared.
    """
    is_native, workers = settings.vectorization == "native", settings.num_workers
    if workers == "auto":
        needs_own = is_native and shards.num_shards > 1  # the rows of a native worker have one random stream
        return dataclasses.replace(settings, num_workers=len(shards.own)) if needs_own else settings
    groups, of = (shards.num_shards, "data.shards") if is_native else (shards.num_ranks, "the number of ranks")
    if workers % groups:
        raise ConfigError(f"data.num_workers={workers}: expected a multiple of {of}, {groups}, or auto")
    return dataclasses.replace(settings, num_workers=workers // shards.num_ranks)


def fair_cores(ranks: Ranks) -> int | None:
    """Cores that this rank may count on: of each, one part for every rank of this machine that may use it; None if alone."""
    if ranks.count == 1:
        return None
    mine = {"machine": boot_id(), "cores": sorted(os.sched_getaffinity(0))}
    everyone = [json.loads(data) for data in ranks.gather_bytes(json.dumps(mine).encode())]
    neighbours = [set(other["cores"]) for other in everyone if other["machine"] == mine["machine"]]
    shares = (1 / sum(core in cores for cores in neighbours) for core in os.sched_getaffinity(0))
    return max(1, int(sum(shares) + 1e-9))
