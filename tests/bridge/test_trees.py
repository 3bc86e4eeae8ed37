"""Observations of any space: walked, checked and written leaf by leaf, against an independent reading of the same rules."""

import math
import re
from collections import OrderedDict, namedtuple
from enum import IntEnum
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_ppo.bridge.trees import ObservationTree, action_leaf, mask_leaf
from lit_ppo.contract import Contract, ContractSettings
from lit_ppo.errors import ContractViolation
from lit_ppo.spaces import EnvSpec, Leaf, Row
from tests.fault_envs import CHANGES, PartsEnv

ACTION = Leaf("", "discrete", (), "int64", 0, 1)


def write(space: gymnasium.Space[Any], value: object) -> dict[str, np.ndarray]:
    """What one observation becomes, admitted and checked."""
    tree = ObservationTree("Test-v0", space)
    row = Row(tree.leaves)
    views = row.views(np.zeros((1, row.size), np.uint8))
    tree.writer(views)(value, {}, 0)
    Contract(EnvSpec("Test-v0", tree.leaves, ACTION), ContractSettings(check_membership="error")).check_observations(views)
    return views


# -- random spaces

DTYPES = ["float16", "float32", "float64", "uint8", "int16", "int64", "bool"]
ALL_DTYPES = [*DTYPES, "int8", "int32", "uint16", "uint32"]


@st.composite
def plain_spaces(draw: st.DrawFn) -> gymnasium.Space[Any]:
    kind = draw(st.sampled_from(["box", "discrete", "multi_discrete", "multi_binary"]))
    if kind == "discrete":
        return spaces.Discrete(draw(st.integers(1, 5)), start=draw(st.integers(-3, 3)))
    if kind == "multi_discrete":
        nvec = draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
        return spaces.MultiDiscrete(nvec, draw(st.sampled_from(["int64", "int8", "uint16"])))
    if kind == "multi_binary":
        return spaces.MultiBinary(draw(st.integers(1, 3)))
    dtype = draw(st.sampled_from(DTYPES))
    shape = tuple(draw(st.lists(st.integers(1, 3), max_size=3)))
    low, high = {"uint8": (3, 250), "bool": (0, 1), "int64": (-5, 5)}.get(dtype, (-1.5, 2.0))
    return spaces.Box(low, high, shape, np.dtype(dtype).type)


SPACES = st.recursive(
    plain_spaces(),
    lambda inner: (
        st.lists(inner, min_size=1, max_size=3).map(spaces.Tuple)
        | st.dictionaries(st.sampled_from(["a", "b", "c d"]), inner, min_size=1, max_size=3).map(spaces.Dict)
    ),
    max_leaves=5,
)


def sample(space: gymnasium.Space[Any], rng: np.random.Generator) -> Any:
    """A value of the space, written without the space's own sampler."""
    match space:
        case spaces.Dict():
            return {key: sample(part, rng) for key, part in space.spaces.items()}
        case spaces.Tuple():
            return tuple(sample(part, rng) for part in space.spaces)
        case spaces.Discrete():
            return int(rng.integers(space.start, space.start + space.n))
        case spaces.MultiDiscrete():
            return rng.integers(0, space.nvec)
        case spaces.MultiBinary():
            return rng.integers(0, 2, space.shape).astype(np.int8)
    assert isinstance(space, spaces.Box)
    if space.dtype.kind == "f":
        return np.asarray(rng.uniform(space.low, space.high)).astype(space.dtype).reshape(space.shape)
    low, high = space.low.astype(int), space.high.astype(int) + 1
    return np.asarray(rng.integers(low, high)).astype(space.dtype).reshape(space.shape)


def is_valid(space: gymnasium.Space[Any], value: Any) -> bool:
    """The rules, slowly: a form that the space contains, or numbers of the same kind; each finite, inside and the same."""
    match space:
        case spaces.Dict():
            keys = sorted(space.spaces)
            return type(value) is dict and sorted(value) == keys and all(is_valid(space.spaces[k], value[k]) for k in keys)
        case spaces.Tuple():
            parts = list(value) if isinstance(value, tuple | list) or np.ndim(value) else []
            return len(parts) == len(space.spaces) and all(map(is_valid, space.spaces, parts))
    try:
        array = np.asarray(value)
    except ValueError:  # ragged lists
        return False
    if array.shape != space.shape or array.dtype.kind not in "biuf":
        return False
    if isinstance(space, spaces.Discrete) and not isinstance(value, int | np.generic | np.ndarray):
        return False
    if isinstance(space, spaces.Box):
        lows, highs, kinds = space.low.ravel().tolist(), space.high.ravel().tolist(), space.dtype.kind
        if not isinstance(value, np.ndarray) or np.can_cast(array.dtype, space.dtype):
            kinds = "biuf"
    elif isinstance(space, spaces.MultiBinary):
        lows, highs, kinds = [0] * array.size, [1] * array.size, "biuf"
    else:
        start = np.broadcast_to(space.start, space.shape).ravel().tolist()
        sizes = np.ravel(space.n if isinstance(space, spaces.Discrete) else space.nvec).tolist()
        lows, highs = start, [low + size - 1 for low, size in zip(start, sizes, strict=True)]
        kinds = "biu"
        if not isinstance(value, int | np.generic | np.ndarray):
            kinds = "biuf"  # lists of whole numbers
    is_rounded = isinstance(space, spaces.Box) and space.dtype.kind == "f"
    numbers = array.ravel().tolist()
    return array.dtype.kind in kinds and all(
        math.isfinite(x) and low <= x <= high and (is_rounded or x == int(x))
        for x, low, high in zip(numbers, lows, highs, strict=True)
    )


BROKEN: dict[str, Any] = {
    "none": lambda leaf: None,
    "text": lambda leaf: "0",
    "list": lambda leaf: [leaf],
    "float": lambda leaf: np.asarray(leaf, np.float64),
    "nan": lambda leaf: np.full(np.shape(leaf), np.nan, np.float32),
    "far": lambda leaf: np.full(np.shape(leaf), 100, np.asarray(leaf).dtype),
    "true": lambda leaf: np.ones(np.shape(leaf), np.bool_),
    "taller": lambda leaf: np.asarray(leaf)[None],
    "same": lambda leaf: leaf,
    "wider": lambda leaf: np.asarray(leaf).astype(np.int64) if np.asarray(leaf).dtype.kind == "i" else leaf,
    "dict": lambda leaf: {"a": leaf},
    "tuple": lambda leaf: (leaf,),
}


def broken(value: Any, target: int, how: str, seen: list[int]) -> Any:
    """The value with its leaf number `target` changed."""
    if isinstance(value, dict):
        return {key: broken(part, target, how, seen) for key, part in value.items()}
    if isinstance(value, tuple):
        return tuple(broken(part, target, how, seen) for part in value)
    seen.append(0)
    return BROKEN[how](value) if len(seen) - 1 == target else value


@settings(max_examples=400)
@given(SPACES, st.integers(0, 4), st.sampled_from([*BROKEN]), st.integers(0, 2**32))
def test_checks_agree_with_a_slow_reading_of_the_rules(space: gymnasium.Space[Any], target: int, how: str, seed: int) -> None:
    good = sample(space, np.random.default_rng(seed))
    assert is_valid(space, good)
    write(space, good)
    value = broken(good, target, how, [])
    try:
        write(space, value)
    except ContractViolation:
        assert not is_valid(space, value)
    else:
        assert is_valid(space, value)


# -- every form that a space contains


@st.composite
def forms(draw: st.DrawFn, space: gymnasium.Space[Any]) -> Any:
    """A value of the space in one of the forms in which an environment may return it, with the numbers as Python has them."""
    match space:
        case spaces.Dict():
            parts = {key: draw(forms(part)) for key, part in space.spaces.items()}
            kind = draw(st.sampled_from([dict, OrderedDict]))
            return kind((key, form) for key, (form, _) in parts.items()), {key: plain for key, (_, plain) in parts.items()}
        case spaces.Tuple():
            drawn = [draw(forms(part)) for part in space.spaces]
            kind = draw(
                st.sampled_from(
                    [tuple, list, lambda values: namedtuple("Parts", [f"p{k}" for k in range(len(drawn))])(*values)]
                )
            )
            return kind([form for form, _ in drawn]), {str(k): plain for k, (_, plain) in enumerate(drawn)}
        case spaces.Discrete():
            number = draw(st.integers(int(space.start), int(space.start + space.n) - 1))
            wrappers: list[Any] = [int, np.int8, np.int64, np.array, lambda x: IntEnum("E", {"only": x}).only]
            wrappers += [bool, np.bool_] if number in (0, 1) else []
            return draw(st.sampled_from(wrappers))(number), number
    good = sample(space, np.random.default_rng(draw(st.integers(0, 2**32))))
    is_whole = space.dtype.kind != "f" or draw(st.booleans())
    if is_whole:
        good = np.floor(good) if space.dtype.kind == "f" else good.astype(np.int64)
    arrays = [
        good.astype(name) for name in ALL_DTYPES if np.can_cast(name, space.dtype) or isinstance(space, spaces.MultiBinary)
    ]
    candidates = [
        good.tolist(),
        good.astype(space.dtype),
        good.astype(space.dtype).tolist(),
        *arrays,
        np.asfortranarray(arrays[0]),
    ]
    if isinstance(space, spaces.Box):
        candidates += [np.ma.array(good.astype(space.dtype)), good.astype(space.dtype)[()], torch.from_numpy(np.array(good))]
    form = draw(st.sampled_from(candidates))
    return form, np.asarray(form).tolist()


@pytest.mark.filterwarnings("ignore:.*Casting input x to numpy array")  # by `Box.contains`
@settings(max_examples=400)
@given(st.data())
def test_every_form_that_a_space_contains_arrives_as_the_same_numbers_or_is_refused_by_name(data: st.DataObject) -> None:
    space = data.draw(SPACES)
    form, plain = data.draw(forms(space))
    try:
        views, refusal = write(space, form), None
    except ContractViolation as violation:
        refusal = str(violation)
    if refusal is not None:  # a number outside the space, or one that its dtype would change
        assert not space.contains(form) or re.search(r"that \w+ can hold", refusal), (form, refusal)
        return

    def walk(part: Any, path: str) -> None:
        if isinstance(part, dict):
            for name, inner in part.items():
                walk(inner, f"{path}/{name}" if path else str(name))
        else:
            array = views[path][0]
            expected = np.asarray(part, array.dtype) if array.dtype.kind == "f" else np.asarray(part)
            assert np.array_equal(array, expected), (form, array)

    walk(plain, "")


@settings(max_examples=100)
@given(SPACES, st.integers(0, 2**32))
def test_leaves_hold_what_the_environment_returned(space: gymnasium.Space[Any], seed: int) -> None:
    value = sample(space, np.random.default_rng(seed))
    found: dict[str, Any] = {}

    def walk(part: Any, path: str) -> None:
        if isinstance(part, dict | tuple):
            for name, inner in part.items() if isinstance(part, dict) else enumerate(part):
                walk(inner, f"{path}/{name}" if path else str(name))
        else:
            found[path] = part

    walk(value, "")
    views = write(space, value)
    assert views.keys() == found.keys()
    for path, leaf in found.items():
        assert np.array_equal(views[path][0], leaf)


# -- an environment with every kind of leaf

KEYS = "['camera', 'flags', 'kinds', 'pair', 'pos', 'where']"
MESSAGES = {
    "no flags": f"obs: expected a dict with exactly the keys {KEYS}, got keys",
    "more": f"obs: expected a dict with exactly the keys {KEYS}, got keys",
    "list": f"obs: expected a dict with exactly the keys {KEYS}, got list",
    "pair of three": "obs.pair: expected a tuple of 2, got tuple",
    "pair as array": "obs.pair: expected a tuple of 2, got ndarray",
    "camera as float": "obs.camera/left: expected dtype uint8, got dtype float64",
    "where outside": "obs.where[1]: expected a value in [2, 5] (the declared observation space), got 6",
    "where a float": "obs.where: expected a whole number, got float 2.0",
    "where true": "obs.where[1]: expected a value in [2, 5] (the declared observation space), got 1",
    "flags of two": "obs.flags[1, 2]: expected a value in [0, 1] (the declared observation space), got 2",
    "kinds outside": "obs.kinds[1, 1]: expected a value in [0, 3] (the declared observation space), got 4",
    "pos nan": "obs.pos[1, 1]: expected a finite value, got nan",
    "pos of one": "obs.pos: expected shape (3,), got shape (1,)",
    "no mask": "info:possible: expected an action mask under 'possible', got dict {}",
    "mask of zeros": "obs.info:possible[1]: expected at least one possible action, got an action mask of zeros",
    "mask of three": "info:possible: expected shape (4,), got shape (3,)",
    "mask of halves": "info:possible: expected values that int8 can hold, got 0.5",
}


@pytest.mark.parametrize("change", CHANGES)
def test_each_wrong_part_is_named_by_its_path(change: str) -> None:
    env = PartsEnv(change)
    action = action_leaf("Parts-v0", env.action_space)
    path, mask = mask_leaf("info:possible", action)
    tree = ObservationTree("Parts-v0", env.observation_space, None, mask)
    row = Row(tree.leaves)
    views = row.views(np.zeros((2, row.size), np.uint8))
    contract = Contract(EnvSpec("Parts-v0", tree.leaves, action, path))
    returned = env.reset(seed=0)
    write = tree.writer(views)
    write(*returned, 0)
    for step in range(3):
        obs, _, _, _, info = env.step(int(np.argmax(env.possible)) + 1)
        if step < 2:
            write(obs, info, 1)
            contract.check_observations(views)

    def write_and_check() -> None:
        write(obs, info, 1)
        contract.check_observations(views)

    with pytest.raises(ContractViolation) as raised:
        write_and_check()
    assert str(raised.value).startswith(MESSAGES[change])


def test_parts_can_be_left_out_by_name() -> None:
    env = PartsEnv()
    tree = ObservationTree("Parts-v0", env.observation_space, ["pos", "pair"])
    assert [leaf.path for leaf in tree.leaves] == ["pair/0", "pair/1", "pos"]
    for wrong, message in ((["pos", "nose"], "expected parts of .*, got 'nose'"), ([], "expected at least one part")):
        with pytest.raises(ValueError, match=message):
            ObservationTree("Parts-v0", env.observation_space, wrong)


@pytest.mark.parametrize("action_mask", ["possible", "info:", "env:possible"])
def test_mask_that_is_nowhere_is_refused(action_mask: str) -> None:
    with pytest.raises(ValueError, match=f"action_mask={action_mask}: expected info:KEY, obs:PATH or call:METHOD"):
        mask_leaf(action_mask, ACTION)
