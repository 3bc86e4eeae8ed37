"""Actor and critic."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Final, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  the usual name

Activation = Literal["tanh", "relu", "elu", "silu", "gelu"]
_ACTIVATIONS: Final[dict[str, Callable[[Tensor], Tensor]]] = {
    "tanh": torch.tanh,
    "relu": F.relu,
    "elu": F.elu,
    "silu": F.silu,
    "gelu": F.gelu,
}


class MLP(nn.Module):
    """A multilayer perceptron with orthogonal weights and zero biases.

    Layers are applied with `F.linear`: at the sizes of control tasks, calling the modules of an `nn.Sequential` takes as
    long as their computation.

    Args:
        num_inputs: Size of an input.
        hidden_sizes: Size of each hidden layer.
        num_outputs: Size of an output.
        activation: Activation function between the layers.
        output_gain: Gain of the last layer's weights: 0.01 makes a policy start nearly uniform, 1 suits a critic.
        generator: Random generator of the weights.

    Source: Huang et al. 2022, "The 37 Implementation Details of PPO", detail 2.
    """

    def __init__(
        self,
        num_inputs: int,
        hidden_sizes: Sequence[int],
        num_outputs: int,
        activation: Activation,
        output_gain: float,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        gains = [math.sqrt(2)] * len(hidden_sizes) + [output_gain]
        sizes = itertools.pairwise([num_inputs, *hidden_sizes, num_outputs])
        self.layers = nn.ModuleList(_linear(*size, gain, generator) for size, gain in zip(sizes, gains, strict=True))
        self._activate = _ACTIVATIONS[activation]

    def forward(self, inputs: Tensor) -> Tensor:
        """Outputs, shape (B, num_outputs), of inputs of shape (B, num_inputs)."""
        *hidden, last = cast(list[nn.Linear], self.layers)
        for layer in hidden:
            inputs = self._activate(F.linear(inputs, layer.weight, layer.bias))
        return F.linear(inputs, last.weight, last.bias)


def _linear(num_inputs: int, num_outputs: int, gain: float, generator: torch.Generator) -> nn.Linear:
    with torch.random.fork_rng(devices=[]):  # its default initialisation draws from the global generator
        layer = nn.Linear(num_inputs, num_outputs)
    nn.init.orthogonal_(layer.weight, gain, generator=generator)
    nn.init.zeros_(layer.bias)
    return layer


class Actor(MLP):
    """The policy: observations to the logits of a categorical distribution, shape (B, obs_size) to (B, A).

    Args:
        obs_size: Size of one observation.
        num_actions: Number of actions, A.
        hidden_sizes, activation, generator: As in `MLP`.
    """

    def __init__(
        self, obs_size: int, num_actions: int, hidden_sizes: Sequence[int], activation: Activation, generator: torch.Generator
    ) -> None:
        super().__init__(obs_size, hidden_sizes, num_actions, activation, 0.01, generator)


class Critic(MLP):
    """The value function: observations to expected discounted returns, shape (B, obs_size) to (B,).

    Args:
        obs_size: Size of one observation.
        hidden_sizes, activation, generator: As in `MLP`.
    """

    def __init__(self, obs_size: int, hidden_sizes: Sequence[int], activation: Activation, generator: torch.Generator) -> None:
        super().__init__(obs_size, hidden_sizes, 1, activation, 1.0, generator)

    def forward(self, inputs: Tensor) -> Tensor:
        """Values, shape (B,), of observations of shape (B, obs_size)."""
        return super().forward(inputs).squeeze(-1)  # (B, 1) -> (B,)
