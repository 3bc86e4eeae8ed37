"""Gradients of a minibatch: eager, and as the one function that is compiled."""

from typing import Any

import pytest
import torch
from torch import nn

from lit_ppo import functional
from lit_ppo.networks import Actor, Critic
from lit_ppo.ppo_settings import PPOSettings
from lit_ppo.rollout import Batch
from lit_ppo.update import ActorCritic, CompiledGradients, EagerGradients

SETTINGS = PPOSettings(max_grad_norm=None)


def networks() -> ActorCritic:
    weights = torch.Generator().manual_seed(0)
    return ActorCritic(Actor(4, 3, (8,), "tanh", weights), Critic(4, (8, 8), "tanh", weights))


def minibatch(size: int = 12) -> Batch:
    draws = torch.Generator().manual_seed(1)
    columns = torch.randn(5, size, generator=draws)
    return Batch(
        obs=torch.randn(size, 4, generator=draws),
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
        assert isinstance(nets.actor, Actor) and isinstance(nets.critic, Critic)
        nets.critic.layers[0] = nets.actor.layers[0]
        found.append((kind(nets, SETTINGS)(minibatch(), 0.2).gradient_norm, gradients(nets)))
    torch.testing.assert_close(found[0], found[1])


def test_parameter_of_two_layers_cannot_be_compiled() -> None:
    nets = networks()
    assert isinstance(nets.actor, Actor) and isinstance(nets.critic, Critic)
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
