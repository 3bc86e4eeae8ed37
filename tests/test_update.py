"""Gradients of a minibatch: eager, and as the one function that is compiled."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lit_ppo import functional
from lit_ppo.policy import Policy
from lit_ppo.ppo_settings import PPOSettings
from lit_ppo.rollout import Batch
from lit_ppo.spaces import EnvSpec
from lit_ppo.update import CompiledGradients, EagerGradients, blank_minibatch
from tests.specs import box, discrete, image, multi_binary, multi_discrete, policy_of, spec_of, vector_spec

SETTINGS = PPOSettings(max_grad_norm=None)


def networks() -> Policy:
    return policy_of(vector_spec(4, 3), PPOSettings(actor_hidden_sizes=(8,), critic_hidden_sizes=(8, 8)))


def minibatch(size: int = 12) -> Batch:
    draws = torch.Generator().manual_seed(1)
    columns = torch.randn(5, size, generator=draws)
    return Batch(
        obs={"": torch.randn(size, 4, generator=draws)},
        actions=torch.randint(3, (size,), generator=draws),
        old_log_probs=-1.1 + 0.2 * columns[0],
        old_values=columns[1],
        advantages=columns[2],
        returns=3 * columns[3],
    )


def gradients(networks: nn.Module) -> list[torch.Tensor | None]:
    return [parameter.grad for parameter in networks.parameters()]


@pytest.fixture
def compiles_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is to be compiled runs as it is: it must be right by itself."""
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)


def test_gradients_are_those_of_the_loss_and_replace_older_ones() -> None:
    nets, data = networks(), minibatch()
    result = EagerGradients(nets, SETTINGS)(data, 0.2)
    result = EagerGradients(nets, SETTINGS)(data, 0.2)
    log_ratio = nets.actor(data.obs).log_softmax(-1)[torch.arange(12), data.actions] - data.old_log_probs
    policy = functional.clipped_surrogate_loss(log_ratio, functional.normalize(data.advantages), 0.2)
    total = policy + 0.5 * functional.value_loss(nets.critic(data.obs), data.old_values, data.returns, None)
    expected = torch.autograd.grad(total, list(nets.parameters()))
    torch.testing.assert_close(gradients(nets), list(expected))
    torch.testing.assert_close(result.loss.total, total.detach())
    torch.testing.assert_close(result.log_ratio, log_ratio.detach())
    torch.testing.assert_close(result.gradient_norm, torch.cat([gradient.flatten() for gradient in expected]).norm())
    assert not any(tensor.requires_grad for tensor in (*result.loss, result.log_ratio, result.gradient_norm))


@pytest.mark.parametrize("limit", [0.01, 1e6, None])
def test_gradients_are_clipped_and_their_norm_is_that_before(limit: float | None) -> None:
    nets = networks()
    free = EagerGradients(nets, SETTINGS)(minibatch(), 0.2).gradient_norm
    result = EagerGradients(nets, PPOSettings(max_grad_norm=limit))(minibatch(), 0.2)
    torch.testing.assert_close(result.gradient_norm, free)
    norm = torch.cat([gradient.flatten() for gradient in gradients(nets) if gradient is not None]).norm()
    torch.testing.assert_close(norm, torch.tensor(0.01) if limit == 0.01 else free)


def test_backward_pass_goes_through_whoever_is_to_see_it() -> None:
    seen = []

    def backward(loss: torch.Tensor) -> None:
        seen.append(loss.item())
        loss.backward()

    result = EagerGradients(networks(), SETTINGS, backward)(minibatch(), 0.2)
    assert seen == [result.loss.total.item()]


ALTERNATIVES = [
    SETTINGS,
    PPOSettings(normalize_advantages="rollout", value_clip=0.3, value_coefficient=1.0, entropy_coefficient=0.01),
    PPOSettings(
        normalize_advantages="off", value_clip=0.01, value_coefficient=0.1, entropy_coefficient=0.2, max_grad_norm=0.01
    ),
    PPOSettings(max_grad_norm=1e6),
]


@pytest.mark.parametrize("settings", ALTERNATIVES)
@pytest.mark.parametrize("size", [1, 12])
@pytest.mark.usefixtures("compiles_nothing")
def test_function_to_be_compiled_does_what_eager_mode_does(settings: PPOSettings, size: int) -> None:
    one, other = networks(), networks()
    expected = EagerGradients(one, settings)(minibatch(size), 0.2)
    torch.testing.assert_close(CompiledGradients(other, settings)(minibatch(size), 0.2), expected)
    torch.testing.assert_close(gradients(other), gradients(one))


@pytest.mark.usefixtures("compiles_nothing")
def test_clip_range_may_change_from_one_minibatch_to_the_next() -> None:
    nets = networks()
    gradients_of = CompiledGradients(nets, SETTINGS)
    for clip_epsilon in (0.2, 0.01, 0.2):
        expected = EagerGradients(networks(), SETTINGS)(minibatch(), clip_epsilon)
        torch.testing.assert_close(gradients_of(minibatch(), clip_epsilon), expected)


@pytest.mark.usefixtures("compiles_nothing")
def test_frozen_parameters_get_no_gradients() -> None:
    for kind in (EagerGradients, CompiledGradients):
        nets = networks()
        next(nets.actor.parameters()).requires_grad_(False)
        kind(nets, SETTINGS)(minibatch(), 0.2)
        frozen, *others = gradients(nets)
        assert frozen is None and all(gradient is not None for gradient in others)


@pytest.mark.usefixtures("compiles_nothing")
def test_layer_that_actor_and_critic_share_counts_once() -> None:
    found: list[Any] = []
    for kind in (EagerGradients, CompiledGradients):
        nets = networks()
        nets.critic.layers[0] = nets.actor.layers[0]
        found.append((kind(nets, SETTINGS)(minibatch(), 0.2).gradient_norm, gradients(nets)))
    torch.testing.assert_close(found[0], found[1])


def test_parameter_of_two_layers_cannot_be_compiled() -> None:
    nets = networks()
    nets.critic.layers[0].weight = nets.actor.layers[0].weight
    with pytest.raises(ValueError, match="two layers share one parameter"):
        CompiledGradients(nets, SETTINGS)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's compiler, in torch's compiler
def test_compiled_program_does_what_eager_mode_does_for_any_clip_range_and_size() -> None:
    one, other = networks(), networks()
    eager, compiled = EagerGradients(one, ALTERNATIVES[1]), CompiledGradients(other, ALTERNATIVES[1])
    for size, clip_epsilon in ((12, 0.2), (12, 0.1), (13, 0.1), (14, 0.05)):
        expected = eager(minibatch(size), clip_epsilon)
        torch.testing.assert_close(compiled(minibatch(size), clip_epsilon), expected)
        torch.testing.assert_close(gradients(other), gradients(one))


# -- every kind of action and observation

MASK = box(5, path="mask", dtype="bool", low=0, high=1)
SEEN = (box(3, path="vector"), image(5, 5, 3, path="camera/left"), discrete(3, path="mode", start=2))
SPECS = {
    "discrete": spec_of(*SEEN, action=discrete(5)),
    "masked discrete": spec_of(*SEEN, MASK, action=discrete(5), mask="mask"),
    "multi_discrete": spec_of(*SEEN, action=multi_discrete(2, 3)),
    "masked multi_discrete": spec_of(*SEEN, MASK, action=multi_discrete(2, 3), mask="mask"),
    "multi_binary": spec_of(*SEEN, action=multi_binary(2, 2)),
    "box": spec_of(*SEEN, action=box(2, low=-1.0, high=1.0)),
}


def minibatch_of(spec: EnvSpec, policy: Policy, size: int = 12) -> Batch:
    """Observations and draws of a policy that differs a little from `policy`."""
    draws, numbers = torch.Generator().manual_seed(1), np.random.default_rng(1)
    obs = {}
    for leaf in spec.observation:
        if leaf.is_integer:
            values = numbers.integers(leaf.low, leaf.high, (size, *leaf.shape), endpoint=True).astype(leaf.dtype)
        else:
            values = numbers.normal(size=(size, *leaf.shape)).astype(leaf.dtype)
        obs[leaf.path] = torch.from_numpy(values)
    if spec.mask is not None:
        obs[spec.mask][:, [0, 2]] = True  # never none
    with torch.no_grad():
        outputs = policy.actor(obs)
        actions = policy.distribution.sample(outputs, policy.distribution.draw_noise(1, size, draws)[0])
        log_probs, _ = policy.distribution.log_probs_and_entropies(outputs, actions)
    columns = torch.randn(4, size, generator=draws)
    return Batch(obs, actions, log_probs + 0.1 * columns[0], columns[1], columns[2], 3 * columns[3])


WITH_ENTROPY = PPOSettings(entropy_coefficient=0.01, value_clip=0.3)


@pytest.mark.parametrize("shared_torso", [False, True])
@pytest.mark.parametrize("name", SPECS)
@pytest.mark.usefixtures("compiles_nothing")
def test_function_to_be_compiled_does_what_eager_mode_does_in_every_space(name: str, shared_torso: bool) -> None:
    how = PPOSettings(shared_torso=shared_torso, log_std="state" if shared_torso else "parameter")
    one, other = policy_of(SPECS[name], how), policy_of(SPECS[name], how)
    data = minibatch_of(SPECS[name], one)
    expected = EagerGradients(one, WITH_ENTROPY)(data, 0.2)
    torch.testing.assert_close(CompiledGradients(other, WITH_ENTROPY)(data, 0.2), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradients(other), gradients(one), rtol=1e-6, atol=1e-6)
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients(one))


@pytest.mark.slow
@pytest.mark.parametrize("name", SPECS)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's compiler, in torch's compiler
def test_compiled_program_does_what_eager_mode_does_in_every_space(name: str) -> None:
    one, other = policy_of(SPECS[name]), policy_of(SPECS[name])
    data, compiled = minibatch_of(SPECS[name], one), CompiledGradients(other, WITH_ENTROPY)
    expected = EagerGradients(one, WITH_ENTROPY)(data, 0.2)
    torch.testing.assert_close(compiled(data, 0.2), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradients(other), gradients(one), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", SPECS)
def test_blank_minibatch_has_the_shapes_and_dtypes_of_a_real_one_and_can_be_learnt_from(name: str) -> None:
    policy = policy_of(SPECS[name])
    blank, real = blank_minibatch(SPECS[name].observation, policy, 12), minibatch_of(SPECS[name], policy)
    assert list(blank.obs) == list(real.obs)
    pairs = zip((*blank.obs.values(), *blank[1:]), (*real.obs.values(), *real[1:]), strict=True)
    assert all((one.shape, one.dtype) == (other.shape, other.dtype) for one, other in pairs)
    assert EagerGradients(policy, SETTINGS)(blank, 0.2).loss.total.isfinite()
