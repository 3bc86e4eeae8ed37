"""Actor and critic: shapes, and weights that come from one generator."""

import math

import pytest
import torch
from torch import Tensor, nn

from lit_ppo.networks import MLP, Activation, Actor, Critic


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def linears(network: nn.Module) -> list[nn.Linear]:
    return [layer for layer in network.modules() if isinstance(layer, nn.Linear)]


def gram(weight: Tensor) -> Tensor:
    """W W^T of the shorter side: a multiple of the identity if and only if W is orthogonal."""
    return weight @ weight.T if weight.shape[0] <= weight.shape[1] else weight.T @ weight


@pytest.mark.parametrize(("network", "output_gain"), [(Actor(4, 3, [16, 8], "tanh", generator()), 0.01)])
def test_actor_weights_are_orthogonal_with_a_small_last_layer(network: nn.Module, output_gain: float) -> None:
    gains = [math.sqrt(2), math.sqrt(2), output_gain]
    for layer, gain in zip(linears(network), gains, strict=True):
        torch.testing.assert_close(gram(layer.weight), gain**2 * torch.eye(min(layer.weight.shape)), rtol=0, atol=1e-5 * gain)
        assert not layer.bias.any()


def test_critic_weights_are_orthogonal_with_a_last_layer_of_gain_1() -> None:
    for layer, gain in zip(linears(Critic(4, [16, 8], "tanh", generator())), [math.sqrt(2), math.sqrt(2), 1.0], strict=True):
        torch.testing.assert_close(gram(layer.weight), gain**2 * torch.eye(min(layer.weight.shape)), rtol=0, atol=1e-5)
        assert not layer.bias.any()


def test_untrained_policy_is_nearly_uniform() -> None:
    logits = Actor(4, 3, [64, 64], "tanh", generator())(torch.randn(100, 4, generator=generator(1)))
    assert (logits.softmax(dim=-1) - 1 / 3).abs().max() < 0.02


def test_critic_gives_one_flat_value_for_each_observation() -> None:
    assert Critic(4, [8], "tanh", generator())(torch.zeros(5, 4)).shape == (5,)
    assert Critic(4, [8], "tanh", generator())(torch.zeros(1, 4)).shape == (1,)


def test_no_hidden_layers_leave_a_linear_policy() -> None:
    assert [tuple(layer.weight.shape) for layer in linears(Actor(4, 2, [], "tanh", generator()))] == [(2, 4)]


@pytest.mark.parametrize(
    ("activation", "kind"), [("tanh", nn.Tanh), ("relu", nn.ReLU), ("elu", nn.ELU), ("silu", nn.SiLU), ("gelu", nn.GELU)]
)
def test_activation_stands_between_layers_and_not_behind_the_last(activation: Activation, kind: type[nn.Module]) -> None:
    network = MLP(4, [8, 8], 2, activation, 1.0, generator())
    first, second, last = linears(network)
    inputs = torch.randn(5, 4, generator=generator(1))
    assert network(inputs).equal(nn.Sequential(first, kind(), second, kind(), last)(inputs))


def test_same_seed_makes_the_same_weights_and_another_seed_others() -> None:
    first, same, other = (Actor(4, 2, [8], "tanh", generator(seed)).state_dict() for seed in (3, 3, 4))
    assert all(first[name].equal(same[name]) for name in first)
    assert not first["layers.0.weight"].equal(other["layers.0.weight"])


def test_making_networks_leaves_the_global_stream_alone() -> None:
    before = torch.get_rng_state()
    Actor(4, 2, [8], "tanh", generator())
    Critic(4, [8], "tanh", generator())
    assert torch.get_rng_state().equal(before)
