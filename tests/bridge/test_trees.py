"""Observations of any space: walked, checked and written leaf by leaf, against an independent reading of the same rules."""

import math
from typing import Any

import gymnasium
import numpy as np
import pytest
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

DTYPES = ["float32", "float64", "uint8", "int64", "bool"]


@st.composite
def plain_spaces(draw: st.DrawFn) -> gymnasium.Space[Any]:
    kind = draw(st.sampled_from(["box", "discrete", "multi_discrete", "multi_binary"]))
    if kind == "discrete":
        return spaces.Discrete(draw(st.integers(1, 5)), start=draw(st.integers(-3, 3)))
    if kind == "multi_discrete":
        return spaces.MultiDiscrete(draw(st.lists(st.integers(1, 4), min_size=1, max_size=3)))
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
    """The rules, slowly: exactly the declared parts, shapes, kinds of numbers; every number finite and inside."""
    match space:
        case spaces.Dict():
            keys = sorted(space.spaces)
            return type(value) is dict and sorted(value) == keys and all(is_valid(space.spaces[k], value[k]) for k in keys)
        case spaces.Tuple():
            return type(value) is tuple and len(value) == len(space.spaces) and all(map(is_valid, space.spaces, value))
        case spaces.Discrete():
            is_scalar = type(value) is int or (isinstance(value, np.integer | np.ndarray) and np.shape(value) == ())
            is_number = is_scalar and np.asarray(value).dtype.kind in "iu"
            return is_number and space.start <= int(value) < space.start + space.n
    if not isinstance(value, np.ndarray) or value.shape != space.shape:
        return False
    if isinstance(space, spaces.Box):
        lows, highs, kinds = space.low.ravel().tolist(), space.high.ravel().tolist(), space.dtype.kind
    else:
        lows, kinds = [0] * value.size, "iub"
        highs = [1] * value.size if isinstance(space, spaces.MultiBinary) else (np.asarray(space.nvec) - 1).ravel().tolist()
    if value.dtype.kind not in kinds:
        return False
    numbers = value.ravel().tolist()
    return all(math.isfinite(x) and low <= x <= high for x, low, high in zip(numbers, lows, highs, strict=True))


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
    "pair as list": "obs.pair: expected a tuple of 2, got list",
    "camera as float": "obs.camera/left: expected dtype uint8, got dtype float64",
    "where outside": "obs.where[1]: expected a value in [2, 5] (the declared observation space), got 6",
    "where a float": "obs.where: expected a whole number, got float 2.0",
    "where true": "obs.where: expected a whole number, got bool True",
    "flags of two": "obs.flags[1, 2]: expected a value in [0, 1] (the declared observation space), got 2",
    "kinds outside": "obs.kinds[1, 1]: expected a value in [0, 3] (the declared observation space), got 4",
    "pos nan": "obs.pos[1, 1]: expected a finite value, got nan",
    "pos of one": "obs.pos: expected shape (3,), got shape (1,)",
    "no mask": "info:possible: expected an action mask under 'possible', got dict {}",
    "mask of zeros": "obs.info:possible[1]: expected at least one possible action, got an action mask of zeros",
    "mask of three": "info:possible: expected shape (4,), got shape (3,)",
    "mask of floats": "info:possible: expected dtype int8, got dtype float64",
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
    with pytest.raises(ValueError, match=f"action_mask={action_mask}: expected info:KEY or obs:PATH"):
        mask_leaf(action_mask, ACTION)
