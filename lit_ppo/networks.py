"""Networks: from the leaves of an observation to features, and from features to outputs.

R is a number of rows: observations, one for each step of each environment.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Final, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  the usual name

from lit_ppo.compat_torch import weight_and_bias
from lit_ppo.errors import ConfigError
from lit_ppo.spaces import ChannelOrder, Leaf, channel_order

Activation = Literal["tanh", "relu", "elu", "silu", "gelu"]
ImageNetwork = Literal["auto", "nature", "small", "flat"]
MemoryKind = Literal["gru", "lstm"]
_ACTIVATIONS: Final[dict[str, Callable[[Tensor], Tensor]]] = {
    "tanh": torch.tanh,
    "relu": F.relu,
    "elu": F.elu,
    "silu": F.silu,
    "gelu": F.gelu,
}
Observation = Mapping[str, Tensor]  # by path, shape (R, *leaf.shape), in the dtypes of `seen_as`
Encoder = Callable[[Tensor], Tensor]  # (R, *shape) -> (R, F)
_NATURE_SIDE: Final = 36  # smallest side of an image that fits the Nature network
_SMALLEST_SIDE: Final = 3  # of an image; anything smaller is a table of numbers
_INT64_SIZE: Final = 1 << 64  # how many numbers an int64 can be


def _global_stream_kept() -> AbstractContextManager[None]:
    """For making a layer, whose own initialisation draws from the global generator.

    Making it on the meta device instead would import sympy, which takes half a second.
    """
    return torch.random.fork_rng(devices=[])


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
        with _global_stream_kept():
            layer = nn.Linear(num_inputs, num_outputs)
        self._draw(layer, gain)
        return layer

    def conv(self, num_inputs: int, num_outputs: int, kernel: int, stride: int, padding: int) -> nn.Conv2d:
        """A layer for a ReLU, with its weights drawn."""
        with _global_stream_kept():
            layer = nn.Conv2d(num_inputs, num_outputs, kernel, stride, padding)
        self._draw(layer, math.sqrt(2))
        return layer

    def cell(self, kind: MemoryKind, num_inputs: int, size: int) -> nn.GRUCell | nn.LSTMCell:
        """A recurrent cell with its weights drawn."""
        with _global_stream_kept():
            cell = (nn.GRUCell if kind == "gru" else nn.LSTMCell)(num_inputs, size)
        for name, parameter in cell.named_parameters():
            if not self.orthogonal:  # the default of `nn.GRUCell` and `nn.LSTMCell`
                nn.init.uniform_(parameter, -1 / math.sqrt(size), 1 / math.sqrt(size), generator=self.generator)
            elif name.startswith("bias"):
                nn.init.zeros_(parameter)
            else:
                nn.init.orthogonal_(parameter, 1.0, generator=self.generator)
        return cell

    def seed(self) -> int:
        """A seed for code that draws from the global generator."""
        return int(torch.randint(1 << 62, (), generator=self.generator))

    def _draw(self, layer: nn.Linear | nn.Conv2d, gain: float) -> None:
        assert layer.bias is not None
        if self.orthogonal:
            nn.init.orthogonal_(layer.weight, gain, generator=self.generator)
            nn.init.zeros_(layer.bias)
        else:  # the default of `nn.Linear` and `nn.Conv2d`
            nn.init.kaiming_uniform_(layer.weight, a=math.sqrt(5), generator=self.generator)
            limit = 1 / math.sqrt(layer.weight[0].numel())
            nn.init.uniform_(layer.bias, -limit, limit, generator=self.generator)


class HiddenLayers(nn.Module):
    """Fully connected layers, each followed by an activation function.

    Layers are applied with `F.linear`: at the sizes of control tasks, calling the modules of an `nn.Sequential` takes as
    long as their computation.

    Args:
        num_inputs: Size of an input.
        sizes: Size of each layer; none leaves the inputs as they are.
        activation: Activation function.
        initialize: Draws the weights.
    """

    def __init__(self, num_inputs: int, sizes: Sequence[int], activation: Activation, initialize: Initializer) -> None:
        super().__init__()
        pairs = itertools.pairwise([num_inputs, *sizes])
        self.layers = nn.ModuleList(initialize.linear(*pair, math.sqrt(2)) for pair in pairs)
        self.num_features = sizes[-1] if sizes else num_inputs
        self._activate = _ACTIVATIONS[activation]

    def forward(self, features: Tensor) -> Tensor:
        """(R, num_inputs) to (R, num_features)."""
        layers: Any = self.layers  # of nn.Linear; not `cast`, which is called in every step
        for layer in layers:
            features = self._activate(linear(layer, features))
        return features


def linear(layer: nn.Linear, inputs: Tensor) -> Tensor:
    """What `layer(inputs)` is, without the time that calling a module takes."""
    return F.linear(inputs, *weight_and_bias(layer))


class OwnTorso(nn.Module):
    """A module of the user's in place of the hidden layers.

    Args:
        make: Makes the module from the size of its inputs.
        num_inputs: That size.
        initialize: Seeds the global generator, from which the module may draw its weights; afterwards it is as it was.

    Raises:
        ConfigError: It is no module, does not take its inputs, changes them in place, has no gradient, or its outputs have
            another shape than (R, F).
    """

    def __init__(self, make: Callable[[int], nn.Module], num_inputs: int, initialize: Initializer) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(initialize.seed())
            try:
                module = make(num_inputs)
                if not isinstance(module, nn.Module):
                    raise ConfigError(f"model.torso: expected a torch.nn.Module, got {type(module).__name__}")
                inputs = torch.zeros(2, num_inputs, requires_grad=True)
                outputs = module.eval()(inputs)
                if isinstance(outputs, Tensor) and outputs.requires_grad:
                    torch.autograd.grad(outputs.sum(), inputs, allow_unused=True)  # what works in place may fail only here
            except ConfigError:
                raise
            except Exception as error:  # of code that is not ours
                reason = str(error).partition("\n")[0]
                raise ConfigError(f"model.torso: with {num_inputs} inputs: {type(error).__name__}: {reason}") from error
        shape = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        if not isinstance(outputs, Tensor) or outputs.dim() != 2 or len(outputs) != 2 or not outputs.is_floating_point():
            raise ConfigError(
                f"model.torso: expected outputs of shape (2, features) for inputs of shape (2, {num_inputs}), got {shape}"
            )
        self.module = module.train()
        self.num_features = outputs.shape[1]

    def forward(self, features: Tensor) -> Tensor:
        """(R, num_inputs) to (R, num_features)."""
        outputs: Tensor = self.module(features)
        return outputs


class Memory(nn.Module):
    """A recurrent cell that is run through sequences; its state is an argument and a result, never hidden in the module.

    Args:
        kind: `gru` or `lstm`.
        num_inputs: Size of an input.
        size: Size of an output.
        initialize: Draws the weights.

    Source: Cho et al. 2014, https://arxiv.org/abs/1406.1078; Hochreiter and Schmidhuber 1997, "Long short-term memory".
    """

    def __init__(self, kind: MemoryKind, num_inputs: int, size: int, initialize: Initializer) -> None:
        super().__init__()
        self.cell = initialize.cell(kind, num_inputs, size)
        self.num_features = size
        self.state_size = size if kind == "gru" else 2 * size  # an LSTM has output and cell side by side

    def forward(self, features: Tensor, state: Tensor, begins: Tensor) -> tuple[Tensor, Tensor]:
        """S sequences of L steps, one after the other: R = S * L rows.

        Args:
            features: Shape (R, num_inputs).
            state: Before the first step of each sequence, shape (S, state_size).
            begins: Whether an episode begins with this row, so that nothing is remembered, shape (R,), bool.

        Returns:
            Features, shape (R, num_features), and the state after each row, shape (R, state_size).
        """
        num_sequences = state.shape[0]  # not len, which an exporter takes for a constant
        keeps = (~begins).to(state.dtype).view(num_sequences, -1, 1)
        states: list[Tensor] = []
        # in full precision: errors of a state add up over a sequence
        with torch.autocast(features.device.type, enabled=False):
            inputs = features.to(state.dtype).view(num_sequences, -1, features.shape[-1])
            for step, keep in zip(inputs.unbind(1), keeps.unbind(1), strict=True):
                state = self._next(step, state * keep)
                states.append(state)
        after = torch.stack(states, dim=1).flatten(0, 1) if len(states) > 1 else states[0]
        return after[:, : self.num_features], after

    def _next(self, features: Tensor, state: Tensor) -> Tensor:
        if isinstance(self.cell, nn.GRUCell):
            after: Tensor = self.cell(features, state)
            return after
        return torch.cat(self.cell(features, tuple(state.chunk(2, dim=-1))), dim=-1)


# -- from one leaf to features


def flat(values: Tensor) -> Tensor:
    """Numbers as they are: (R, *shape) to (R, F)."""
    return values if values.dim() == 2 else values.reshape(values.shape[0], -1)


class Scaled(nn.Module):
    """Whole numbers scaled from their bounds to [0, 1]: (R, *shape) to (R, F).

    (x - low) / (high - low). The difference is exact: up to 16 bits in float32, of wider numbers in int64, where it becomes a
    float only once the offset is gone. A difference that int64 cannot hold is taken from the middle of the range.

    Args:
        leaf: What is scaled.
        then: What makes features of the scaled numbers.
    """

    def __init__(self, leaf: Leaf, then: Encoder) -> None:
        super().__init__()
        ends = [bound if isinstance(bound, tuple) else (bound,) for bound in (leaf.low, leaf.high)]
        # of single numbers a single number, which costs an image less memory traffic
        size, shape = (leaf.num_components, leaf.shape) if max(map(len, ends)) > 1 else (1, (1,))
        lows, highs = ([_within(leaf, end) for end in (bound * size if len(bound) == 1 else bound)] for bound in ends)
        spans = [max(high - low, 1) for low, high in zip(lows, highs, strict=True)]
        middles = [_INT64_SIZE // 2 if span >= _INT64_SIZE // 2 else 0 for span in spans]
        # modulo 2^64, as int64 counts, so that uint64 has its offsets, too
        offsets = [_as_int64(low + middle) for low, middle in zip(lows, middles, strict=True)]
        self._is_wide = np.promote_types(leaf.dtype, np.float32) != np.float32
        subtracts_as = torch.int64 if self._is_wide else torch.float32
        self.register_buffer("offset", torch.tensor(offsets).view(shape).to(subtracts_as), persistent=False)
        for name, numbers in (("span", spans), ("middle", middles)):
            self.register_buffer(name, torch.tensor(numbers, dtype=torch.float64).view(shape).float(), persistent=False)
        self.then = then

    def forward(self, values: Tensor) -> Tensor:
        offset, span = cast(Tensor, self.offset), cast(Tensor, self.span)
        numbers = values.to(offset.dtype) - offset
        if self._is_wide:
            numbers = numbers.to(span.dtype) + cast(Tensor, self.middle)
        return self.then(numbers / span)


def _within(leaf: Leaf, bound: float) -> int:
    """A bound as a whole number that the leaf's dtype can hold; infinite ones become the ends of the dtype."""
    if leaf.dtype == "bool":
        return int(bound)
    limits = np.iinfo(leaf.dtype)
    return limits.min if bound < limits.min else limits.max if bound > limits.max else int(bound)


def _as_int64(number: int) -> int:
    return (number + _INT64_SIZE // 2) % _INT64_SIZE - _INT64_SIZE // 2


class OneHot(nn.Module):
    """A code for each choice, side by side: (R, *shape) to (R, sum of choices).

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
        columns = values.reshape(values.shape[0], -1).to(torch.int64) + cast(Tensor, self.shifts)
        return cast(Tensor, self.one).new_zeros(values.shape[0], self._num_features).scatter(1, columns, 1.0)


@dataclass(frozen=True)
class ImageSettings:
    """What is done with images.

    Attributes:
        network: `nature` is the network of Mnih et al., `small` one of three padded 3x3 layers, which fits any side, `auto` the
            first from sides of 36 on and the second below; `flat` takes an image as a vector.
        channels: Where the channels are; `auto` decides by the shape.

    Source: Mnih et al. 2015, "Human-level control through deep reinforcement learning", methods.
    """

    network: ImageNetwork = "auto"
    channels: ChannelOrder = "auto"


class Image(nn.Module):
    """A convolutional network: (R, *shape) to (R, F).

    Args:
        leaf: The image, with or without channels.
        settings: Which network.
        initialize: Draws the weights.

    Raises:
        ConfigError: The image is too small for the network.
    """

    def __init__(self, leaf: Leaf, settings: ImageSettings, initialize: Initializer) -> None:
        super().__init__()
        self._order = channel_order(leaf.shape, settings.channels)
        num_channels, *sides = _channels_first(leaf.shape, self._order)
        fits = min(sides) >= _NATURE_SIDE
        if settings.network == "nature" and not fits:
            name = f"the image {leaf.path!r}" if leaf.path else "the image"
            raise ConfigError(
                f"model.image_network=nature: {name} has sides {tuple(sides)}, which must be at least {_NATURE_SIDE}; use small"
            )
        if fits and settings.network != "small":
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


def _channels_first(shape: tuple[int, ...], order: str) -> tuple[int, ...]:
    return (1, *shape) if order == "none" else (shape[-1], *shape[:-1]) if order == "last" else shape


def is_image(leaf: Leaf, channels: ChannelOrder = "auto") -> bool:
    """Whether a leaf is an image: a Box of rank 3, or of rank 2 if it holds bytes, with sides of at least 3."""
    if leaf.kind != "box" or len(leaf.shape) != (2 if leaf.dtype == "uint8" and len(leaf.shape) == 2 else 3):
        return False
    return min(_channels_first(leaf.shape, channel_order(leaf.shape, channels))[1:]) >= _SMALLEST_SIDE


def encoder_of(leaf: Leaf, images: ImageSettings, is_normalized: bool, initialize: Initializer) -> tuple[Encoder, int]:
    """What makes features of a leaf, and how many."""
    if leaf.kind in ("discrete", "multi_discrete"):
        return OneHot(leaf), sum(leaf.choices)
    encoder: Encoder = flat
    num_features = leaf.num_components
    if images.network != "flat" and is_image(leaf, images.channels):
        encoder = image = Image(leaf, images, initialize)
        num_features = image.num_features
    return (Scaled(leaf, encoder) if leaf.is_integer and not is_normalized else encoder), num_features


class Inputs(nn.Module):
    """From the leaves of an observation to one vector of features: those of each leaf side by side.

    Args:
        leaves: What is seen.
        images: What is done with images.
        initialize: Draws the weights.
        normalized: Those of the leaves that are normalised already; whole numbers among them are not scaled.
    """

    def __init__(
        self, leaves: Sequence[Leaf], images: ImageSettings, initialize: Initializer, normalized: Sequence[Leaf] = ()
    ) -> None:
        super().__init__()
        encoders = [encoder_of(leaf, images, leaf in normalized, initialize) for leaf in leaves]
        self.num_features = sum(num_features for _, num_features in encoders)
        self._encoders = [(leaf.path, encoder) for leaf, (encoder, _) in zip(leaves, encoders, strict=True)]
        self.networks = nn.ModuleList(encoder for encoder, _ in encoders if isinstance(encoder, nn.Module))

    def forward(self, obs: Observation) -> Tensor:
        """Features, shape (R, num_features)."""
        features = [encoder(obs[path]) for path, encoder in self._encoders]
        return features[0] if len(features) == 1 else torch.cat(features, dim=-1)


def seen_as(dtype: np.dtype[Any], precision: torch.dtype, is_normalized: bool = True) -> np.dtype[Any]:
    """The dtype in which a policy is given a leaf: whole numbers in their own, floats in that of the parameters.

    Args:
        dtype: The leaf's own.
        precision: Dtype of the networks' parameters.
        is_normalized: Whether the leaf is normalised. Then float64 stays float64, and is converted once its mean is gone.
    """
    if dtype.kind != "f":
        return dtype
    parameters = np.dtype(np.float64 if precision == torch.float64 else np.float32)
    return np.promote_types(dtype, parameters) if is_normalized else parameters
