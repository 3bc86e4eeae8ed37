"""Categorical actions: densities against torch.distributions, draws against their own probabilities."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Categorical

from lit_ppo import distributions


@given(st.integers(1, 6), st.integers(1, 5), st.integers(0, 2**31))
@settings(max_examples=50, deadline=None)
def test_log_probs_and_entropies_are_those_of_torch(batch: int, num_actions: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = 5 * torch.randn(batch, num_actions, generator=generator, dtype=torch.float64)
    actions = torch.randint(num_actions, (batch,), generator=generator)
    log_probs, entropies = distributions.log_probs_and_entropies(logits, actions)
    reference = Categorical(logits=logits)
    torch.testing.assert_close(log_probs, reference.log_prob(actions))
    torch.testing.assert_close(entropies, reference.entropy())


def test_entropy_of_a_near_certain_policy_is_finite() -> None:
    logits = torch.tensor([[0.0, -80.0], [0.0, -200.0]])
    log_probs, entropies = distributions.log_probs_and_entropies(logits, torch.tensor([1, 0]))
    assert log_probs.tolist() == [-80.0, 0.0]
    assert entropies.isfinite().all() and (entropies < 1e-6).all()


def test_mode_is_the_most_probable_action() -> None:
    assert distributions.mode(torch.tensor([[0.0, 2.0, 1.0], [3.0, 2.0, 1.0]])).tolist() == [1, 0]


def test_draws_are_as_frequent_as_softmax_says() -> None:
    logits, draws = torch.tensor([0.0, 1.0, -1.0, 2.0]), 40_000
    noise = distributions.gumbel_noise((draws, 4), torch.Generator().manual_seed(0))
    counts = np.bincount(distributions.sample(logits, noise).numpy(), minlength=4)
    expected = logits.softmax(dim=0).numpy() * draws
    # chi-square with 3 degrees of freedom exceeds 16.3 once in a thousand times; the seed is fixed
    assert ((counts - expected) ** 2 / expected).sum() < 16.3


def test_gumbel_noise_has_the_mean_and_variance_of_its_distribution() -> None:
    noise = distributions.gumbel_noise((100_000,), torch.Generator().manual_seed(0)).double()
    # Euler's constant and pi^2 / 6; the standard errors at this size are 0.004 and 0.011
    assert abs(noise.mean() - 0.5772) < 0.02
    assert abs(noise.var() - 1.6449) < 0.05


def test_noise_comes_from_its_own_generator_alone() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first, second = (distributions.gumbel_noise((3, 2), torch.Generator().manual_seed(7)) for _ in range(2))
    assert first.equal(second)
    assert torch.get_rng_state().equal(before)
