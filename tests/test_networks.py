"""Networks: what is made of each kind of leaf, shapes, and weights that come from one generator."""

import math
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lit_ppo.errors import ConfigError
from lit_ppo.networks import (
    Activation,
    HiddenLayers,
    Image,
    ImageSettings,
    Inputs,
    Scaled,
    flat,
    is_image,
    seen_as,
)
from lit_ppo.ppo_settings import PPOSettings
from lit_ppo.spaces import Leaf, channel_order
from tests.specs import box, discrete, generator, image, initializer, multi_binary, multi_discrete, policy_of, vector_spec


def linears(network: nn.Module) -> list[nn.Linear]:
    return [layer for layer in network.modules() if isinstance(layer, nn.Linear)]


def gram(weight: Tensor) -> Tensor:
    """W W^T of the shorter side: a multiple of the identity if and only if W is orthogonal."""
    weight = weight.flatten(1)
    return weight @ weight.T if weight.shape[0] <= weight.shape[1] else weight.T @ weight


def require_orthogonal(weight: Tensor, gain: float) -> None:
    product = gram(weight)
    torch.testing.assert_close(product, gain**2 * torch.eye(len(product)), rtol=0, atol=1e-5)


def inputs_of(leaves: list[Leaf], images: ImageSettings = ImageSettings()) -> Inputs:  # noqa: B008  frozen
    return Inputs(leaves, images, initializer())


def network_of(shape: tuple[int, ...], images: ImageSettings = ImageSettings(), **how: Any) -> Image:  # noqa: B008  frozen
    return Image(box(*shape), images, initializer(**how))


def features(leaf: Leaf, *values: Any, dtype: type | None = None) -> list[list[float]]:
    """What `Inputs` makes of some values of one leaf."""
    obs = torch.from_numpy(np.array(values, dtype or leaf.dtype))
    seen: list[list[float]] = inputs_of([leaf])({leaf.path: obs}).tolist()
    return seen


# -- from leaves to features


def test_numbers_are_seen_as_they_are() -> None:
    assert features(box(2), [1.5, -2.0], [3.0, 1e6]) == [[1.5, -2.0], [3.0, 1e6]]
    assert features(box(), 1.5, -2.0) == [[1.5], [-2.0]]
    assert features(box(1, 1, 1, 2), [[[[1.0, 2.0]]]]) == [[1.0, 2.0]]


def test_choices_are_seen_as_one_hot_codes() -> None:
    assert features(discrete(3), 0, 2) == [[1, 0, 0], [0, 0, 1]]
    assert features(discrete(3, start=-1), -1, 0) == [[1, 0, 0], [0, 1, 0]]
    assert features(multi_discrete(2, 3), [1, 0], [0, 2]) == [[0, 1, 1, 0, 0], [1, 0, 0, 0, 1]]
    shifted = multi_discrete(2, 2, 2, 2, shape=(2, 2), start=(5, -1, 0, 7))
    assert features(shifted, [[6, -1], [1, 7]]) == [[0, 1, 1, 0, 0, 1, 1, 0]]


def test_truth_values_are_seen_as_zero_and_one() -> None:
    assert features(multi_binary(2, 2), [[0, 1], [1, 0]]) == [[0, 1, 1, 0]]
    assert features(box(2, dtype="bool", low=0, high=1), [True, False]) == [[1, 0]]


def test_whole_numbers_are_scaled_by_their_bounds() -> None:
    assert features(box(3, dtype="uint8", low=0, high=255), [0, 51, 255]) == [[0, pytest.approx(0.2), 1]]
    assert features(box(3, dtype="int64", low=(-1, 0, 4), high=(1, 10, 4)), [0, 5, 4]) == [[0.5, 0.5, 0]]
    whole = box(1, dtype="int64", low=-(2**63), high=2**63 - 1)
    assert features(whole, [2**62]) == [[pytest.approx(0.75)]]


WHOLE = ("bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")


@st.composite
def whole_numbers(draw: st.DrawFn) -> tuple[Leaf, np.ndarray]:
    """A leaf of any whole numbers, with bounds for all or for each, and values within them, shape (R, 3)."""
    dtype = draw(st.sampled_from(WHOLE))
    low, high = (0, 1) if dtype == "bool" else (int(np.iinfo(dtype).min), int(np.iinfo(dtype).max))

    def window() -> tuple[int, int]:
        first = draw(st.integers(low, high))
        width = draw(st.sampled_from([0, 1, 100, 1 << 24, 1 << 53, 1 << 62, 1 << 63, 1 << 64]))
        return (first, min(high, first + width)) if draw(st.booleans()) else (max(low, first - width), first)

    windows = [window() for _ in range(3)] if draw(st.booleans()) else [window()] * 3
    lows, highs = (tuple(ends) for ends in zip(*windows, strict=True))
    rows = [[draw(st.integers(*ends)) for ends in windows] for _ in range(4)]
    is_one = len(set(windows)) == 1 and draw(st.booleans())
    leaf = Leaf("", "box", (3,), dtype, *((lows[0], highs[0]) if is_one else (lows, highs)))
    return leaf, np.array([lows, highs, *rows], dtype)


@given(whole_numbers(), st.sampled_from([torch.float32, torch.float64]))
@settings(max_examples=300)
def test_whole_numbers_are_scaled_exactly_and_rounded_once(drawn: tuple[Leaf, np.ndarray], precision: torch.dtype) -> None:
    leaf, values = drawn
    low, high = (bound if isinstance(bound, tuple) else (bound,) * 3 for bound in (leaf.low, leaf.high))
    scaled = Scaled(leaf, flat).to(precision)(torch.from_numpy(values))
    assert scaled.dtype == precision
    for row, expected in zip(scaled.tolist(), values.tolist(), strict=True):
        for got, value, first, last in zip(row, expected, low, high, strict=True):
            exact = Fraction(int(value) - int(first), max(int(last) - int(first), 1))
            # a difference that int64 cannot hold is taken from the middle, where a float32 is within 2^-25
            assert abs(got - exact) <= (exact if last - first < 1 << 63 else 1) * 2.0**-22


def test_infinite_bounds_of_whole_numbers_are_those_of_the_dtype() -> None:
    assert features(box(1, dtype="int8"), [-128], [127]) == [[0], [1]]
    assert features(box(1, dtype="int64", high=2**53), [2**53], [-(2**63)]) == [[1], [0]]


def test_leaves_stand_side_by_side_in_their_order() -> None:
    leaves = [box(2, path="b"), discrete(2, path="a"), multi_binary(1, path="c/0")]
    inputs = inputs_of(leaves)
    obs = {"a": torch.tensor([1]), "c/0": torch.tensor([[1]], dtype=torch.int8), "b": torch.tensor([[0.5, 2.0]])}
    assert inputs.num_features == 5
    assert inputs({**obs, "unused": torch.zeros(1, 9)}).tolist() == [[0.5, 2.0, 0, 1, 1]]


def test_one_vector_is_not_even_copied() -> None:
    obs = torch.randn(3, 4)
    assert inputs_of([box(4)])({"": obs}) is obs


@pytest.mark.parametrize(
    "leaf", [box(3), discrete(3), multi_discrete(3, 2), multi_binary(2), image(7, 7, 3), box(2, dtype="int16", low=0, high=9)]
)
@pytest.mark.parametrize("precision", [torch.float32, torch.float64])
def test_features_have_the_dtype_of_the_parameters(leaf: Leaf, precision: torch.dtype) -> None:
    inputs = inputs_of([leaf]).to(precision)
    values = np.ones((2, *leaf.shape), seen_as(np.dtype(leaf.dtype), precision))
    assert inputs({"": torch.from_numpy(values)}).dtype == precision


def test_floats_are_seen_in_the_precision_of_the_networks_unless_normalised_and_all_else_as_it_is() -> None:
    for dtype, single, double in (
        ("float16", "float32", "float64"),
        ("float32", "float32", "float64"),
        ("float64", "float64", "float64"),
        ("uint8", "uint8", "uint8"),
        ("bool", "bool", "bool"),
        ("int64", "int64", "int64"),
    ):
        assert seen_as(np.dtype(dtype), torch.float32) == single
        assert seen_as(np.dtype(dtype), torch.float64) == double
        rounded = "float32" if dtype == "float64" else single  # unless it is normalised, it is rounded at once
        assert seen_as(np.dtype(dtype), torch.float32, is_normalized=False) == rounded


def test_inputs_have_no_state_but_the_weights_of_images() -> None:
    plain = [box(3, path="a"), discrete(3, path="b"), box(2, path="c", dtype="uint8", low=0, high=9)]
    assert inputs_of(plain).state_dict() == {}
    assert len(inputs_of([*plain, image(9, 9, 3, path="d")]).state_dict()) == 8  # 4 layers


# -- images


@pytest.mark.parametrize(
    ("shape", "order"),
    [
        ((84, 84, 3), "last"),
        ((3, 84, 84), "first"),
        ((4, 84, 84), "first"),
        ((84, 84, 1), "last"),
        ((7, 7, 3), "last"),
        ((7, 7, 20), "first"),
        ((20, 30, 12), "last"),
        ((3, 3, 3), "last"),
        ((1, 4, 4), "first"),
        ((4, 4, 1), "last"),
        ((5, 5, 5), "first"),
        ((84, 84), "none"),
    ],
)
def test_order_of_channels_follows_from_the_shape(shape: tuple[int, ...], order: str) -> None:
    assert channel_order(shape) == order


@pytest.mark.parametrize(
    ("leaf", "expected"),
    [
        (image(84, 84, 3), True),
        (image(3, 84, 84), True),
        (box(3, 3), False),  # a table of numbers
        (Leaf("", "box", (3, 3), "uint8", 0, 255), True),
        (box(3, 3, 3), True),
        (box(2, 9), False),
        (box(9, 2, 3), False),
        (box(9), False),
        (box(9, 9, 9, 9), False),
        (multi_binary(9, 9), False),
    ],
)
def test_what_is_large_enough_in_two_dimensions_is_an_image(leaf: Leaf, expected: bool) -> None:
    assert is_image(leaf) == expected


@pytest.mark.parametrize("side", [3, 4, 5, 7, 8, 11, 16, 35, 36, 37, 64, 84, 96])
@pytest.mark.parametrize(
    "shape_of", [lambda s: (s, s, 3), lambda s: (3, s, s), lambda s: (s, s), lambda s: (s, 2 * s, 3), lambda s: (1, s, s)]
)
def test_images_of_any_side_and_order_fit(side: int, shape_of: Callable[[int], tuple[int, ...]]) -> None:
    network = network_of(shape_of(side))
    assert network.num_features == (512 if side >= 36 else 128)
    assert network(torch.zeros(2, *shape_of(side))).shape == (2, network.num_features)


def test_large_images_go_through_the_network_of_the_paper() -> None:
    weights = [tuple(parameter.shape) for name, parameter in network_of((84, 84, 4)).named_parameters() if "weight" in name]
    # 84 -> (84 - 8) / 4 + 1 = 20 -> (20 - 4) / 2 + 1 = 9 -> 9 - 3 + 1 = 7
    assert weights == [(32, 4, 8, 8), (64, 32, 4, 4), (64, 64, 3, 3), (512, 64 * 7 * 7)]


def test_order_of_channels_and_network_can_be_set() -> None:
    assert channel_order((7, 7, 20), "last") == "last" and channel_order((84, 84), "first") == "none"
    assert network_of((7, 7, 20), ImageSettings(channels="last"))(torch.zeros(2, 7, 7, 20)).shape == (2, 128)
    assert network_of((64, 64, 3), ImageSettings("small")).num_features == 128
    assert inputs_of([image(9, 9, 3)], ImageSettings("flat")).num_features == 9 * 9 * 3
    with pytest.raises(ConfigError) as refused:
        network_of((9, 9, 3), ImageSettings("nature"))
    expected = "model.image_network=nature: the image has sides (9, 9), which must be at least 36; use small"
    assert str(refused.value) == expected


def test_both_orders_of_channels_show_the_same() -> None:
    last, first = network_of((9, 12, 3)), network_of((3, 9, 12))
    images = torch.rand(2, 9, 12, 3, generator=generator(1))
    torch.testing.assert_close(last(images), first(images.permute(0, 3, 1, 2)))


def test_image_of_whole_numbers_is_scaled_before_its_network() -> None:
    leaf = image(9, 9, 3, path="camera")
    inputs, alone = inputs_of([leaf]), network_of((9, 9, 3))
    pixels = torch.randint(256, (2, 9, 9, 3), generator=generator(1), dtype=torch.uint8)
    torch.testing.assert_close(inputs({"camera": pixels}), alone(pixels / 255))


# -- the layers


def hidden(*sizes: int, activation: Activation = "tanh", **how: Any) -> HiddenLayers:
    return HiddenLayers(4, sizes, activation, initializer(**how))


def test_weights_are_orthogonal_with_a_last_layer_of_its_own_gain() -> None:
    policy = policy_of(vector_spec(4, 3), PPOSettings(actor_hidden_sizes=(16, 8), critic_hidden_sizes=(8,)))
    for network, gains in ((policy.actor, [math.sqrt(2)] * 2 + [0.01]), (policy.critic, [math.sqrt(2), 1.0])):
        for layer, expected in zip(linears(network), gains, strict=True):
            require_orthogonal(layer.weight, expected)
            assert layer.bias is not None and not layer.bias.any()


@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_weights_of_memory_are_orthogonal_or_those_of_pytorch(kind: Any) -> None:
    for name, parameter in initializer().cell(kind, 3, 5).named_parameters():
        if name.startswith("bias"):
            assert not parameter.any()
        else:
            require_orthogonal(parameter, 1.0)
    for parameter in initializer(orthogonal=False).cell(kind, 3, 64).parameters():
        assert 0.9 / 8 < parameter.abs().max() <= 1 / 8  # uniform within 1 / sqrt(size)


def test_weights_of_images_are_orthogonal() -> None:
    for layer in network_of((40, 40, 3)).modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            require_orthogonal(layer.weight, math.sqrt(2))
            assert layer.bias is not None and not layer.bias.any()


def test_without_orthogonal_weights_layers_start_as_those_of_pytorch() -> None:
    made = [*hidden(64, orthogonal=False).layers, *network_of((9, 9, 3), orthogonal=False).layers]
    for layer in made:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            # uniform within 1 / sqrt(fan in), for weights and biases
            limit = 1 / math.sqrt(layer.weight[0].numel())
            assert layer.bias is not None
            assert 0.9 * limit < layer.weight.abs().max() <= limit * (1 + 1e-6)
            assert 0 < layer.bias.abs().max() <= limit * (1 + 1e-6)


def test_no_hidden_layers_leave_a_linear_network() -> None:
    policy = policy_of(vector_spec(4, 3), PPOSettings(actor_hidden_sizes=(), critic_hidden_sizes=()))
    assert [tuple(layer.weight.shape) for layer in linears(policy)] == [(3, 4), (1, 4)]


@pytest.mark.parametrize(
    ("activation", "kind"), [("tanh", nn.Tanh), ("relu", nn.ReLU), ("elu", nn.ELU), ("silu", nn.SiLU), ("gelu", nn.GELU)]
)
def test_activation_stands_between_layers_and_not_behind_the_last(activation: Activation, kind: type[nn.Module]) -> None:
    policy = policy_of(vector_spec(4, 3), PPOSettings(activation=activation))
    first, second, last = linears(policy.actor)
    obs = torch.randn(5, 4, generator=generator(1))
    assert policy({"": obs}).outputs.equal(nn.Sequential(first, kind(), second, kind(), last)(obs))


def test_same_seed_makes_the_same_weights_and_another_seed_others() -> None:
    first, same, other = (hidden(8, seed=seed).state_dict() for seed in (3, 3, 4))
    assert all(first[name].equal(same[name]) for name in first)
    assert not first["layers.0.weight"].equal(other["layers.0.weight"])


@pytest.mark.parametrize("orthogonal", [True, False])
def test_making_networks_leaves_the_global_stream_alone(orthogonal: bool) -> None:
    before = torch.get_rng_state()
    hidden(8, orthogonal=orthogonal)
    initializer(orthogonal=orthogonal).cell("lstm", 3, 4)
    network_of((9, 9, 3), orthogonal=orthogonal)
    assert torch.get_rng_state().equal(before)


def test_making_a_policy_imports_no_sympy() -> None:
    """Half a second at the start of each run: layers on the meta device would need it."""
    code = """
import sys, torch
from lit_ppo.ppo_settings import PPOSettings
from tests.specs import policy_of, vector_spec
for memory in (None, "gru"):
    policy_of(vector_spec(4, 2), PPOSettings(memory=memory))
print("sympy" in sys.modules)
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout == "False\n"
