"""Actor and critic."""

import itertools
import math
from collections.abc import Sequence
from typing import Final, Literal

import torch
from torch import Tensor, nn

Activation = Literal["tanh", "relu", "elu", "silu", "gelu"]
_ACTIVATIONS: Final[dict[str, type[nn.Module]]] = {
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "elu": nn.ELU,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
}


def mlp(
    num_inputs: int,
    hidden_sizes: Sequence[int],
    num_outputs: int,
    activation: Activation,
    output_gain: float,
    generator: torch.Generator,
) -> nn.Sequential:
    """A multilayer perceptron with orthogonal weights and zero biases.

    Args:
        num_inputs: Size of an input.
        hidden_sizes: Size of each hidden layer.
        num_outputs: Size of an output.
        activation: Between the layers.
        output_gain: Scale of the last layer's weights: 0.01 makes a policy start uniform, 1 suits a critic.
        generator: Source of the weights.

    Source: Huang et al. 2022, "The 37 Implementation Details of PPO", detail 2.
    """
    layers: list[nn.Module] = []
    sizes = [num_inputs, *hidden_sizes]
    for before, after in itertools.pairwise(sizes):
        layers += [_linear(before, after, math.sqrt(2), generator), _ACTIVATIONS[activation]()]
    return nn.Sequential(*layers, _linear(sizes[-1], num_outputs, output_gain, generator))


def _linear(num_inputs: int, num_outputs: int, gain: float, generator: torch.Generator) -> nn.Linear:
    layer = nn.Linear(num_inputs, num_outputs, device="meta")  # its own initialisation would draw from the global stream
    layer = layer.to_empty(device="cpu")
    nn.init.orthogonal_(layer.weight, gain, generator=generator)
    nn.init.zeros_(layer.bias)
    return layer


class Actor(nn.Module):
    """The policy: observations to the logits of a categorical distribution.

    Args:
        obs_size: Size of one observation.
        num_actions: Number of actions, A.
        hidden_sizes, activation, generator: As in `mlp`.
    """

    def __init__(
        self, obs_size: int, num_actions: int, hidden_sizes: Sequence[int], activation: Activation, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.network = mlp(obs_size, hidden_sizes, num_actions, activation, 0.01, generator)

    def forward(self, obs: Tensor) -> Tensor:
        """Logits, shape (B, A), of observations of shape (B, obs_size)."""
        logits: Tensor = self.network(obs)
        return logits


class Critic(nn.Module):
    """The value function: observations to expected discounted returns.

    Args:
        obs_size: Size of one observation.
        hidden_sizes, activation, generator: As in `mlp`.
    """

    def __init__(self, obs_size: int, hidden_sizes: Sequence[int], activation: Activation, generator: torch.Generator) -> None:
        super().__init__()
        self.network = mlp(obs_size, hidden_sizes, 1, activation, 1.0, generator)

    def forward(self, obs: Tensor) -> Tensor:
        """Values, shape (B,), of observations of shape (B, obs_size)."""
        values: Tensor = self.network(obs)
        return values.squeeze(-1)  # (B, 1) -> (B,)
