"""Running moments against numpy and exact fractions; normalised observations and rewards against numbers worked out by hand."""

import copy
import io
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn

from lit_ppo import normalization
from lit_ppo.errors import ConfigError
from lit_ppo.networks import seen_as
from lit_ppo.normalization import (
    Moments,
    ObservationNormalizer,
    RewardNormalizer,
    RunningMoments,
    deviation,
    merged,
    moments_of,
    normalized_leaves,
)
from lit_ppo.spaces import Leaf
from tests.specs import box, discrete, generator, image, multi_binary, multi_discrete

POSITION = box(3, path="position")
HEIGHT = box(path="sensors.left/height")
PIXELS = image(8, 8, 3, path="pixels")


def assert_same(actual: Moments, expected: Moments, values: Tensor, digits: float = 1e-12) -> None:
    """Equal up to rounding: the mean relative to the largest value, m2 relative to itself where the mean is not far larger.

    A mean has an error of about 1e-16 * |largest value|, and m2 that error times sqrt(count * m2).
    """
    largest = values.double().abs().max().item() if values.numel() else 0.0
    assert actual.count == expected.count
    torch.testing.assert_close(actual.mean, expected.mean, rtol=0, atol=digits * largest)
    allowed = digits * (expected.m2 + largest * (expected.count * expected.m2).sqrt() + largest**2 * 1e-16)
    assert ((actual.m2 - expected.m2).abs() <= allowed).all(), (actual.m2, expected.m2)


@st.composite
def weighted_values(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Values of any scale and offset, shape (B, 2), and weights, shape (B,)."""
    num_rows = draw(st.integers(1, 60))
    scale = 10.0 ** draw(st.integers(-30, 30))
    offset = scale * draw(st.sampled_from([0.0, 1.0, -300.0]))
    seed = draw(st.integers(0, 2**31))
    values = offset + scale * torch.randn(num_rows, 2, generator=generator(seed), dtype=torch.float64)
    weights = draw(st.lists(st.booleans(), min_size=num_rows, max_size=num_rows))
    return values, torch.tensor(weights)


# -- moments


@given(weighted_values())
def test_moments_are_those_of_numpy(drawn: tuple[Tensor, Tensor]) -> None:
    values, weights = drawn
    rows = values.numpy()[weights.numpy()]
    moments = moments_of(values, weights)
    assert moments.count == len(rows) and {part.dtype for part in moments} == {torch.float64}
    if len(rows):
        numpy_moments = (torch.from_numpy(np.asarray(part)) for part in (rows.mean(0), rows.var(0) * len(rows)))
        assert_same(moments, Moments(moments.count, *numpy_moments), values)
    else:
        assert moments.mean.tolist() == moments.m2.tolist() == [0.0, 0.0]


@given(weighted_values(), st.integers(0, 60))
def test_two_halves_merged_are_the_whole(drawn: tuple[Tensor, Tensor], split: int) -> None:
    values, weights = drawn
    halves = (moments_of(values[part], weights[part]) for part in (slice(split), slice(split, None)))
    assert_same(merged(*halves), moments_of(values, weights), values)


@given(st.integers(-100, 100), st.integers(1, 1000), st.integers(1, 1000), st.integers(0, 2**31))
def test_two_halves_merged_are_the_whole_to_twelve_digits(exponent: int, left: int, right: int, seed: int) -> None:
    values = 10.0**exponent * (1 + torch.rand(left + right, generator=generator(seed), dtype=torch.float64))
    both, whole = merged(moments_of(values[:left]), moments_of(values[left:])), moments_of(values)
    assert both.count == whole.count == left + right
    assert both.mean.item() == pytest.approx(whole.mean.item(), rel=1e-12, abs=0)
    assert both.m2.item() == pytest.approx(whole.m2.item(), rel=1e-12, abs=0)


@given(weighted_values(), st.integers(0, 60), st.integers(0, 60))
def test_order_of_merging_does_not_matter(drawn: tuple[Tensor, Tensor], one: int, other: int) -> None:
    values, weights = drawn
    first, second = sorted((one, other))
    a, b, c = (moments_of(values[part], weights[part]) for part in (slice(first), slice(first, second), slice(second, None)))
    assert_same(merged(merged(a, b), c), merged(a, merged(b, c)), values)
    assert_same(merged(a, b), merged(b, a), values)


@given(weighted_values())
def test_merging_with_nothing_changes_nothing(drawn: tuple[Tensor, Tensor]) -> None:
    moments, nothing = moments_of(drawn[0]), moments_of(drawn[0], torch.zeros(len(drawn[0])))
    for both in (merged(moments, nothing), merged(nothing, moments)):
        assert all(map(torch.equal, both, moments))
    assert [part.tolist() for part in merged(nothing, nothing)] == [0.0, [0.0, 0.0], [0.0, 0.0]]


def exact_moments(values: list[float]) -> tuple[float, float]:
    """Mean and sum of squared deviations without rounding."""
    exact = [Fraction(value) for value in values]
    mean = sum(exact) / len(exact)
    return float(mean), float(sum((value - mean) ** 2 for value in exact))


@given(st.integers(0, 2**31))
@settings(max_examples=20)
def test_variance_beside_a_mean_a_billion_times_larger_is_exact(seed: int) -> None:
    values = 1e6 + 1e-3 * torch.randn(1000, generator=generator(seed), dtype=torch.float64)
    moments, (mean, m2) = moments_of(values), exact_moments(values.tolist())
    assert moments.mean.item() == pytest.approx(mean, rel=2e-16)
    assert moments.m2.item() == pytest.approx(m2, rel=1e-12)


def test_merging_beside_a_mean_a_billion_times_larger_keeps_six_digits() -> None:
    values = 1e6 + 1e-3 * torch.randn(1000, generator=generator(), dtype=torch.float64)
    moments = moments_of(values[:0])
    for part in values.split(10):
        moments = merged(moments, moments_of(part))
    # a mean in float64 has steps of 1e-10, a ten-millionth of the deviation
    assert moments.m2.item() == pytest.approx(exact_moments(values.tolist())[1], rel=1e-6)


def test_rows_of_weight_zero_may_hold_anything() -> None:
    values = torch.tensor([[1.0, 2.0], [math.nan, math.inf], [3.0, 6.0]])
    count, mean, m2 = moments_of(values, torch.tensor([1, 0, 1]))
    # means (1 + 3) / 2 and (2 + 6) / 2, deviations 1 and 2, twice each
    assert (count.item(), mean.tolist(), m2.tolist()) == (2.0, [2.0, 4.0], [2.0, 8.0])


@pytest.mark.parametrize("num_rows", [0, 1, 5])
def test_no_rows_and_equal_rows_have_no_variance(num_rows: int) -> None:
    count, mean, m2 = moments_of(torch.full((num_rows, 2, 3), 0.1))
    assert count == num_rows and mean.shape == m2.shape == (2, 3) and (m2 == 0).all()
    assert (mean == (torch.tensor(0.1).double() if num_rows else 0)).all()


@pytest.mark.parametrize("with_weights", [False, True])
def test_images_are_counted_in_chunks(monkeypatch: pytest.MonkeyPatch, with_weights: bool) -> None:
    pixels = torch.randint(256, (50, 4, 5), generator=generator(), dtype=torch.uint8)
    weights = torch.arange(50) % 3 > 0 if with_weights else None
    whole = moments_of(pixels, weights)
    sizes: list[int] = []
    of_chunk = normalization._moments_of_chunk

    def watched(values: Tensor, weights: Tensor | None) -> Moments:
        sizes.append(len(values))
        return of_chunk(values, weights)

    monkeypatch.setattr(normalization, "_moments_of_chunk", watched)
    monkeypatch.setattr(normalization, "_NUMBERS_OF_A_CHUNK", 7 * 20 + 3)  # seven images of twenty numbers, and a bit
    assert_same(moments_of(pixels, weights), whole, pixels)
    assert sizes == [7] * 7 + [1]


def test_weights_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"weights: expected shape \(5,\), got \(5, 1\)"):
        moments_of(torch.zeros(5, 2), torch.ones(5, 1))


# -- moments as part of a module


def conversions() -> list[Callable[[nn.Module], nn.Module]]:
    return [nn.Module.float, nn.Module.half, nn.Module.double, nn.Module.bfloat16, lambda module: module.to(torch.float16)]


def trained(leaves: list[Leaf], clip: float | None = None, seed: int = 0) -> ObservationNormalizer:
    """A normaliser that has seen ten observations of mean 5 and deviation 3."""
    normalizer = ObservationNormalizer(leaves, clip)
    normalizer.commit(normalizer.updated(normalizer.moments_of(observations(leaves, seed))))
    return normalizer


def observations(leaves: list[Leaf], seed: int = 0) -> dict[str, Tensor]:
    return {leaf.path: 5 + 3 * torch.randn(10, *leaf.shape, generator=generator(seed)) for leaf in leaves}


def moments_module(normalizer: ObservationNormalizer, index: int = 0) -> RunningMoments:
    module = normalizer.leaves[index]
    assert isinstance(module, RunningMoments)
    return module


@pytest.mark.parametrize("convert", conversions())
def test_moments_stay_float64_and_lose_no_digit(convert: Callable[[nn.Module], nn.Module]) -> None:
    module = nn.Sequential(nn.Linear(3, 3), trained([POSITION]))
    running = moments_module(module[1])
    before, scale = running.moments, running.scale.clone()
    convert(module)
    dtype = module[0].weight.dtype
    assert {part.dtype for part in running.moments} == {torch.float64} and all(map(torch.equal, before, running.moments))
    assert running.center.dtype == running.scale.dtype == dtype
    assert torch.equal(running.center, before.mean.to(dtype))  # not by way of another dtype
    assert torch.equal(module.float()[1].leaves[0].scale, scale)


@pytest.mark.parametrize("convert", conversions())
def test_mean_of_wide_numbers_stays_float64_and_what_comes_out_is_converted(convert: Callable[[nn.Module], nn.Module]) -> None:
    module = nn.Sequential(nn.Linear(3, 3), trained([box(3, path="position", dtype="float64")]))
    convert(module)
    running = moments_module(module[1])
    assert running.center.dtype == torch.float64 and torch.equal(running.center, running.mean)
    assert module[1]({"position": torch.zeros(2, 3)})["position"].dtype == module[0].weight.dtype


def test_moments_follow_the_device() -> None:
    running = moments_module(trained([POSITION]).to("meta"))
    assert {buffer.device.type for buffer in running.buffers()} == {"meta"}
    assert moments_module(trained([POSITION]).to("meta", torch.float16)).mean.dtype == torch.float64
    assert {buffer.device.type for buffer in running.to_empty(device="cpu").buffers()} == {"cpu"}


def test_replacing_keeps_the_memory_and_copies_are_copies() -> None:
    running = RunningMoments((3,))
    memory = {name: buffer.data_ptr() for name, buffer in running.named_buffers()}
    before = running.moments
    new = moments_of(torch.tensor([[1.0, 2.0, 3.0], [3.0, 6.0, 9.0]]))
    running.replace(new)
    assert {name: buffer.data_ptr() for name, buffer in running.named_buffers()} == memory and len(memory) == 5
    assert before.count == 0 and (before.mean == 0).all()
    assert running.variance.tolist() == [1.0, 4.0, 9.0]  # deviations 1, 2 and 3 from the means 2, 4 and 6
    new.mean.zero_()
    assert running.mean.tolist() == running.center.tolist() == [2.0, 4.0, 6.0]


def test_variance_before_any_value_is_zero_and_the_divisor_one() -> None:
    running = RunningMoments((2,))
    assert running.variance.tolist() == [0.0, 0.0]
    assert deviation(running.moments).tolist() == [1.0, 1.0]


def test_moments_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected shapes \(\), \(3,\) and the same again, got \[\(\), \(2,\), \(2,\)\]"):
        RunningMoments((3,)).replace(moments_of(torch.zeros(4, 2)))


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_state_dict_restores_everything_exactly(dtype: torch.dtype, assign: bool) -> None:
    before = nn.Sequential(trained([POSITION, HEIGHT])).to(dtype)
    saved = io.BytesIO()
    torch.save(before.state_dict(), saved)
    saved.seek(0)
    state = torch.load(saved, weights_only=True)
    assert sorted(state) == [f"0.leaves.{i}.{name}" for i in (0, 1) for name in ("count", "m2", "mean")]
    after = nn.Sequential(ObservationNormalizer([POSITION, HEIGHT], None)).to(dtype)
    memory = moments_module(after[0]).center.data_ptr()
    after.load_state_dict(state, assign=assign)
    assert moments_module(after[0]).center.data_ptr() == memory
    for (name, expected), (_, actual) in zip(before.named_buffers(), after.named_buffers(), strict=True):
        assert torch.equal(actual, expected) and actual.dtype == expected.dtype, name


def test_deep_copy_refreshes_its_own_numbers() -> None:
    original = trained([POSITION])
    copied = copy.deepcopy(original)
    copied.load_state_dict(trained([POSITION], seed=1).state_dict())
    ours, copies = moments_module(original), moments_module(copied)
    assert torch.equal(copies.center, copies.mean.float()) and torch.equal(ours.center, ours.mean.float())
    assert not torch.equal(ours.center, copies.center)


# -- observations


def test_leaf_is_centred_scaled_and_clipped() -> None:
    normalizer = ObservationNormalizer([box(2)], clip=1.25)
    seen = {"": torch.tensor([[1.0, 10.0], [3.0, 30.0]])}
    normalizer.commit(normalizer.updated(normalizer.moments_of(seen)))
    # means 2 and 20, deviations 1 and 10: 1 + 0.5 and 2 deviations above, of which 1.25 are left
    normalized = normalizer({"": torch.tensor([[2.5, 40.0], [2.0, 0.0]])})
    torch.testing.assert_close(normalized[""], torch.tensor([[0.5, 1.25], [0.0, -1.25]]))


def test_component_that_never_changed_is_not_divided_by_zero() -> None:
    normalizer = ObservationNormalizer([box(1)], clip=None)
    normalizer.commit(normalizer.updated(normalizer.moments_of({"": torch.full((4, 1), 7.0)})))
    # sqrt(0 + 1e-8) = 1e-4
    torch.testing.assert_close(normalizer({"": torch.tensor([[7.0], [8.0]])})[""], torch.tensor([[0.0], [1e4]]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("seen_dtype", [torch.float32, torch.float64, torch.uint8, torch.int64, torch.float16])
@pytest.mark.parametrize("shape", [(), (3,)])
def test_first_rollout_sees_numbers_as_they_are(dtype: torch.dtype, seen_dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    normalizer = ObservationNormalizer([box(*shape, path="x")], clip=2.0).to(dtype)
    seen = {"x": torch.full((5, *shape), 2, dtype=seen_dtype), "y": torch.zeros(5, dtype=torch.int64)}
    normalized = normalizer(seen)
    assert normalized["x"].dtype == dtype and normalized["x"].shape == (5, *shape) and (normalized["x"] == 2).all()
    assert (normalizer({"x": 2 * seen["x"]})["x"] == 2).all()  # 4, clipped
    assert normalized["y"] is seen["y"] and list(normalized) == ["x", "y"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_observations_that_were_counted_get_mean_zero_and_variance_one(dtype: torch.dtype) -> None:
    leaves = [POSITION, HEIGHT, box(2, 2, path="")]
    seen = observations(leaves)
    normalized = trained(leaves).to(dtype)(seen)
    assert {values.dtype for values in normalized.values()} == {dtype}
    digits = 1e-6 if dtype == torch.float32 else 1e-8  # 1e-8 is added to a variance of 9
    for values in normalized.values():
        torch.testing.assert_close(values.mean(0), torch.zeros_like(values[0]), rtol=0, atol=digits)
        torch.testing.assert_close(values.var(0, correction=0), torch.ones_like(values[0]), rtol=0, atol=digits)


def test_images_and_integers_can_be_normalised() -> None:
    pixels = torch.randint(256, (20, *PIXELS.shape), generator=generator(), dtype=torch.uint8)
    normalizer = ObservationNormalizer([PIXELS], clip=None)
    normalizer.commit(normalizer.updated(normalizer.moments_of({"pixels": pixels})))
    numbers: NDArray[Any] = pixels.numpy().astype(np.float64)
    expected = (numbers - numbers.mean(0)) / np.sqrt(numbers.var(0) + 1e-8)
    normalized = normalizer({"pixels": pixels})["pixels"]
    torch.testing.assert_close(normalized, torch.from_numpy(expected).float(), rtol=1e-5, atol=1e-5)


@st.composite
def numbers_far_from_zero(draw: st.DrawFn) -> tuple[Leaf, np.ndarray]:
    """A leaf of any numbers, and values whose spread may be small beside their offset, shape (R, 2)."""
    dtype = draw(st.sampled_from(["float32", "float64", "int8", "uint16", "int32", "uint32", "int64"]))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    largest = 100 if dtype == "int8" else 3e4 if dtype == "uint16" else 2e9 if dtype.endswith("32") else 4e15
    offset = draw(st.floats(0 if dtype.startswith("u") else -largest, largest))
    spacing = 2.0 * abs(np.spacing(np.dtype(dtype).type(offset))) if dtype.startswith("float") else 1.0
    values = offset + spacing * draw(st.floats(1, 1e3 if largest > 1e4 else 10)) * random.standard_normal((20, 2))
    info = None if dtype.startswith("float") else np.iinfo(dtype)
    return box(2, dtype=dtype), (values if info is None else values.round().clip(info.min, info.max)).astype(dtype)


@given(numbers_far_from_zero())
@settings(max_examples=200)
def test_numbers_far_from_zero_are_normalised_before_they_are_rounded(drawn: tuple[Leaf, np.ndarray]) -> None:
    leaf, values = drawn
    seen = {"": torch.from_numpy(values.astype(seen_as(values.dtype, torch.float32)))}
    normalizer = ObservationNormalizer([leaf], None)
    normalizer.commit(normalizer.updated(normalizer.moments_of(seen)))
    got = normalizer(seen)[""]
    assert got.dtype == torch.float32
    columns = [[Fraction(number) for number in column] for column in values.T.tolist()]
    means = [sum(column) / len(column) for column in columns]
    deviations = [
        math.sqrt(sum((number - mean) ** 2 for number in column) / len(column) + Fraction(1e-8))
        for column, mean in zip(columns, means, strict=True)
    ]
    center = moments_module(normalizer).center
    for k, (column, mean, divisor) in enumerate(zip(columns, means, deviations, strict=True)):
        unrounded = np.promote_types(leaf.dtype, np.float32).type(abs(mean) + divisor)
        rounding = float(abs(Fraction(center[k].item()) - mean))  # of the mean itself, in the leaf's precision
        assert rounding <= 2 * np.spacing(unrounded)
        for number, normalized in zip(column, got[:, k].tolist(), strict=True):
            exact = float((number - mean) / Fraction(divisor))
            assert normalized == pytest.approx(exact, rel=1e-6, abs=1e-6 + 1.01 * rounding / divisor)


def test_new_moments_wait_for_their_commit_and_add_up() -> None:
    leaves = [POSITION, HEIGHT]
    normalizer = trained(leaves, seed=0)
    before = copy.deepcopy(normalizer.state_dict())
    second, weights = observations(leaves, seed=1), torch.arange(10) < 7
    new = normalizer.updated(normalizer.moments_of(second, weights))
    assert all(torch.equal(before[name], value) for name, value in normalizer.state_dict().items())
    normalizer.commit(new)
    for index, leaf in enumerate(leaves):
        both = torch.cat([observations(leaves, seed=0)[leaf.path], second[leaf.path][:7]])
        assert_same(moments_module(normalizer, index).moments, moments_of(both), both)


@pytest.mark.parametrize("training", [True, False])
def test_forward_changes_no_moments(training: bool) -> None:
    normalizer = trained([POSITION]).train(training)
    before = moments_module(normalizer).moments
    with torch.inference_mode():
        first = normalizer(observations([POSITION], seed=1))["position"]
    assert torch.equal(first, normalizer(observations([POSITION], seed=1))["position"])
    assert all(map(torch.equal, before, moments_module(normalizer).moments))


def test_commit_in_inference_mode_can_be_followed_by_one_outside() -> None:
    normalizer = ObservationNormalizer([POSITION], None)
    with torch.inference_mode():
        new = normalizer.updated(normalizer.moments_of(observations([POSITION])))
        normalizer.commit(new)
    normalizer.commit(new)
    weight = nn.Parameter(torch.ones(3))
    (normalizer(observations([POSITION]))["position"] * weight).sum().backward()  # saves what was normalised
    assert weight.grad is not None and weight.grad.isfinite().all()


def test_functional_call_takes_other_buffers() -> None:
    normalizer = trained([POSITION, HEIGHT])
    seen = observations([POSITION, HEIGHT])
    buffers = {"leaves.1.center": torch.tensor(1.0), "leaves.1.scale": torch.tensor(2.0)}
    called = torch.func.functional_call(normalizer, buffers, (seen,))
    torch.testing.assert_close(called[HEIGHT.path], 2 * (seen[HEIGHT.path] - 1))
    assert torch.equal(called["position"], normalizer(seen)["position"])


class Network(nn.Module):
    """A layer on a normalised leaf."""

    def __init__(self, normalizer: ObservationNormalizer) -> None:
        super().__init__()
        self.normalizer, self.layer = normalizer, nn.Linear(3, 1)

    def forward(self, obs: dict[str, Tensor]) -> Tensor:
        outputs: Tensor = self.layer(self.normalizer(obs)["position"])
        return outputs


def test_compiled_program_sees_new_moments_without_compiling_again() -> None:
    normalizer = ObservationNormalizer([POSITION], clip=10.0)
    network = Network(normalizer)
    parameters = dict(network.named_parameters())
    programs = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        programs.append(graph)
        return graph.forward

    def gradients(parameters: dict[str, Tensor], obs: dict[str, Tensor]) -> dict[str, Tensor]:
        def loss(parameters: dict[str, Tensor]) -> Tensor:
            outputs: Tensor = torch.func.functional_call(network, parameters, (obs,), tie_weights=False)
            return outputs.square().sum()

        by_name: dict[str, Tensor] = torch.func.grad(loss)(parameters)
        return by_name

    compiled = torch.compile(gradients, backend=backend, fullgraph=True)
    results = []
    for seed in range(3):
        seen = observations([POSITION], seed)
        with torch.no_grad():
            result, expected = compiled(parameters, seen), gradients(parameters, seen)
        torch.testing.assert_close(result, expected)
        results.append(result["layer.weight"])
        normalizer.commit(normalizer.updated(normalizer.moments_of(seen)))
    normalizer.load_state_dict(trained([POSITION], seed=5).state_dict())
    with torch.no_grad():
        torch.testing.assert_close(compiled(parameters, seen), gradients(parameters, seen))
    assert len(programs) == 1
    assert not torch.allclose(results[0], results[1])


# -- which leaves

MIXED = (
    POSITION,
    HEIGHT,
    box(2, path="counts", dtype="int32", low=0, high=9),
    PIXELS,
    box(8, 8, 3, path="depths"),
    box(2, path="flags", dtype="bool", low=0, high=1),
    discrete(4, path="choice"),
    multi_discrete(2, 3, path="choices"),
    multi_binary(4, path="bits"),
    box(4, path="mask", dtype="int8", low=0, high=1),
)


def paths(leaves: tuple[Leaf, ...]) -> list[str]:
    return [leaf.path for leaf in leaves]


def test_vectors_of_floats_are_normalised_if_asked_for() -> None:
    assert paths(normalized_leaves(MIXED, True)) == ["position", "sensors.left/height"]
    assert normalized_leaves(MIXED, False) == normalized_leaves(MIXED, []) == ()
    assert normalized_leaves((box(3),), True) == normalized_leaves((box(3),), [""]) == (box(3),)


def test_named_leaves_are_exactly_these_in_the_order_of_the_observation() -> None:
    assert paths(normalized_leaves(MIXED, ["pixels", "counts", "depths", "pixels"])) == ["counts", "pixels", "depths"]


@pytest.mark.parametrize(
    ("observation", "wanted", "message"),
    [
        (MIXED, ["speed"], "expected paths among 'position', 'sensors.left/height', 'counts', .* got 'speed'"),
        (MIXED, ["position", "flags"], "expected leaves of numbers, got 'flags', a Box of bool"),
        (MIXED, ["choice"], "expected leaves of numbers, got 'choice', a discrete"),
        (MIXED, ["choices"], "expected leaves of numbers, got 'choices', a multi_discrete"),
        (MIXED, ["bits"], "expected leaves of numbers, got 'bits', a multi_binary"),
        (MIXED, "position", "expected true, false or a list of paths, got 'position'"),
        ((box(3),), "", "expected true, false or a list of paths, got ''"),
        (MIXED[2:], True, "not an image in the observation, got none; name some of 'counts', 'pixels', 'depths'$"),
        (MIXED[5:], True, "not an image in the observation, got none; use false"),
    ],
)
def test_other_leaves_are_refused(observation: tuple[Leaf, ...], wanted: bool | list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^model.normalize_observations: .*{message}"):
        normalized_leaves([leaf for leaf in observation if leaf.path != "mask"], wanted)


# -- rewards


def column(*numbers: float) -> Tensor:
    return torch.tensor(numbers).unsqueeze(-1)  # (T, 1)


def test_running_return_is_that_of_stable_baselines3() -> None:
    """returns = returns * gamma + reward; update with returns; reward / sqrt(variance + epsilon); returns[dones] = 0."""
    normalizer = RewardNormalizer(gamma=0.5, clip=1.5)
    rewards, ended = column(1.0, 2.0, 4.0, 3.0), column(0, 1, 0, 0).bool()
    moments, running = normalizer.updated(rewards, ended, None, torch.tensor([2.0], dtype=torch.float64))
    # 0.5 * 2 + 1 = 2;  0.5 * 2 + 2 = 3, the end;  4;  0.5 * 4 + 3 = 5
    assert (moments.count.item(), moments.mean.item(), running.tolist()) == (4.0, 3.5, [5.0])
    assert moments.m2.item() == 5.0  # 1.5^2 + 0.5^2 + 0.5^2 + 1.5^2
    # variance 5 / 4: 1 / sqrt(1.25) = 0.894427, 2 / sqrt(1.25) = 1.788854 and above are clipped to 1.5
    scaled = normalizer.scaled(column(1.0, 2.0, -4.0, 0.0), moments)
    torch.testing.assert_close(scaled, column(0.894427, 1.5, -1.5, 0.0), rtol=0, atol=1e-6)
    # the next rollout continues from 5: 0.5 * 5 - 2.5 = 0, which is counted as the fifth value
    normalizer.commit(moments)
    moments, running = normalizer.updated(column(-2.5), column(1).bool(), None, running)
    assert (moments.count.item(), running.tolist()) == (5.0, [0.0])
    assert moments.mean.item() == pytest.approx(2.8)  # (2 + 3 + 4 + 5 + 0) / 5
    assert moments.m2.item() == pytest.approx(14.8)  # 4 + 9 + 16 + 25 - 5 * 2.8^2


@given(st.integers(1, 12), st.integers(1, 4), st.floats(0, 1), st.booleans(), st.integers(0, 2**31))
def test_running_return_is_that_of_a_plain_loop(
    horizon: int, num_envs: int, gamma: float, with_weights: bool, seed: int
) -> None:
    draws = generator(seed)
    rewards = torch.randn(horizon, num_envs, generator=draws)
    boundaries = torch.rand(horizon, num_envs, generator=draws) < 0.2
    valid = torch.rand(horizon, num_envs, generator=draws) < 0.8
    running = torch.randn(num_envs, generator=draws, dtype=torch.float64)
    rewards[~valid] = math.nan if with_weights else 0.0
    counted, after = [], []
    for env, current in enumerate(running.tolist()):
        for t in range(horizon):
            if with_weights and not valid[t, env]:
                current = 0.0
                continue
            current = gamma * current + rewards[t, env].item()
            counted.append(current)
            if boundaries[t, env]:
                current = 0.0
        after.append(current)
    moments, left = RewardNormalizer(gamma, None).updated(rewards, boundaries, valid if with_weights else None, running)
    np.testing.assert_allclose(left.numpy(), after, rtol=1e-12, atol=1e-14)
    assert left.dtype == moments.mean.dtype == torch.float64 and moments.count == len(counted)
    np.testing.assert_allclose(moments.mean.item(), np.mean(counted or [0.0]), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(moments.m2.item(), np.var(counted or [0.0]) * len(counted), rtol=1e-12, atol=1e-12)


def test_two_rollouts_are_one_long_one() -> None:
    rewards = torch.randn(20, 3, generator=generator())
    boundaries = torch.rand(20, 3, generator=generator(1)) < 0.2
    start = torch.zeros(3, dtype=torch.float64)
    one, parts = RewardNormalizer(0.9, None), RewardNormalizer(0.9, None)
    whole, expected = one.updated(rewards, boundaries, None, start)
    first, between = parts.updated(rewards[:7], boundaries[:7], None, start)
    parts.commit(first)
    both, after = parts.updated(rewards[7:], boundaries[7:], None, between)
    assert torch.equal(after, expected)
    assert_same(both, whole, torch.tensor(10.0))


def test_update_leaves_module_and_arguments_alone() -> None:
    normalizer, running = RewardNormalizer(0.9, None), torch.ones(1, dtype=torch.float64)
    rewards = column(1.0, 2.0)
    normalizer.updated(rewards, column(0, 1).bool(), column(1, 0).bool(), running)
    assert normalizer.returns.count == 0 and running.tolist() == [1.0] and rewards.flatten().tolist() == [1.0, 2.0]


def test_rewards_before_any_moments_are_clipped_only() -> None:
    moments = RewardNormalizer(0.9, None).returns.moments
    assert RewardNormalizer(0.9, 2.0).scaled(column(0.5, 3.0, -7.0), moments).flatten().tolist() == [0.5, 2.0, -2.0]
    assert RewardNormalizer(0.9, None).scaled(column(0.5, 3.0), moments).flatten().tolist() == [0.5, 3.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_scaled_rewards_keep_their_dtype_and_their_sign(dtype: torch.dtype) -> None:
    moments = moments_of(torch.tensor([10.0, 14.0]))  # mean 12, deviation 2
    scaled = RewardNormalizer(0.9, None).scaled(torch.tensor([4.0, -6.0], dtype=dtype), moments)
    torch.testing.assert_close(scaled, torch.tensor([2.0, -3.0], dtype=dtype))


def test_reward_moments_are_saved_and_stay_float64() -> None:
    normalizer = RewardNormalizer(0.9, None)
    normalizer.commit(moments_of(torch.tensor([10.0, 14.0])))
    assert {name: value.item() for name, value in normalizer.half().state_dict().items()} == {
        "returns.count": 2.0,
        "returns.mean": 12.0,
        "returns.m2": 8.0,
    }
    assert normalizer.returns.mean.dtype == torch.float64


@pytest.mark.parametrize(
    ("rewards", "boundaries", "running", "message"),
    [
        (torch.zeros(4), torch.zeros(4).bool(), torch.zeros(1).double(), r"one shape \(T, N\), got \[\(4,\), \(4,\), \(4,\)\]"),
        (torch.zeros(4, 2), torch.zeros(4, 1).bool(), torch.zeros(2).double(), r"one shape \(T, N\), got \[\(4, 2\), \(4, 1\)"),
        (torch.zeros(0, 2), torch.zeros(0, 2).bool(), torch.zeros(2).double(), r"one shape \(T, N\), got \[\(0, 2\)"),
        (torch.zeros(4, 2), torch.zeros(4, 2).bool(), torch.zeros(4).double(), r"running: expected shape \(2,\), float64, got"),
        (torch.zeros(4, 2), torch.zeros(4, 2).bool(), torch.zeros(2), r"got \(2,\), torch.float32"),
    ],
)
def test_rewards_of_other_shapes_are_refused(rewards: Tensor, boundaries: Tensor, running: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RewardNormalizer(0.9, None).updated(rewards, boundaries, None, running)
