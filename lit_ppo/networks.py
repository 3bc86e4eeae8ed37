"""Networks: from the leaves of an observation to features, and from features to outputs."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  the usual name

from lit_ppo.compat_torch import weight_and_bias
from lit_ppo.spaces import Leaf

Activation = Literal["tanh", "relu", "elu", "silu", "gelu"]
_ACTIVATIONS: Final[dict[str, Callable[[Tensor], Tensor]]] = {
    "tanh": torch.tanh,
    "relu": F.relu,
    "elu": F.elu,
    "silu": F.silu,
    "gelu": F.gelu,
}
Observation = Mapping[str, Tensor]  # by path, shape (B, *leaf.shape), in the dtypes of `seen_as`
Encoder = Callable[[Tensor], Tensor]  # (B, *shape) -> (B, F)
_NATURE_SIDE: Final = 36  # smallest side of an image that fits the Nature network
_SMALLEST_SIDE: Final = 3  # of an image; anything smaller is a table of numbers


@dataclass(frozen=True)
class Initializer:
    """Draws the weights of layers.

    Attributes:
        generator: The source of all draws, so that none comes from the global generator.
        orthogonal: Orthogonal weights and zero biases; otherwise PyTorch's default, in which gains play no part.

    Source: Huang et al. 2022, "The 37 Implementation Details of PPO", detail 2.
    """

    generator: torch.Generator
    orthogonal: bool = True

    def linear(self, num_inputs: int, num_outputs: int, gain: float) -> nn.Linear:
        """A layer with its weights drawn."""
        layer = nn.Linear(num_inputs, num_outputs, device="meta").to_empty(device="cpu")
        self._draw(layer, gain)
        return layer

    def conv(self, num_inputs: int, num_outputs: int, kernel: int, stride: int, padding: int) -> nn.Conv2d:
        """A layer for a ReLU, with its weights drawn."""
        layer = nn.Conv2d(num_inputs, num_outputs, kernel, stride, padding, device="meta").to_empty(device="cpu")
        self._draw(layer, math.sqrt(2))
        return layer

    def _draw(self, layer: nn.Linear | nn.Conv2d, gain: float) -> None:
        # made without memory first: PyTorch's own initialisation would draw from the global generator
        assert layer.bias is not None
        if self.orthogonal:
            nn.init.orthogonal_(layer.weight, gain, generator=self.generator)
            nn.init.zeros_(layer.bias)
        else:  # the default of `nn.Linear` and `nn.Conv2d`
            nn.init.kaiming_uniform_(layer.weight, a=math.sqrt(5), generator=self.generator)
            limit = 1 / math.sqrt(layer.weight[0].numel())
            nn.init.uniform_(layer.bias, -limit, limit, generator=self.generator)


class MLP(nn.Module):
    """A multilayer perceptron on the features of observations.

    Layers are applied with `F.linear`: at the sizes of control tasks, calling the modules of an `nn.Sequential` takes as
    long as their computation.

    Args:
        inputs: From observations to features.
        hidden_sizes: Size of each hidden layer.
        num_outputs: Size of an output.
        activation: Activation function between the layers.
        output_gain: Gain of the last layer's weights: 0.01 makes a policy start nearly uniform, 1 suits a critic.
        initialize: Draws the weights.
    """

    def __init__(
        self,
        inputs: "Inputs",
        hidden_sizes: Sequence[int],
        num_outputs: int,
        activation: Activation,
        output_gain: float,
        initialize: Initializer,
    ) -> None:
        super().__init__()
        self.inputs = inputs
        gains = [math.sqrt(2)] * len(hidden_sizes) + [output_gain]
        sizes = itertools.pairwise([inputs.num_features, *hidden_sizes, num_outputs])
        self.layers = nn.ModuleList(initialize.linear(*size, gain) for size, gain in zip(sizes, gains, strict=True))
        self._activate = _ACTIVATIONS[activation]

    def forward(self, obs: Observation, features: Tensor | None = None) -> Tensor:
        """Outputs, shape (B, num_outputs).

        Args:
            obs: The observations.
            features: What `inputs` makes of them, if it is known.
        """
        values: Tensor = self.inputs(obs) if features is None else features
        *hidden, last = cast(list[nn.Linear], self.layers)
        for layer in hidden:
            values = self._activate(F.linear(values, *weight_and_bias(layer)))
        return F.linear(values, *weight_and_bias(last))


# -- from one leaf to features


def flat(values: Tensor) -> Tensor:
    """Numbers as they are: (B, *shape) to (B, F)."""
    return values if values.dim() == 2 else values.reshape(len(values), -1)


class Scaled(nn.Module):
    """Whole numbers scaled from their bounds to [0, 1]: (B, *shape) to (B, F).

    Args:
        leaf: What is scaled.
        then: What makes features of the scaled numbers.
    """

    def __init__(self, leaf: Leaf, then: Encoder) -> None:
        super().__init__()
        low, high = leaf.bounds()
        # of single numbers a single number, which costs an image less memory traffic
        if not isinstance(leaf.low, tuple) and not isinstance(leaf.high, tuple):
            low, high = low.ravel()[:1], high.ravel()[:1]
        low, high = low.astype(np.float64), high.astype(np.float64)
        span = np.where(high > low, high - low, 1.0)
        self.register_buffer("low", torch.from_numpy(low).to(torch.float32), persistent=False)
        self.register_buffer("span", torch.from_numpy(span).to(torch.float32), persistent=False)
        self.then = then

    def forward(self, values: Tensor) -> Tensor:
        low, span = cast(Tensor, self.low), cast(Tensor, self.span)
        return self.then((values.to(low.dtype) - low) / span)


class OneHot(nn.Module):
    """A code for each choice, side by side: (B, *shape) to (B, sum of choices).

    Args:
        leaf: One or several choices.
    """

    def __init__(self, leaf: Leaf) -> None:
        super().__init__()
        self._num_features = sum(leaf.choices)
        begins = np.cumsum([0, *leaf.choices[:-1]])
        shifts = torch.from_numpy(begins - leaf.bounds()[0].ravel())  # from the environment's number to its column
        self.register_buffer("shifts", shifts, persistent=False)
        self.register_buffer("one", torch.ones(()), persistent=False)  # has the device and dtype of the parameters

    def forward(self, values: Tensor) -> Tensor:
        columns = values.reshape(len(values), -1).to(torch.int64) + cast(Tensor, self.shifts)
        return cast(Tensor, self.one).new_zeros(len(values), self._num_features).scatter(1, columns, 1.0)


class Image(nn.Module):
    """A convolutional network: (B, *shape) to (B, F).

    Sides of at least 36 take the network of Mnih et al., smaller ones one of three padded 3x3 layers, which fits any side.

    Args:
        shape: Of one image, with or without channels.
        initialize: Draws the weights.

    Source: Mnih et al. 2015, "Human-level control through deep reinforcement learning", methods.
    """

    def __init__(self, shape: tuple[int, ...], initialize: Initializer) -> None:
        super().__init__()
        self._order = channel_order(shape)
        num_channels, *sides = _channels_first(shape, self._order)
        if min(sides) >= _NATURE_SIDE:
            layers, self.num_features = [(32, 8, 4, 0), (64, 4, 2, 0), (64, 3, 1, 0)], 512
        else:
            layers, self.num_features = [(16, 3, 1, 1), (32, 3, 2, 1), (64, 3, 2, 1)], 128
        convs: list[nn.Module] = []
        for num_outputs, kernel, stride, padding in layers:
            convs += [initialize.conv(num_channels, num_outputs, kernel, stride, padding), nn.ReLU()]
            num_channels, sides = num_outputs, [(side + 2 * padding - kernel) // stride + 1 for side in sides]
        last = initialize.linear(num_channels * math.prod(sides), self.num_features, math.sqrt(2))
        self.layers = nn.Sequential(*convs, nn.Flatten(), last, nn.ReLU())

    def forward(self, values: Tensor) -> Tensor:
        if self._order == "none":
            values = values.unsqueeze(1)
        elif self._order == "last":
            values = values.permute(0, 3, 1, 2)
        features: Tensor = self.layers(values)
        return features


def channel_order(shape: tuple[int, ...]) -> Literal["first", "last", "none"]:
    """Where the channels of an image are: along the shorter end; of equal ends last if there are 1, 3 or 4."""
    if len(shape) == 2:
        return "none"
    first, last = (shape[end] < min(shape[1], shape[-1 - end]) for end in (0, -1))
    return "last" if last or (not first and shape[-1] in (1, 3, 4)) else "first"


def _channels_first(shape: tuple[int, ...], order: str) -> tuple[int, ...]:
    return (1, *shape) if order == "none" else (shape[-1], *shape[:-1]) if order == "last" else shape


def is_image(leaf: Leaf) -> bool:
    """Whether a leaf goes through a convolutional network: a Box of rank 3, or of rank 2 if it holds bytes."""
    if leaf.kind != "box" or len(leaf.shape) != (2 if leaf.dtype == "uint8" and len(leaf.shape) == 2 else 3):
        return False
    return min(_channels_first(leaf.shape, channel_order(leaf.shape))[1:]) >= _SMALLEST_SIDE


def encoder_of(leaf: Leaf, initialize: Initializer) -> tuple[Encoder, int]:
    """What makes features of a leaf, and how many."""
    if leaf.kind in ("discrete", "multi_discrete"):
        return OneHot(leaf), sum(leaf.choices)
    encoder: Encoder = flat
    num_features = leaf.num_components
    if is_image(leaf):
        encoder = image = Image(leaf.shape, initialize)
        num_features = image.num_features
    return (Scaled(leaf, encoder) if leaf.is_integer else encoder), num_features


class Inputs(nn.Module):
    """From the leaves of an observation to one vector of features: those of each leaf side by side.

    Args:
        leaves: What is seen.
        initialize: Draws the weights.
    """

    def __init__(self, leaves: Sequence[Leaf], initialize: Initializer) -> None:
        super().__init__()
        encoders = [encoder_of(leaf, initialize) for leaf in leaves]
        self.num_features = sum(num_features for _, num_features in encoders)
        self._encoders = [(leaf.path, encoder) for leaf, (encoder, _) in zip(leaves, encoders, strict=True)]
        self.networks = nn.ModuleList(encoder for encoder, _ in encoders if isinstance(encoder, nn.Module))

    def forward(self, obs: Observation) -> Tensor:
        """Features, shape (B, num_features)."""
        features = [encoder(obs[path]) for path, encoder in self._encoders]
        return features[0] if len(features) == 1 else torch.cat(features, dim=-1)


def seen_as(dtype: np.dtype[Any], precision: torch.dtype) -> np.dtype[Any]:
    """The dtype in which networks are given a leaf: its own, but floats as float64 or float32.

    Args:
        dtype: The leaf's own.
        precision: Dtype of the networks' parameters.
    """
    return np.dtype(np.float64 if precision == torch.float64 else np.float32) if dtype.kind == "f" else dtype
