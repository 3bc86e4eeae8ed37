"""Which episode each environment plays, and the seed of the next one."""

from collections.abc import Callable

import numpy as np


class Episodes:
    """Numbers of the episodes under way, and seeds of those that follow.

    Args:
        num_envs: N.
        episode_seed: Seed of an episode, from the row of its environment and its number there (0, 1, ...).
    """

    def __init__(self, num_envs: int, episode_seed: Callable[[int, int], int]) -> None:
        self.seed_of = episode_seed
        self.numbers = [0] * num_envs
        self.next_seeds = np.zeros(num_envs, np.int64)
        self.given_up = 0

    def start(self, numbers: list[int]) -> None:
        """These episodes are under way now."""
        self.numbers = list(numbers)
        self.next_seeds[:] = [self.seed_of(env, number + 1) for env, number in enumerate(numbers)]

    def advance(self, env: int) -> None:
        """The next episode of `env` is under way now."""
        self.numbers[env] += 1
        self.next_seeds[env] = self.seed_of(env, self.numbers[env] + 1)

    def skip(self, env: int) -> None:
        """Give up the episode that `env` was to begin: its seed would bring the same fault again."""
        self.advance(env)
        self.given_up += 1
