"""Seeds: functions of what they are for, and never shared between purposes."""

import itertools
import subprocess
import sys

import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_ppo import seeding

PURPOSES = ("training", "evaluation", "test", "confirmation")
NUMBERS = st.integers(0, 2**63)


@given(st.lists(st.tuples(NUMBERS, NUMBERS, NUMBERS, NUMBERS), min_size=4, max_size=4))
def test_episodes_of_different_purposes_never_share_a_seed(numbers: list[tuple[int, int, int, int]]) -> None:
    seeds = [seeding.episode_seed(n[0], purpose, *n[1:]) for purpose, n in zip(PURPOSES, numbers, strict=True)]
    assert len({seed >> 29 for seed in seeds}) == 4  # not by luck: each purpose has a quarter of the 31 bits to itself


@given(NUMBERS, st.sampled_from(PURPOSES), NUMBERS, NUMBERS, NUMBERS)
def test_episode_seeds_are_31_bits(run_seed: int, purpose: seeding.Purpose, rank: int, env: int, episode: int) -> None:
    assert 0 <= seeding.episode_seed(run_seed, purpose, rank, env, episode) < 2**31


def test_neighbouring_episodes_have_seeds_of_their_own() -> None:
    seeds = [seeding.episode_seed(*where) for where in itertools.product((0, 1), ("training",), (0, 1), range(8), range(20))]
    # 640 draws from 2^29 share a number with probability 640^2 / 2^30 = 0.0004
    assert len(set(seeds)) == len(seeds)


def test_generators_differ_by_seed_purpose_and_index() -> None:
    keys = [(0, "actions", 0), (1, "actions", 0), (0, "minibatches", 0), (0, "actions", 1), (0, "actions"), (0, "weights")]
    draws = [torch.rand(2, generator=seeding.generator(*key)).tolist() for key in keys]  # type: ignore[arg-type]
    assert len({tuple(draw) for draw in draws}) == len(keys)


def test_generator_of_one_key_always_draws_the_same() -> None:
    first, second = (torch.rand(4, generator=seeding.generator(5, "actions", 9)) for _ in range(2))
    assert first.equal(second)


def test_seeds_are_the_same_in_another_process() -> None:
    numbers = "seeding.episode_seed(3, 'test', 0, 1, 2), seeding.generator(3, 'actions', 4).initial_seed()"
    command = [sys.executable, "-c", f"from lit_ppo import seeding; print({numbers})"]
    # Python's own hash() of a string would differ there
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    here = seeding.episode_seed(3, "test", 0, 1, 2), seeding.generator(3, "actions", 4).initial_seed()
    assert printed.split() == [str(number) for number in here]
