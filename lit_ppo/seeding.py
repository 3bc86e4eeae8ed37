"""The source of every random number of a run.

Training draws nothing from a global generator, so other code in the process cannot disturb it. Every draw is a function of
(run seed, purpose, index), so a run can continue exactly without saving any random state.
"""

import hashlib
import os
from typing import TYPE_CHECKING, Final, Literal

from lit_ppo.errors import ConfigError

if TYPE_CHECKING:
    import torch

Purpose = Literal["training", "evaluation", "test", "confirmation"]
_PURPOSES: Final[tuple[Purpose, ...]] = ("training", "evaluation", "test", "confirmation")
SeedOrigin = Literal["typed", "default", "loaded"]  # who has chosen a run's seed: a caller, nobody, or the run that was loaded
_BITS_PER_PURPOSE: Final = 29
_LIGHTNINGS: Final = "PL_GLOBAL_SEED"  # which its `seed_everything` sets


def _hash(*parts: int | str) -> int:
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest())


def seed_of_run(typed: int | None) -> int:
    """The seed that was typed; else that of Lightning's `seed_everything`, if it was called, else 0.

    Raises:
        ConfigError: The variable in which Lightning keeps its seed holds something else.
    """
    if typed is not None:
        return int(typed)  # a NumPy integer would be hashed as another
    lightnings = os.environ.get(_LIGHTNINGS, "0")
    if not lightnings.isdecimal():
        raise ConfigError(f"{_LIGHTNINGS}={lightnings}: expected a whole number, as seed_everything sets it")
    return int(lightnings)


def episode_seed(run_seed: int, purpose: Purpose, rank: int, env: int, episode: int) -> int:
    """Seed of one episode, in [0, 2^31).

    The two highest bits encode the purpose, so an evaluation episode never starts from a seed used in training.
    """
    return _PURPOSES.index(purpose) << _BITS_PER_PURPOSE | _hash("episode", run_seed, purpose, rank, env, episode) % (
        1 << _BITS_PER_PURPOSE
    )


def generator(run_seed: int | None, purpose: Literal["weights", "actions", "minibatches"], *index: int) -> "torch.Generator":
    """A new CPU generator for one purpose and index; its draws do not depend on the device or on earlier draws."""
    assert run_seed is not None  # the settings have resolved it
    import torch  # here, since seeds of episodes are needed without it

    return torch.Generator().manual_seed(_hash(purpose, run_seed, *index) % (1 << 63))
