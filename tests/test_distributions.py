"""Distributions of actions: densities against torch.distributions, draws against their own probabilities."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch import distributions as reference

from lit_ppo import distributions
from lit_ppo.distributions import Bernoulli, Categorical, Gaussian, MultiCategorical
from lit_ppo.spaces import Leaf
from tests.specs import box, discrete, generator, multi_binary, multi_discrete

ACTIONS = {
    "discrete": discrete(4),
    "multi_discrete": multi_discrete(3, 2, 4),
    "matrix of choices": multi_discrete(2, 3, 2, 4, shape=(2, 2)),
    "multi_binary": multi_binary(2, 3),
    "box": box(3, low=-2.0, high=2.0),
    "matrix of numbers": box(2, 2),
    "one number": box(),
}
BATCH = 5


def reference_of(leaf: Leaf, outputs: Tensor) -> tuple[Any, tuple[Any, ...]]:
    """For each component a distribution of torch, and its place in an action."""
    if leaf.kind == "discrete":
        return [reference.Categorical(logits=outputs)], ((),)
    if leaf.kind == "multi_discrete":
        parts = [reference.Categorical(logits=part) for part in outputs.split(list(leaf.choices), dim=-1)]
    elif leaf.kind == "multi_binary":
        parts = [reference.Bernoulli(logits=logit) for logit in outputs.unbind(-1)]
    else:
        half = outputs.shape[-1] // 2
        parts = [reference.Normal(outputs[:, k], outputs[:, half + k].exp()) for k in range(half)]
    return parts, tuple(np.ndindex(leaf.shape))


@pytest.mark.parametrize("name", ACTIONS)
@given(st.integers(0, 2**31))
@settings(max_examples=15)
def test_log_probs_and_entropies_are_those_of_torch(name: str, seed: int) -> None:
    leaf = ACTIONS[name]
    distribution = distributions.for_action(leaf)
    outputs = 2 * torch.randn(BATCH, distribution.num_outputs, generator=generator(seed), dtype=torch.float64)
    noise = distribution.draw_noise(1, BATCH, generator(seed + 1))[0]
    actions = distribution.sample(outputs, noise)
    assert actions.shape == (BATCH, *leaf.shape) and distribution.action_shape == leaf.shape
    log_probs, entropies = distribution.log_probs_and_entropies(outputs, actions)
    parts, places = reference_of(leaf, outputs)
    expected = sum(part.log_prob(actions[(slice(None), *at)].double()) for part, at in zip(parts, places, strict=True))
    torch.testing.assert_close(log_probs, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(entropies, sum(part.entropy() for part in parts), rtol=1e-6, atol=1e-6)


def slopes_by_hand(leaf: Leaf, outputs: np.ndarray, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """d log pi(a|s) / d outputs and d entropy / d outputs, shape (B, num_outputs), from the formulas of each kind."""
    actions = actions.reshape(len(outputs), -1)
    if leaf.kind == "multi_binary":
        ones = 1 / (1 + np.exp(-outputs))
        return actions - ones, -outputs * ones * (1 - ones)  # d H / d p = -logit, d p / d logit = p (1 - p)
    if leaf.kind == "box":
        means, log_stds = np.split(outputs, 2, axis=1)
        errors = (actions - means) / np.exp(log_stds)
        return np.hstack([errors / np.exp(log_stds), errors**2 - 1]), np.hstack([0 * means, 1 + 0 * log_stds])
    log_prob_slopes, entropy_slopes = [], []
    for logits, chosen in zip(np.split(outputs, np.cumsum(leaf.choices)[:-1], axis=1), actions.T, strict=True):
        weights = np.exp(logits - logits.max(axis=1, keepdims=True))
        shares = weights / weights.sum(axis=1, keepdims=True)
        logs = np.log(np.where(shares > 0, shares, 1))  # 0 log 0 = 0
        log_prob_slopes.append(np.eye(logits.shape[1])[chosen] - shares)
        entropy_slopes.append(-shares * (logs - (shares * logs).sum(axis=1, keepdims=True)))
    return np.hstack(log_prob_slopes), np.hstack(entropy_slopes)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", ACTIONS)
@given(st.integers(0, 2**31))
@settings(max_examples=15)
def test_gradients_of_log_probs_and_entropies_are_those_of_the_formulas(name: str, masked: bool, seed: int) -> None:
    leaf = ACTIONS[name]
    distribution = distributions.for_action(leaf)
    outputs = 2 * torch.randn(BATCH, distribution.num_outputs, generator=generator(seed), dtype=torch.float64)
    if masked and leaf.kind in ("discrete", "multi_discrete"):
        impossible = torch.rand(outputs.shape, generator=generator(seed + 2)) < 0.5
        impossible[:, np.cumsum([0, *leaf.choices[:-1]])] = False
        outputs = outputs.masked_fill(impossible, torch.finfo(outputs.dtype).min)
    actions = distribution.sample(outputs, distribution.draw_noise(1, BATCH, generator(seed + 1))[0].double())
    outputs.requires_grad_()
    both = distribution.log_probs_and_entropies(outputs, actions)
    for summed, expected in zip(both, slopes_by_hand(leaf, outputs.detach().numpy(), actions.numpy()), strict=True):
        [slopes] = torch.autograd.grad(summed.sum(), outputs, retain_graph=True)
        torch.testing.assert_close(slopes, torch.from_numpy(expected), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ACTIONS)
def test_mode_has_no_less_probability_than_any_draw(name: str) -> None:
    distribution = distributions.for_action(ACTIONS[name])
    outputs = torch.randn(1, distribution.num_outputs, generator=generator()).expand(200, -1)
    draws = distribution.sample(outputs, distribution.draw_noise(1, 200, generator(1))[0])
    best, _ = distribution.log_probs_and_entropies(outputs, distribution.mode(outputs))
    drawn, _ = distribution.log_probs_and_entropies(outputs, draws)
    assert (best >= drawn).all() and (best > drawn).any()


def test_entropy_of_a_near_certain_policy_is_finite() -> None:
    outputs = torch.tensor([[0.0, -80.0], [0.0, -200.0]])
    log_probs, entropies = Categorical(2, 0).log_probs_and_entropies(outputs, torch.tensor([1, 0]))
    assert log_probs.tolist() == [-80.0, 0.0]
    assert entropies.isfinite().all() and (entropies < 1e-6).all()
    log_probs, entropies = Bernoulli((2,), "int8").log_probs_and_entropies(outputs - 80, torch.tensor([[1, 0], [0, 0]]))
    assert log_probs.tolist() == [-80.0, 0.0]
    assert entropies.isfinite().all() and (entropies < 1e-6).all()


def test_mode_is_the_most_probable_action() -> None:
    outputs = torch.tensor([[0.0, 2.0, 1.0, -1.0], [3.0, 2.0, 1.0, 5.0]])
    assert Categorical(4, 0).mode(outputs).tolist() == [1, 3]
    assert MultiCategorical((Categorical(2, 0), Categorical(2, 0)), np.zeros(2, np.int64)).mode(outputs).tolist() == [
        [1, 0],
        [0, 1],
    ]
    assert Bernoulli((4,), "int8").mode(outputs).tolist() == [[0, 1, 1, 0], [1, 1, 1, 1]]
    bounds = np.zeros(2, np.float32)
    assert Gaussian(bounds, bounds, "clip").mode(outputs).tolist() == [[0.0, 2.0], [3.0, 2.0]]


# -- draws


def chi_square(counts: Tensor, probabilities: Tensor) -> float:
    expected = probabilities * counts.sum()
    return float(((counts - expected) ** 2 / expected).sum())


def test_choices_are_as_frequent_as_softmax_says() -> None:
    logits, draws = torch.tensor([0.0, 1.0, -1.0, 2.0]), 40_000
    for distribution in (Categorical(4, 0), distributions.for_action(multi_discrete(4, 4))):
        outputs = logits.repeat(distribution.num_outputs // 4)
        actions = distribution.sample(outputs.expand(draws, -1), distribution.draw_noise(1, draws, generator())[0])
        for component in actions.view(draws, -1).unbind(-1):
            # with 3 degrees of freedom it exceeds 16.3 once in a thousand times; the seed is fixed
            assert chi_square(torch.bincount(component, minlength=4), logits.softmax(dim=0)) < 16.3


def test_choices_of_one_action_are_independent() -> None:
    for leaf in (multi_discrete(2, 2), multi_binary(2)):
        distribution, draws = distributions.for_action(leaf), 40_000
        outputs = torch.zeros(draws, distribution.num_outputs)
        first, second = distribution.sample(outputs, distribution.draw_noise(1, draws, generator())[0]).unbind(-1)
        assert chi_square(torch.bincount(2 * first + second, minlength=4), torch.full((4,), 0.25)) < 16.3


def test_ones_are_as_frequent_as_the_sigmoid_says() -> None:
    logits, draws = torch.tensor([-2.0, 0.0, 1.0]), 40_000
    distribution = Bernoulli((3,), "int8")
    actions = distribution.sample(logits.expand(draws, -1), distribution.draw_noise(1, draws, generator())[0])
    # the largest standard error is 0.5 / 200
    torch.testing.assert_close(actions.double().mean(dim=0).float(), logits.sigmoid(), rtol=0, atol=0.01)


def test_numbers_have_their_mean_and_standard_deviation() -> None:
    outputs, draws = torch.tensor([1.0, -2.0, 0.0, math.log(0.1)]), 40_000
    distribution = distributions.for_action(box(2))
    actions = distribution.sample(outputs.expand(draws, -1), distribution.draw_noise(1, draws, generator())[0])
    # standard errors of the mean: 1 / 200 and 0.1 / 200
    torch.testing.assert_close(actions.mean(dim=0), outputs[:2], rtol=0, atol=0.02)
    torch.testing.assert_close(actions.std(dim=0), torch.tensor([1.0, 0.1]), rtol=0.02, atol=0)


def test_gumbel_noise_has_the_mean_and_variance_of_its_distribution() -> None:
    noise = distributions.gumbel_noise((100_000,), generator()).double()
    # Euler's constant and pi^2 / 6; the standard errors at this size are 0.004 and 0.011
    assert abs(noise.mean() - 0.5772) < 0.02
    assert abs(noise.var() - 1.6449) < 0.05


@pytest.mark.parametrize("name", ACTIONS)
def test_noise_comes_from_its_own_generator_alone(name: str) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first, second = (distributions.for_action(ACTIONS[name]).draw_noise(3, 2, generator(7)) for _ in range(2))
    assert first.equal(second) and first.shape[:2] == (3, 2)
    assert torch.get_rng_state().equal(before)


# -- masks


@pytest.mark.parametrize("leaf", [discrete(3), multi_discrete(3, 2)])
def test_masked_choices_have_no_probability_and_finite_gradients(leaf: Leaf) -> None:
    distribution, lowest = distributions.for_action(leaf), torch.finfo(torch.float32).min
    logits = torch.randn(1, distribution.num_outputs, generator=generator()).requires_grad_()
    possible = torch.tensor([True, False, True, True, False][: distribution.num_outputs])
    outputs = logits.masked_fill(~possible, lowest)
    noise = distribution.draw_noise(1, 10_000, generator(1))[0]
    draws = distribution.sample(outputs.expand(10_000, -1), noise).view(10_000, -1)
    assert set(draws[:, 0].tolist()) == {0, 2}
    log_probs, entropies = distribution.log_probs_and_entropies(outputs, distribution.mode(outputs))
    impossible = torch.tensor([1]) if leaf.kind == "discrete" else torch.tensor([[1, 0]])
    assert distribution.log_probs_and_entropies(outputs, impossible)[0].exp().item() == 0
    remaining = reference.Categorical(logits=logits[:, [0, 2]])
    torch.testing.assert_close(entropies, remaining.entropy())  # of the second choice only one is left
    (entropies.sum() + log_probs.sum()).backward()
    assert logits.grad is not None and logits.grad.isfinite().all()
    assert (logits.grad[:, ~possible] == 0).all() and (logits.grad[:, [0, 2]] != 0).all()


# -- the environment's own actions


def to_env(leaf: Leaf, actions: Any, bounds: Any = "clip") -> np.ndarray:
    distribution = distributions.for_action(leaf, bounds)
    return distribution.to_env(torch.tensor(actions, dtype=distribution.action_dtype).numpy())


def test_choices_get_the_environments_own_numbers() -> None:
    assert to_env(discrete(3, start=-3), [0, 2]).tolist() == [-3, -1]
    assert to_env(discrete(3), [0, 2]).tolist() == [0, 2]
    assert to_env(multi_discrete(3, 2, start=(5, -1)), [[0, 0], [2, 1]]).tolist() == [[5, -1], [7, 0]]
    matrix = multi_discrete(2, 2, 2, 2, shape=(2, 2), start=(0, 10, 20, 30))
    assert to_env(matrix, [[[0, 1], [1, 0]]]).tolist() == [[[0, 11], [21, 30]]]


@pytest.mark.parametrize("name", ACTIONS)
def test_environment_gets_the_dtype_and_shape_of_its_action(name: str) -> None:
    leaf = ACTIONS[name]
    distribution = distributions.for_action(leaf)
    actions = distribution.to_env(distribution.mode(torch.zeros(BATCH, distribution.num_outputs)).numpy())
    assert (actions.shape, actions.dtype) == ((BATCH, *leaf.shape), np.dtype(leaf.dtype))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_numbers_are_clipped_to_each_bound_unless_they_are_to_be_refused(dtype: str) -> None:
    leaf = box(2, dtype=dtype, low=(-2.0, -0.5), high=(2.0, math.inf))
    assert to_env(leaf, [[3.0, 9.0], [-3.0, -9.0], [0.25, 0.25]]).tolist() == [[2.0, 9.0], [-2.0, -0.5], [0.25, 0.25]]
    assert to_env(leaf, [[3.0, 9.0]], "refuse").tolist() == [[3.0, 9.0]]


def test_whole_numbers_are_the_nearest_ones() -> None:
    assert to_env(box(4, dtype="int32", low=-1, high=3), [[0.6, -0.6, 9.0, 0.4]]).tolist() == [[1, -1, 3, 0]]
