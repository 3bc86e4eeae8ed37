"""Leaves, rows and announcements: what goes out comes back, and everything else is refused with a message."""

import base64
import math
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_ppo.bridge.protocol import decode, encode
from lit_ppo.errors import ProtocolError
from lit_ppo.spaces import DTYPES, EnvSpec, Leaf, Row, spec_from_json, spec_to_json

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=15,
)
SHAPES = st.lists(st.integers(1, 4), max_size=3).map(tuple)
PATHS = st.lists(st.sampled_from(["a", "camera/left", "0/1", "x y", "", "info:m"]), min_size=1, max_size=6, unique=True)


@st.composite
def boxes(draw: st.DrawFn, path: str) -> Leaf:
    shape, dtype = draw(SHAPES), draw(st.sampled_from(DTYPES))
    whole = np.dtype(dtype).kind in "iub"
    number: Any = st.integers(-(2**63), 2**63 - 1) if whole else st.floats(allow_nan=False)
    size = math.prod(shape)
    low, high = (draw(number | st.tuples(*[number] * size)) if size > 1 else draw(number) for _ in range(2))
    return Leaf(path, "box", shape, dtype, low, high)


LEAVES = PATHS.flatmap(lambda paths: st.tuples(*map(boxes, paths)))


# -- rows


@given(LEAVES, st.sampled_from([(), (3,), (2, 3)]), st.integers(0, 2**32))
def test_leaves_of_a_row_are_aligned_apart_and_over_its_bytes(
    leaves: tuple[Leaf, ...], lead: tuple[int, ...], seed: int
) -> None:
    row = Row(leaves)
    rows = np.zeros((*lead, row.size), np.uint8)
    views = row.views(rows)
    assert {path: (view.shape, str(view.dtype)) for path, view in views.items()} == {
        leaf.path: ((*lead, *leaf.shape), leaf.dtype) for leaf in leaves
    }
    rng, begin = np.random.default_rng(seed), rows.__array_interface__["data"][0]
    written = {}
    for leaf in leaves:
        view = views[leaf.path]
        assert (view.__array_interface__["data"][0] - begin) % view.dtype.itemsize == 0 and np.shares_memory(view, rows)
        written[leaf.path] = rng.integers(0, 2, view.shape).astype(leaf.dtype)
        view[...] = written[leaf.path]
    for leaf in leaves:  # no leaf lies over another
        assert (views[leaf.path] == written[leaf.path]).all()
    assert row.size >= sum(leaf.num_bytes for leaf in leaves)


def test_row_of_bytes_has_no_gaps_but_for_alignment() -> None:
    leaves = [
        Leaf("a", "box", (3,), "uint8", 0, 255),
        Leaf("b", "box", (2,), "float64", 0.0, 1.0),
        Leaf("c", "box", (), "int16", 0, 9),
    ]
    # a at 0, b at 8, c at 24, and the whole a multiple of 8
    assert Row(leaves).size == 32
    assert Row(leaves[:1]).size == 3


# -- leaves


def test_choices_are_counted_for_each_component() -> None:
    assert Leaf("", "discrete", (), "int64", -3, 4).choices == (8,)
    assert Leaf("", "multi_discrete", (2, 2), "int64", (0, 5, 0, 0), (2, 5, 1, 9)).choices == (3, 1, 2, 10)
    assert Leaf("", "multi_binary", (3,), "int8", 0, 1).choices == (2, 2, 2)


def test_neutral_value_is_the_allowed_one_nearest_to_zero() -> None:
    assert Leaf("", "discrete", (), "int64", 2, 4).neutral() == 2
    assert Leaf("", "box", (3,), "float32", (-1.0, 0.5, -3.0), (1.0, 2.0, -2.0)).neutral().tolist() == [0.0, 0.5, -2.0]
    assert Leaf("", "box", (1,), "float32", -math.inf, math.inf).neutral().tolist() == [0.0]


# -- the announcement

ACTION = Leaf("", "discrete", (), "int64", -1, 1)


def announced(**changes: Any) -> dict[str, Any]:
    box = Leaf("", "box", (2,), "float32", -1.0, (1.0, math.inf))
    message = spec_to_json(EnvSpec("Test-v0", (box,), ACTION, None, 475.0, 500))
    for name, value in changes.items():
        section, _, key = name.rpartition("__")
        target = message["observation"][0] if section == "observation" else message["action"] if section else message
        target[key] = value
    return message


@given(LEAVES, st.none() | st.floats(allow_nan=False))
def test_announcement_comes_back_as_the_spec_it_was(leaves: tuple[Leaf, ...], threshold: float | None) -> None:
    spec = EnvSpec("Test-v0", leaves, ACTION, None, threshold, 7)
    assert spec_from_json(decode(encode(spec_to_json(spec)))) == spec


def test_bounds_of_an_image_fit_into_a_message() -> None:
    low = tuple(np.random.default_rng(0).integers(0, 100, 84 * 84 * 4).tolist())
    spec = EnvSpec("Test-v0", (Leaf("", "box", (84, 84, 4), "uint8", low, 255),), ACTION)
    assert spec_from_json(decode(encode(spec_to_json(spec)))) == spec


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        *(
            ({"observation__shape": shape}, f"env_id=Test-v0: the observation of shape {tuple(shape)} is not supported")
            for shape in ([0], [3, 0], [-3], [-3, -4], [2**40], [2**13, 2**12])
        ),
        ({"observation__dtype": "complex64"}, "env_id=Test-v0: the observation of dtype 'complex64' is not supported"),
        ({"observation__dtype": "object"}, "env_id=Test-v0: the observation of dtype 'object' is not supported"),
        ({"observation__path": "a\nb"}, r"env_id=Test-v0: leaf 'a\nb' is not supported: expected keys of at most 200"),
        ({"action__high": -2}, "env_id=Test-v0: the action with (0,) choices is not supported; expected 1 to 2^20"),
        ({"action__high": 2**21}, "env_id=Test-v0: the action with (2097154,) choices is not supported; expected 1 to 2^20"),
        ({"mask": "m"}, "action_mask: expected a leaf of 3 zeros and ones, one for each choice, got none at 'm'"),
        (
            {"mask": ""},
            "action_mask: expected a leaf of 3 zeros and ones, one for each choice, got shape (2,) of float32 at ''",
        ),
    ],
)
def test_each_space_that_is_not_supported_has_its_message(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as raised:
        spec_from_json(announced(**changes))
    assert str(raised.value).startswith(message)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"env_id": 3}, "env_id: expected str, got 3"),
        ({"observation": []}, "observation: expected 1 to 256 leaves with paths of their own, got 0"),
        ({"observation": [announced()["observation"][0]] * 2}, "observation: expected 1 to 256 leaves with paths of their own"),
        ({"observation__kind": "graph"}, "leaf: expected one of box, discrete, multi_discrete, multi_binary"),
        ({"observation__shape": [True]}, "shape: expected int, got True"),
        ({"observation__shape": 2}, "shape: expected list, got 2"),
        ({"observation__low": [0.0]}, "low: expected 2 numbers, got 1"),
        ({"observation__high": [0.0, "NaN"]}, "high[1]: expected a number, Infinity or -Infinity, got 'NaN'"),
        ({"observation__low": None}, "low: expected a number, Infinity or -Infinity, got None"),
        ({"observation__low": True}, "low: expected a number, Infinity or -Infinity, got True"),
        ({"observation__low": {"dtype": "object", "zlib": ""}}, "low: expected int64 or float64, got 'object'"),
        ({"observation__low": {"dtype": "int64", "zlib": "x"}}, "low: expected compressed numbers: "),
        ({"observation__low": {"dtype": "int64", "zlib": "eJwDAAAAAAE="}}, "low: expected 2 numbers, got 0"),
        ({"action__high": 0.5}, "the action: expected whole numbers as bounds of discrete"),
        ({"reward_threshold": []}, "reward_threshold: expected float or int or str or null, got []"),
        ({"max_episode_steps": 1.5}, "max_episode_steps: expected int or null, got 1.5"),
    ],
)
def test_a_malformed_announcement_is_a_protocol_error(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ProtocolError) as raised:
        spec_from_json(announced(**changes))
    assert str(raised.value).startswith(message)


def test_compressed_bounds_that_would_fill_the_memory_are_refused_before_they_do() -> None:
    bomb = {"dtype": "int64", "zlib": base64.b64encode(zlib.compress(bytes(1 << 26))).decode()}
    with pytest.raises(ProtocolError, match="low: expected 2 numbers, got 2"):
        spec_from_json(announced(observation__low=bomb))


@given(st.dictionaries(st.sampled_from([*announced()]), VALUES))
def test_an_arbitrary_announcement_is_a_spec_or_refused(changes: dict[str, Any]) -> None:
    try:
        assert isinstance(spec_from_json(announced() | changes), EnvSpec)
    except (ProtocolError, ValueError) as error:
        assert type(error) in (ProtocolError, ValueError)  # noqa: PT017  no subclass that happens to fit
