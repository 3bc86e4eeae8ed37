"""Shards: groups of environments that define what a run computes, and the ranks that own them. Pure: no process group.

A rank is one process of several that train together. What a network makes of a row may depend, in its last bit, on how many
rows go through it together, and a sum depends on its order. So actor calls, partial gradients and the order of their sum are
fixed for each shard: any number of ranks that divides the number of shards computes the same, bit for bit.

S is the number of shards, R the number of ranks, N the number of environments of all ranks.
"""

from dataclasses import dataclass

from lit_ppo.errors import ConfigError


@dataclass(frozen=True)
class Shards:
    """S groups of neighbouring environments, dealt out to R ranks in their order.

    Attributes:
        num_envs: N.
        num_shards: S.
        num_ranks: R.
        rank: This process's own, from 0.

    Raises:
        ConfigError: S does not divide N, or R does not divide S.
    """

    num_envs: int
    num_shards: int = 1
    num_ranks: int = 1
    rank: int = 0

    def __post_init__(self) -> None:
        if self.num_shards < 1:
            raise ConfigError(f"data.shards={self.num_shards}: expected at least 1")
        if self.num_envs % self.num_shards:
            raise ConfigError(f"data.num_envs={self.num_envs}: expected a multiple of data.shards={self.num_shards}")
        if self.num_shards % self.num_ranks:
            raise ConfigError(
                f"trainer.devices: {self.num_ranks} ranks: expected a number that divides data.shards={self.num_shards}"
            )

    @property
    def size(self) -> int:
        """Environments of a shard."""
        return self.num_envs // self.num_shards

    @property
    def own(self) -> range:
        """Numbers of this rank's shards."""
        count = self.num_shards // self.num_ranks
        return range(self.rank * count, (self.rank + 1) * count)

    @property
    def own_envs(self) -> slice:
        """This rank's environments."""
        return slice(self.own.start * self.size, self.own.stop * self.size)

    @property
    def parts(self) -> tuple[slice, ...]:
        """The environments of each of this rank's shards, counted from the rank's first one; empty for a single shard."""
        if self.num_shards == 1:
            return ()
        return tuple(slice(k * self.size, (k + 1) * self.size) for k in range(len(self.own)))
