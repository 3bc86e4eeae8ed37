"""The mathematics of PPO against hand numbers, and GAE against its definition."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lit_ppo import functional

FLAT = {"clip_epsilon": 0.2, "value_clip": None, "value_coefficient": 0.5, "entropy_coefficient": 0.01}


def column(*numbers: float) -> Tensor:
    """(T, 1), float64."""
    return torch.tensor(numbers, dtype=torch.float64).unsqueeze(1)


def flags(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.bool).unsqueeze(1)


def vector(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


# -- generalized advantages


def oracle_advantages(
    rewards: np.ndarray,
    values: np.ndarray,
    next_values: np.ndarray,
    terminated: np.ndarray,
    truncated: np.ndarray,
    valid: np.ndarray,
    gamma: float,
    gae_lambda: float,
) -> np.ndarray:
    """A_t = sum over l of (gamma * lambda)^l * delta_{t+l}, over the transitions of t's own episode that follow t: O(T^2)."""
    horizon, num_envs = rewards.shape
    advantages = np.zeros((horizon, num_envs))
    for env in range(num_envs):
        for first in range(horizon):
            for t in range(first, horizon):
                if not valid[t, env]:
                    break
                target = rewards[t, env]
                if not terminated[t, env]:
                    target += gamma * next_values[t, env]
                advantages[first, env] += (gamma * gae_lambda) ** (t - first) * (target - values[t, env])
                if terminated[t, env] or truncated[t, env]:
                    break
    return advantages


@given(
    horizon=st.integers(1, 12),
    num_envs=st.integers(1, 3),
    ending_rate=st.floats(0, 1),
    seed=st.integers(0, 2**32 - 1),
    gamma=st.floats(0, 1),
    gae_lambda=st.floats(0, 1),
)
@settings(max_examples=200)
def test_advantages_are_the_discounted_sums_of_deltas_within_an_episode(
    horizon: int, num_envs: int, ending_rate: float, seed: int, gamma: float, gae_lambda: float
) -> None:
    random = np.random.default_rng(seed)
    numbers = [random.normal(size=(horizon, num_envs)) * 10 for _ in range(3)]
    terminated, truncated = (random.random((horizon, num_envs)) < ending_rate / 2 for _ in range(2))
    valid = random.random((horizon, num_envs)) > ending_rate / 4
    expected = oracle_advantages(*numbers, terminated, truncated, valid, gamma, gae_lambda)
    tensors = [torch.from_numpy(array) for array in (*numbers, terminated, truncated, valid)]
    advantages = functional.generalized_advantages(*tensors, gamma, gae_lambda)
    np.testing.assert_allclose(advantages.numpy(), expected, rtol=1e-10, atol=1e-10)


def test_advantages_of_an_unbroken_episode_by_hand() -> None:
    advantages = functional.generalized_advantages(
        column(1, 2), column(3, 4), column(4, 5), flags(0, 0), flags(0, 0), flags(1, 1), gamma=0.5, gae_lambda=0.5
    )
    # delta_1 = 2 + 0.5 * 5 - 4 = 0.5; delta_0 = 1 + 0.5 * 4 - 3 = 0, and A_0 = 0 + 0.25 * 0.5
    assert advantages.flatten().tolist() == [0.125, 0.5]


def test_termination_drops_bootstrap_and_cuts_trace() -> None:
    advantages = functional.generalized_advantages(
        column(1, 2), column(3, 4), column(100, 5), flags(1, 0), flags(0, 0), flags(1, 1), gamma=0.5, gae_lambda=0.5
    )
    # A_0 = 1 - 3, nothing of the 100 and nothing of A_1 = 2 + 0.5 * 5 - 4
    assert advantages.flatten().tolist() == [-2.0, 0.5]


def test_truncation_keeps_bootstrap_but_cuts_trace() -> None:
    advantages = functional.generalized_advantages(
        column(1, 2), column(3, 4), column(100, 5), flags(0, 0), flags(1, 0), flags(1, 1), gamma=0.5, gae_lambda=0.5
    )
    # A_0 = 1 + 0.5 * 100 - 3, nothing of A_1
    assert advantages.flatten().tolist() == [48.0, 0.5]


def test_step_that_is_terminated_and_truncated_counts_as_terminated() -> None:
    advantages = functional.generalized_advantages(
        column(1, 2), column(3, 4), column(100, 5), flags(1, 0), flags(1, 0), flags(1, 1), gamma=0.5, gae_lambda=0.5
    )
    assert advantages.flatten().tolist() == [-2.0, 0.5]  # A_0 = 1 - 3


def test_invalid_row_has_no_advantage_and_cuts_the_trace_before_it() -> None:
    advantages = functional.generalized_advantages(
        column(1, 50, 2),
        column(3, 60, 4),
        column(10, 70, 5),
        flags(0, 0, 0),
        flags(0, 0, 0),
        flags(1, 0, 1),
        gamma=0.5,
        gae_lambda=0.5,
    )
    # A_0 = 1 + 0.5 * 10 - 3, with its bootstrap; A_1 = 0; A_2 = 2 + 0.5 * 5 - 4
    assert advantages.flatten().tolist() == [3.0, 0.0, 0.5]


def test_environments_do_not_touch_each_other() -> None:
    rewards, zeros = torch.tensor([[1.0, 10.0], [2.0, 20.0]]), torch.zeros(2, 2)
    no, yes = torch.zeros(2, 2, dtype=torch.bool), torch.ones(2, 2, dtype=torch.bool)
    advantages = functional.generalized_advantages(rewards, zeros, zeros, no, no, yes, 1.0, 1.0)
    assert advantages.tolist() == [[3.0, 30.0], [2.0, 20.0]]  # 1 + 2 and 10 + 20


@pytest.mark.parametrize("position", range(6))
def test_advantages_refuse_one_tensor_of_another_shape(position: int) -> None:
    tensors = [column(1, 2), column(1, 2), column(1, 2), flags(0, 0), flags(0, 0), flags(1, 1)]
    tensors[position] = tensors[position].squeeze(1)
    with pytest.raises(ValueError, match=r"expected six tensors of one shape \(T, N\), got"):
        functional.generalized_advantages(*tensors, 0.9, 0.9)


def test_advantages_refuse_tensors_that_are_all_flat() -> None:
    tensors = [column(1, 2)] * 3 + [flags(0, 1)] * 3
    with pytest.raises(ValueError, match=r"expected six tensors of one shape \(T, N\)"):
        functional.generalized_advantages(*[tensor.squeeze(1) for tensor in tensors], 0.9, 0.9)


# -- normalize


def test_normalized_advantages_have_mean_0_and_standard_deviation_1() -> None:
    # mean 2, sample variance (1 + 0 + 1) / 2 = 1
    assert functional.normalize(vector(1, 2, 3)).tolist() == pytest.approx([-1, 0, 1])


def test_single_advantage_only_loses_its_mean() -> None:
    assert functional.normalize(vector(7)).tolist() == [0.0]


def test_constant_advantages_become_zeros() -> None:
    assert functional.normalize(vector(5, 5, 5)).tolist() == [0.0, 0.0, 0.0]


# -- policy loss


@pytest.mark.parametrize(
    ("log_ratio", "advantage", "expected"),
    [
        (0.5, 1.0, -1.2),  # ratio e^0.5 = 1.65 is cut at 1 + 0.2: no further gain
        (0.5, -1.0, math.exp(0.5)),  # a bad action made likelier is not cut: the minimum is the unclipped term
        (-0.5, 1.0, -math.exp(-0.5)),  # a good action made rarer is not cut either
        (-0.5, -1.0, 0.8),  # ratio e^-0.5 = 0.61 is cut at 1 - 0.2
        (0.1, 2.0, -2 * math.exp(0.1)),  # ratio 1.105 lies inside the clip range
    ],
)
def test_surrogate_is_clipped_only_where_that_is_pessimistic(log_ratio: float, advantage: float, expected: float) -> None:
    assert functional.clipped_surrogate_loss(vector(log_ratio), vector(advantage), 0.2).item() == pytest.approx(expected)


def test_surrogate_is_the_mean_over_samples() -> None:
    # -(min(1, 1) * 1 + min(1.65, 1.2) * 3) / 2 = -(1 + 3.6) / 2
    assert functional.clipped_surrogate_loss(vector(0, 0.5), vector(1, 3), 0.2).item() == pytest.approx(-2.3)


def test_clipped_samples_have_no_gradient() -> None:
    log_ratio = vector(0.5, 0.1).requires_grad_()
    functional.clipped_surrogate_loss(log_ratio, vector(1, 1), 0.2).backward()
    assert log_ratio.grad is not None
    # the second: d/dx -(e^x) / 2 at 0.1
    assert log_ratio.grad.tolist() == pytest.approx([0.0, -math.exp(0.1) / 2])


# -- value loss


def test_value_loss_is_half_the_mean_squared_error() -> None:
    # 0.5 * ((1 - 3)^2 + (2 - 1)^2) / 2 = 0.5 * 5 / 2
    assert functional.value_loss(vector(1, 2), vector(0, 0), vector(3, 1), None).item() == pytest.approx(1.25)


@pytest.mark.parametrize(
    ("value", "target", "expected"),
    [
        (3.0, 4.0, 4.5),  # cut to 0 + 1, further from 4: 0.5 * (1 - 4)^2 counts, not 0.5 * (3 - 4)^2
        (3.0, 0.0, 4.5),  # cut to 1, nearer to 0: the unclipped 0.5 * (3 - 0)^2 counts
        (-3.0, -4.0, 4.5),  # the same below: cut to -1, 0.5 * (-1 + 4)^2
        (-3.0, 0.0, 4.5),
        (0.5, 2.0, 1.125),  # inside the range nothing is cut: 0.5 * 1.5^2
    ],
)
def test_value_clipping_takes_the_worse_of_both_predictions(value: float, target: float, expected: float) -> None:
    assert functional.value_loss(vector(value), vector(0.0), vector(target), 1.0).item() == pytest.approx(expected)


# -- the whole loss


def test_total_loss_adds_value_error_and_takes_off_entropy() -> None:
    loss = functional.ppo_loss(vector(0, 0), vector(1, 2), vector(0.6, 0.8), vector(1, 2), vector(0, 0), vector(3, 1), **FLAT)
    # policy -(1 + 2) / 2, value 0.5 * (4 + 1) / 2, entropy 0.7: -1.5 + 0.5 * 1.25 - 0.01 * 0.7
    assert [float(part) for part in loss] == pytest.approx([-0.882, -1.5, 1.25, 0.7])


def test_losses_refuse_what_would_broadcast() -> None:
    flat, tall = vector(1, 2), vector(1, 2).unsqueeze(1)
    message = r"expected tensors of one shape \(B,\), got \[\(2,\), \(2, 1\)"
    with pytest.raises(ValueError, match=message):
        functional.clipped_surrogate_loss(flat, tall, 0.2)
    with pytest.raises(ValueError, match=message):
        functional.value_loss(flat, tall, flat, None)
    with pytest.raises(ValueError, match=r"expected tensors of one shape \(B,\), got \[\(2,\), \(2,\), \(2, 1\)\]"):
        functional.value_loss(flat, flat, tall, 0.2)
    with pytest.raises(ValueError, match=r"expected tensors of one shape \(B,\), got \[\(2, 1\), \(2, 1\)\]"):
        functional.clipped_surrogate_loss(tall, tall, 0.2)
    with pytest.raises(ValueError, match=r"expected tensors of one shape \(B,\)"):
        functional.clipped_surrogate_loss(flat, vector(1), 0.2)


# -- diagnostics


def test_approximate_kl_by_hand() -> None:
    # r - 1 - log r for r = 1 and r = e: 0 and e - 2
    assert functional.approximate_kl(vector(0, 1)).item() == pytest.approx((math.e - 2) / 2)


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=20))
def test_approximate_kl_is_never_negative(log_ratio: list[float]) -> None:
    assert functional.approximate_kl(vector(*log_ratio)).item() >= 0


def test_approximate_kl_keeps_its_digits_near_0() -> None:
    # in float32; to second order x^2 / 2, of which exp(x) - 1 - x would keep no digit
    assert functional.approximate_kl(torch.tensor([1e-4])).item() == pytest.approx(5e-9, rel=1e-2)


def test_approximate_kl_is_unbiased_for_a_known_pair() -> None:
    old, new = vector(0.7, 0.3), vector(0.4, 0.6)
    log_ratio = (new / old).log()
    exact = (old * (old / new).log()).sum()  # KL(old || new)
    # its expectation under `old`: each outcome weighted by how often `old` takes it
    expected = sum(old[i] * functional.approximate_kl(log_ratio[i : i + 1]) for i in range(2))
    assert float(expected) == pytest.approx(float(exact))


def test_clip_fraction_counts_ratios_outside_the_range_on_both_sides() -> None:
    # ratios 1.65, 0.61, 1.105, 1: the first two lie outside [0.8, 1.2]
    assert functional.clip_fraction(vector(0.5, -0.5, 0.1, 0), 0.2).item() == 0.5


# -- schedules


@pytest.mark.parametrize(
    ("env_steps", "decay_steps", "expected"),
    [(0, 1000, 0.4), (250, 1000, 0.3), (1000, 1000, 0.0), (5000, 1000, 0.0), (10**9, None, 0.4)],
)
def test_linear_decay_goes_straight_to_0_and_stays_there(env_steps: int, decay_steps: int | None, expected: float) -> None:
    assert functional.linear_decay(0.4, env_steps, decay_steps) == pytest.approx(expected)


# -- weights


@pytest.mark.parametrize("size", [1, 2, 31, 250])
def test_mean_with_weights_of_one_is_the_plain_mean_bit_for_bit_and_so_is_its_gradient(size: int) -> None:
    draws = torch.Generator().manual_seed(size)
    for _ in range(20):
        one = torch.randn(size, generator=draws).requires_grad_()
        other = one.detach().clone().requires_grad_()
        means = functional.weighted_mean(one), functional.weighted_mean(other, torch.ones(size))
        for mean in means:
            mean.backward()
        assert means[0].equal(means[1]) and one.grad is not None and other.grad is not None and one.grad.equal(other.grad)


@pytest.mark.parametrize("weights", [[1.0, 0, 1, 1, 0], [0.0, 0, 1, 0, 0], [0.0, 0, 0, 0, 0]])
def test_diagnostics_are_those_of_the_rows_that_count(weights: list[float]) -> None:
    log_ratio, counts = torch.tensor([0.1, 9.0, -0.3, 0.5, -9.0]), torch.tensor(weights)
    kept = log_ratio[counts > 0]
    for function in (functional.approximate_kl, lambda *args: functional.clip_fraction(args[0], 0.2, *args[1:])):
        expected = function(kept) if len(kept) else torch.tensor(0.0)
        torch.testing.assert_close(function(log_ratio, counts), expected)


def test_advantages_are_normalised_over_the_rows_that_count() -> None:
    advantages, weights = torch.tensor([1.0, 99.0, 3.0, 8.0, -99.0]), torch.tensor([1.0, 0, 1, 1, 0])
    expected = functional.normalize(advantages[weights > 0])
    normalized = functional.normalize(advantages, weights)
    torch.testing.assert_close(normalized[weights > 0], expected)
    assert normalized[weights == 0].tolist() == [0, 0]
    assert functional.normalize(advantages, torch.zeros(5)).tolist() == [0] * 5
    assert functional.normalize(advantages, torch.tensor([0.0, 0, 1, 0, 0])).tolist() == [0] * 5
