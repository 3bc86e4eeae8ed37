"""The trust boundary: every rule both ways, with its exact words, and all of them against a slow independent reading."""

import math
import re
from collections import namedtuple
from decimal import Decimal
from enum import IntEnum
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_ppo.contract import (
    Contract,
    ContractSettings,
    admit_flag,
    admit_reset,
    admit_reward,
    admit_step,
)
from lit_ppo.errors import ConfigError, ContractViolation, EnvironmentFault, EnvironmentRaised, shown
from lit_ppo.leaf_rules import LeafRules, admit_leaf
from lit_ppo.spaces import EnvSpec, Leaf
from tests.fault_envs import BrokenRepr

FLOAT32_MAX = float.fromhex("0x1.fffffep+127")
NONE_INVALID = bytes(2)


def spec_of(
    shape: tuple[int, ...] = (2,),
    dtype: str = "float32",
    low: float | tuple[float, ...] = -1.0,
    high: float | tuple[float, ...] = (1.0, math.inf),
    action: Leaf | None = None,
) -> EnvSpec:
    observation = Leaf("", "box", shape, dtype, low, high)
    return EnvSpec("Test-v0", (observation,), action or Leaf("", "discrete", (), "int64", 0, 2))


def check_values(contract: Contract, both: np.ndarray, rewards: np.ndarray, flags: bytes, expected_invalid: bytes) -> None:
    """`both` are the observations to act on and those that episodes ended with."""
    contract.check_values({"": both[0]}, {"": both[1]}, rewards, flags, expected_invalid)


def check_observations(contract: Contract, obs: np.ndarray) -> np.ndarray:
    return contract.check_observations({"": obs})[""]


def box(dtype: str) -> Leaf:
    return Leaf("", "box", (2,), dtype, -math.inf, math.inf)


class Hostile:
    """Raises wherever numpy or float ask it for a number."""

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        raise KeyError("hostile")

    __float__ = __index__ = __len__ = __array__

    def __repr__(self) -> str:
        return "hostile"


def refusal(function: Any, *args: Any) -> str:
    with pytest.raises(ContractViolation) as raised:
        function(*args)
    return str(raised.value)


# -- what an environment returned, in the worker


def test_admit_reset_takes_exactly_a_pair() -> None:
    assert admit_reset(("obs", {})) == ("obs", {})
    for wrong, text in (("obs", "'obs'"), (("obs",), "('obs',)"), (["obs", {}], "['obs', {}]"), ((1, 2, 3), "(1, 2, 3)")):
        assert refusal(admit_reset, wrong) == f"reset: expected a tuple (obs, info), got {text}"


def test_admit_step_takes_exactly_five_parts() -> None:
    five = (1, 2, 3, 4, 5)
    assert admit_step(five) is five and admit_step(namedtuple("Step", "a b c d e")(*five)) == five
    for wrong in (five[:4], (*five, 6), list(five), None, 7):
        expected = f"step: expected a tuple (obs, reward, terminated, truncated, info), got {wrong!r}"
        assert refusal(admit_step, wrong) == expected


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        (np.array([1.5, -2.0], np.float32), "float32"),
        (np.array([1.5, -2.0], np.float64), "float32"),
        (np.array([1.5, -2.0], np.float16), "float64"),
        (np.array([1.5, -2.0], ">f4"), "float32"),
        (np.array([np.nan, np.inf]), "float32"),  # values are the client's business
        (np.array([1, -128], np.int64), "int8"),
        (np.array([0, 255], np.uint64), "uint8"),
        (np.array([True, False]), "float32"),
        (np.array([True, False]), "uint8"),
        (np.array([0, 255], np.uint8), "float16"),
        (np.array([-1, 2], np.int16), "float32"),
        (np.array([2**53, 2**62]), "float64"),
        ([1.5, 2], "float32"),
        ((True, np.float64(0.5)), "float64"),
        ([1.0, 2.0], "int64"),
        (bytearray(b"ab"), "uint8"),
        (torch.tensor([1.5, 2.0]), "float64"),
    ],
)
def test_admit_leaf_casts_where_that_says_the_same(value: Any, dtype: str) -> None:
    array = np.asarray(value)
    admitted = admit_leaf(value, box(dtype), np.dtype(dtype), "obs")
    assert admitted.dtype == dtype and np.array_equal(admitted, array, equal_nan=array.dtype.kind == "f")


@pytest.mark.parametrize(
    ("value", "dtype", "message"),
    [
        ([1.0, "2"], "float32", "obs: expected a numpy array of shape (2,), got list [1.0, '2']"),
        (
            [[1.0], [1.0, 2.0]],
            "float32",
            "obs: expected a numpy array of shape (2,), got list [[1.0], [1.0, 2.0]], of which numpy",
        ),
        ([1.0, 10**400], "float64", "obs: expected a numpy array of shape (2,), got list [1.0, 1000"),
        ([1.5, 16777217], "float32", "obs: expected values that float32 can hold, got 16777217"),
        ([2, 16777217], "float32", "obs: expected values that float32 can hold, got 16777217"),
        ([2.5, 1.0], "int8", "obs: expected values that int8 can hold, got 2.5"),
        ([2, 0], "bool", "obs: expected values that bool can hold, got 2"),
        (np.array([0, 2**53 + 1]), "float64", "obs: expected values that float64 can hold, got 9007199254740993"),
        (np.array([0, 2**63 - 1]), "float64", "obs: expected values that float64 can hold, got 9223372036854775807"),
        (np.array([0, 1], "m8[s]"), "float64", "obs: expected dtype float64, got dtype timedelta64[s]"),
        (np.array([0, 1j]), "float64", "obs: expected dtype float64, got dtype complex128"),
        (
            Hostile(),
            "float32",
            "obs: expected a numpy array of shape (2,), got Hostile hostile, of which numpy.asarray makes no",
        ),
        (None, "float32", "obs: expected a numpy array of shape (2,), got NoneType None"),
        (np.float32(1), "float32", "obs: expected shape (2,), got shape ()"),
        (np.zeros(1), "float32", "obs: expected shape (2,), got shape (1,)"),
        (np.zeros((2, 1)), "float32", "obs: expected shape (2,), got shape (2, 1)"),
        (np.zeros((1, 2)), "float32", "obs: expected shape (2,), got shape (1, 2)"),
        (np.zeros(()), "float32", "obs: expected shape (2,), got shape ()"),
        (np.zeros(2, np.int64), "float32", "obs: expected dtype float32, got dtype int64"),
        (np.zeros(2, np.int8), "uint8", "obs: expected dtype uint8, got dtype int8"),
        (np.array(["1.0", "2"]), "float32", "obs: expected dtype float32, got dtype <U3"),
        (np.array([1.0, None]), "float32", "obs: expected dtype float32, got dtype object"),
        (np.array([0.0, 1e300]), "float32", "obs: expected values that float32 can hold, got 1e+300"),
        (np.array([0.0, -7e4]), "float16", "obs: expected values that float16 can hold, got -70000.0"),
        (np.array([0, 128]), "int8", "obs: expected values that int8 can hold, got 128"),
        (np.array([256, 0], np.uint16), "uint8", "obs: expected values that uint8 can hold, got 256"),
    ],
)
def test_admit_leaf_refuses_what_says_something_else(value: object, dtype: str, message: str) -> None:
    assert refusal(admit_leaf, value, box(dtype), np.dtype(dtype), "obs").startswith(message)


FORMS_OF_REWARDS = [1.5, 2, np.float32(1.5), np.float64(-1), np.float16(2), np.int64(-3), np.uint8(200), -0.0, np.longdouble(2)]
FORMS_OF_REWARDS += [
    True,
    np.False_,
    np.array(1.5, np.float32),
    np.array(2),
    Decimal("0.5"),
    Fraction(1, 2),
    IntEnum("E", "A B").B,
]
FORMS_OF_REWARDS += [torch.tensor(1.5)]


@pytest.mark.parametrize("value", FORMS_OF_REWARDS)
def test_admit_reward_takes_every_real_number(value: Any) -> None:
    admitted = admit_reward(value)
    assert type(admitted) is float and admitted == value


def test_admit_reward_leaves_finiteness_to_the_client() -> None:
    assert math.isnan(admit_reward(math.nan)) and admit_reward(np.float32(np.inf)) == math.inf


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "reward: expected a real number, got NoneType None"),
        ("1.0", "reward: expected a real number, got str '1.0'"),
        (1j, "reward: expected a real number, got complex 1j"),
        (np.complex64(1), "reward: expected a real number, got complex64 np.complex64(1+0j)"),
        (np.str_("1.0"), "reward: expected a real number, got str_ np.str_('1.0')"),
        (np.timedelta64(1, "s"), "reward: expected a real number, got timedelta64 np.timedelta64(1,'s')"),
        (np.datetime64("2026-01-01"), "reward: expected a real number, got datetime64 np.datetime64('2026-01-01')"),
        (np.array(Decimal(1)), "reward: expected a real number, got ndarray array(Decimal('1'), dtype=object)"),
        (torch.tensor([1.0]), "reward: expected a real number, got Tensor tensor([1.])"),
        (Hostile(), "reward: expected a real number, got Hostile hostile, of which float makes none: KeyError('hostile')"),
        (
            Decimal("snan"),
            "reward: expected a real number, got Decimal Decimal('sNaN'), of which float makes none: ValueError(",
        ),
        (np.array([1.0]), "reward: expected a real number, got ndarray array([1.])"),
        (
            BrokenRepr(),
            "reward: expected a real number, got BrokenRepr <BrokenRepr whose repr raises ValueError>",
        ),
    ],
)
def test_admit_reward_refuses_everything_else(value: object, message: str) -> None:
    assert refusal(admit_reward, value).startswith(message)


def test_admit_reward_refuses_an_integer_that_no_float_can_hold() -> None:
    assert refusal(admit_reward, 10**400) == f"reward: expected a number that float64 can hold, got {'1' + '0' * 116}..."


def test_admit_flag_takes_booleans_alone() -> None:
    for value in (True, False, np.True_, np.False_):
        assert admit_flag("terminated", value) is bool(value)
    for value in (0, 1, None, "False", 1.0, np.array(True), np.int8(1)):
        expected = f"truncated: expected true or false, got {type(value).__name__} {value!r}"
        assert refusal(admit_flag, "truncated", value) == expected


def test_shown_is_one_bounded_line_whatever_the_value() -> None:
    assert shown([1, "a"]) == "[1, 'a']"
    assert shown(np.zeros((3, 2))).count("\n") == 0
    assert shown(BrokenRepr()) == "<BrokenRepr whose repr raises ValueError>"
    assert len(shown("x" * 5000)) == 120 and shown("x" * 5000).endswith("xxx...")


# -- errors


def test_an_environments_fault_says_where_once_that_is_known() -> None:
    violation = ContractViolation("rewards[3]", "a finite value", "nan", 3)
    assert str(violation) == "rewards[3]: expected a finite value, got nan"
    violation.where = {"env": 3, "step": 17}
    assert str(violation) == "rewards[3]: expected a finite value, got nan (env 3, step 17)"
    raised = EnvironmentRaised("reset", "KeyError: 1", "Traceback\n  KeyError: 1\n\n", 2)
    assert str(raised) == "env 2 raised in reset: KeyError: 1\n  Traceback\n    KeyError: 1"
    assert isinstance(violation, EnvironmentFault) and isinstance(raised, EnvironmentFault)


# -- settings and the announcement


@pytest.mark.parametrize("name", ["observation_range", "reward_range"])
@pytest.mark.parametrize("limits", [(1.0, 1.0), (2.0, 1.0), (math.nan, 1.0), (0.0, math.nan)])
def test_a_range_without_room_is_refused(name: str, limits: tuple[float, float]) -> None:
    with pytest.raises(ConfigError) as raised:
        ContractSettings(**{name: limits})
    assert str(raised.value) == f"data.contract.{name}: expected [low, high] with low < high, got {list(limits)}"
    ContractSettings(**{name: (-math.inf, 1.0)})


def test_an_announcement_that_differs_from_the_settings_is_refused() -> None:
    Contract(spec_of(), ContractSettings(obs_shape=[2], num_actions=3))
    wrong_shape = refusal(Contract, spec_of(), ContractSettings(obs_shape=[3]))
    assert wrong_shape == "obs_shape: expected (3,) (contract), got (2,) (handshake)"
    wrong_actions = refusal(Contract, spec_of(), ContractSettings(num_actions=4))
    assert wrong_actions == "num_actions: expected 4 (contract), got discrete (3,) (handshake)"


# -- actions


def test_actions_inside_the_action_space_come_back_as_they_are() -> None:
    actions = np.array([0, 2, 1])
    assert Contract(spec_of()).check_actions(actions) is actions


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        (np.array([0, 3]), "actions[1]: expected a value in [0, 2] (the action space), got 3"),
        (np.array([-1, 9]), "actions[0]: expected a value in [0, 2] (the action space), got -1"),
        (np.array([0, -(2**63)]), f"actions[1]: expected a value in [0, 2] (the action space), got {-(2**63)}"),
        (np.array([0, 1], np.int32), "actions: expected int64 of shape (N,), got int32 of shape (2,)"),
        (np.array([0.0, 1.0]), "actions: expected int64 of shape (N,), got float64 of shape (2,)"),
        (np.array([[0], [1]]), "actions: expected int64 of shape (N,), got int64 of shape (2, 1)"),
    ],
)
def test_other_actions_are_the_callers_fault(actions: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError) as raised:
        Contract(spec_of()).check_actions(actions)
    assert str(raised.value) == message


# -- observations


STRICT = {"check_membership": "error"}
OUTSIDE = "(the declared observation space; data.contract.check_membership=warn or off accepts it)"


@pytest.mark.parametrize(
    ("value", "component", "settings_", "rule"),
    [
        (math.nan, 1, {}, "a finite value, got nan"),
        (math.inf, 1, {}, "a finite value, got inf"),
        (-math.inf, 0, {"check_membership": "off"}, "a finite value, got -inf"),
        (1.5, 0, STRICT, f"a value in [-1.0, 1.0] {OUTSIDE}, got 1.5"),
        (-1.5, 1, STRICT, f"a value in [-1.0, inf] {OUTSIDE}, got -1.5"),
        (7.0, 1, {"observation_range": (-5.0, 5.0)}, "a value in [-5.0, 5.0] (data.contract.observation_range), got 7.0"),
        (-6.0, 0, {"observation_range": (-5.0, 5.0), "check_membership": "off"}, "a value in [-5.0, 5.0] (data.contract.obs"),
    ],
)
def test_a_bad_observation_is_named_by_env_and_component(
    value: float, component: int, settings_: dict[str, Any], rule: str
) -> None:
    contract = Contract(spec_of(), ContractSettings(**settings_))
    both = np.full((2, 3, 2), 0.25, np.float32)
    check_values(contract, both, np.zeros(3), bytes(12), bytes(3))
    assert check_observations(contract, both[0]) is not None
    ended = bytes([0, 1, 1, 0, 0, 0, 0, 1, 1, 0, 0, 0])  # rows 1 and 2
    for field, which in (("obs", 0), ("final_obs", 1)):
        bad = both.copy()
        bad[which, 2, component] = value
        bad[1, 0] = np.nan  # nothing ended there
        expected = f"{field}[2, {component}]: expected {rule}"
        assert refusal(check_values, contract, bad, np.zeros(3), ended, bytes(3)).startswith(expected)
    bad[1, 0] = 0.25
    with pytest.raises(ContractViolation) as raised:
        check_observations(contract, bad[1])
    assert str(raised.value).startswith(f"obs[2, {component}]: expected {rule}")
    assert raised.value.env == 2


def test_an_observation_that_float32_cannot_hold_is_refused_though_the_space_has_it() -> None:
    contract = Contract(spec_of(dtype="float64", low=-math.inf, high=math.inf))
    check_observations(contract, np.array([[FLOAT32_MAX, -FLOAT32_MAX]]))
    message = refusal(check_observations, contract, np.array([[0.0, -1e300]]))
    assert message == "obs[0, 1]: expected a value that float32 can hold, got -1e+300"


def test_a_signalling_nan_is_refused_like_any_other() -> None:
    obs = np.array([[0, 0x7F800001]], np.uint32).view(np.float32)
    assert refusal(check_observations, Contract(spec_of()), obs) == "obs[0, 1]: expected a finite value, got nan"
    assert admit_leaf(obs[0], box("float64"), np.dtype(np.float64), "obs").shape == (2,)


def test_bounds_include_their_ends_and_not_the_next_float() -> None:
    contract = Contract(
        spec_of(low=-1.0, high=0.1), ContractSettings(check_membership="error")
    )  # 0.1 is no float32; the space says float64(0.1)
    below = np.float32(0.1) if float(np.float32(0.1)) <= 0.1 else np.nextafter(np.float32(0.1), np.float32(0))
    check_observations(contract, np.array([[-1.0, below]], np.float32))
    above = np.nextafter(below, np.float32(1))
    assert refusal(check_observations, contract, np.array([[0, above]], np.float32)).startswith(
        "obs[0, 1]: expected a value in"
    )


def test_a_range_that_misses_the_space_leaves_nothing() -> None:
    contract = Contract(spec_of(low=5.0, high=10.0), ContractSettings(observation_range=(0.0, 3.0), check_membership="error"))
    for value in (3.0, 5.0, 4.0, 7.0):
        with pytest.raises(ContractViolation):
            check_observations(contract, np.full((1, 2), value, np.float32))


def test_float16_observations_are_checked_without_a_word() -> None:
    contract = Contract(spec_of(dtype="float16", low=-math.inf, high=math.inf))
    check_observations(contract, np.array([[65504, -65504]], np.float16))
    message = refusal(check_observations, contract, np.array([[0, np.inf]], np.float16))
    assert message == "obs[0, 1]: expected a finite value, got inf"


def test_whole_numbers_are_compared_exactly() -> None:
    """2^53 + 1 is no float64; of int64, the greatest is none either."""
    strict = ContractSettings(check_membership="error")
    contract = Contract(spec_of(dtype="int64", low=-math.inf, high=2.0**53), strict)
    check_observations(contract, np.array([[2**53, -(2**63)]]))
    assert refusal(check_observations, contract, np.array([[0, 2**53 + 1]])).endswith(f"got {2**53 + 1}")
    check_observations(
        Contract(spec_of(dtype="int64", low=-(2.0**63), high=2.0**63), strict), np.array([[2**63 - 1, -(2**63)]])
    )
    above = Contract(spec_of(dtype="int64", low=2.0**63, high=math.inf), strict)
    assert "expected a value in" in refusal(check_observations, above, np.array([[2**63 - 1, 0]]))


def test_whole_numbers_between_two_whole_numbers_are_none() -> None:
    contract = Contract(spec_of(dtype="uint8", low=0.0, high=255.0), ContractSettings(observation_range=(0.25, 0.75)))
    for value in (0, 1, 255):
        assert "(data.contract.observation_range)" in refusal(check_observations, contract, np.full((1, 2), value, np.uint8))


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int64"])
def test_what_a_dtype_cannot_go_beyond_is_not_compared(dtype: str) -> None:
    limits = np.iinfo(dtype)
    spec = spec_of((84, 84, 3), dtype, float(limits.min), float(limits.max))
    contract, extremes = Contract(spec), np.full((2, 3, 84, 84, 3), limits.max, dtype)
    extremes[:, 0] = limits.min
    check_values(contract, extremes, np.zeros(3), bytes(12), bytes(3))
    check_observations(contract, extremes[0])
    assert LeafRules(spec.observation[0]).is_free
    narrow = Contract(spec, ContractSettings(observation_range=(-1000.0, 100.5)))
    both = np.clip(extremes, 0, 100).astype(dtype)
    check_values(narrow, both, np.zeros(3), bytes(12), bytes(3))
    both[0, 2, 83, 0, 2] = 101
    message = refusal(check_values, narrow, both, np.zeros(3), bytes(12), bytes(3))
    assert message == "obs[2, 83, 0, 2]: expected a value in [-1000.0, 100.5] (data.contract.observation_range), got 101"


# -- rewards


@pytest.mark.parametrize(
    ("value", "limits", "rule"),
    [
        (math.nan, None, "a finite value, got nan"),
        (-math.inf, (-math.inf, math.inf), "a finite value, got -inf"),
        (1e39, None, "a value that float32 can hold, got 1e+39"),
        (2.5, (-1.0, 2.0), "a value in [-1.0, 2.0] (data.contract.reward_range), got 2.5"),
        (-1.5, (-1.0, 2.0), "a value in [-1.0, 2.0] (data.contract.reward_range), got -1.5"),
    ],
)
def test_a_bad_reward_is_named_by_its_env(value: float, limits: tuple[float, float] | None, rule: str) -> None:
    contract = Contract(spec_of(), ContractSettings(reward_range=limits))
    obs = np.zeros((2, 2, 2), np.float32)
    check_values(contract, obs, np.array([2.0, -1.0]), bytes(8), NONE_INVALID)
    with pytest.raises(ContractViolation) as raised:
        check_values(contract, obs, np.array([0.0, value]), bytes(8), NONE_INVALID)
    assert str(raised.value) == f"rewards[1]: expected {rule}" and raised.value.env == 1


# -- flags: terminated, truncated, reset, invalid for two environments each


def flags_of(terminated: str = "..", truncated: str = "..", reset: str = "..", invalid: str = "..") -> bytes:
    return bytes(mark == "x" for mark in terminated + truncated + reset + invalid)


def state(terminated: bool = False, truncated: bool = False, reset: bool = False, invalid: bool = False) -> str:
    return f"terminated={terminated} truncated={truncated} reset={reset} invalid={invalid}"


FIRST_OBS = "a first observation exactly where an episode ended"
NO_TRANSITION = "true exactly where no transition was made"


@pytest.mark.parametrize(
    ("within_step", "flags", "expected_invalid"),
    [
        (True, flags_of(), ".."),
        (True, flags_of(terminated=".x", reset=".x"), ".."),
        (True, flags_of(truncated="x.", reset="x."), ".."),
        (True, flags_of(terminated="xx", truncated="x.", reset="xx"), ".."),
        (True, flags_of(invalid=".x"), ".x"),
        (False, flags_of(terminated=".x"), ".."),
        (False, flags_of(truncated="x.", invalid=".x"), ".x"),
    ],
)
def test_flags_that_fit_together_are_accepted(within_step: bool, flags: bytes, expected_invalid: str) -> None:
    contract = Contract(spec_of(), resets_within_step=within_step)
    check_values(contract, np.zeros((2, 2, 2), np.float32), np.zeros(2), flags, bytes(m == "x" for m in expected_invalid))


@pytest.mark.parametrize(
    ("within_step", "flags", "expected_invalid", "message"),
    [
        (True, bytes([0, 2, 0, 0, 0, 0, 0, 0]), "..", "terminated[1]: expected true or false, got byte 2"),
        (True, bytes([0, 0, 255, 0, 0, 0, 0, 0]), "..", "truncated[0]: expected true or false, got byte 255"),
        (True, bytes([0, 0, 0, 0, 0, 3, 0, 0]), "..", "reset[1]: expected true or false, got byte 3"),
        (True, bytes([0, 0, 0, 0, 0, 0, 4, 0]), "..", "invalid[0]: expected true or false, got byte 4"),
        (True, flags_of(terminated=".x"), "..", f"reset[1]: expected {FIRST_OBS}, got {state(terminated=True)}"),
        (True, flags_of(reset="x."), "..", f"reset[0]: expected {FIRST_OBS}, got {state(reset=True)}"),
        (False, flags_of(truncated="x.", reset="x."), "..", f"reset[0]: expected {FIRST_OBS}, got {state(False, True, True)}"),
        (True, flags_of(invalid="x."), "..", f"invalid[0]: expected {NO_TRANSITION}, got {state(invalid=True)}"),
        (True, flags_of(), ".x", f"invalid[1]: expected {NO_TRANSITION}, got {state()}"),
        (
            False,
            flags_of(terminated=".x", invalid=".x"),
            ".x",
            f"ended[1]: expected no ending where no transition was made, got {state(terminated=True, invalid=True)}",
        ),
    ],
)
def test_flags_that_do_not_fit_together_are_refused(
    within_step: bool, flags: bytes, expected_invalid: str, message: str
) -> None:
    contract = Contract(spec_of(), resets_within_step=within_step)
    expected = bytes(m == "x" for m in expected_invalid)
    assert refusal(check_values, contract, np.zeros((2, 2, 2), np.float32), np.zeros(2), flags, expected) == message


def test_a_step_that_is_terminated_and_truncated_is_refused_if_so_set() -> None:
    flags = flags_of(terminated=".x", truncated=".x", reset=".x")
    arguments = (np.zeros((2, 2, 2), np.float32), np.zeros(2), flags, NONE_INVALID)
    check_values(Contract(spec_of()), *arguments)
    message = refusal(check_values, Contract(spec_of(), ContractSettings(exclusive_flags=True)), *arguments)
    assert message == f"terminated[1]: expected not both terminated and truncated, got {state(True, True, True)}"


# -- all rules at once, against plain loops


def observation_is_bad(spec: EnvSpec, rules: ContractSettings, flat_index: int, value: float) -> bool:
    if not math.isfinite(value) or abs(value) > FLOAT32_MAX:
        return True
    [leaf] = spec.observation
    low = leaf.low[flat_index] if isinstance(leaf.low, tuple) else leaf.low
    high = leaf.high[flat_index] if isinstance(leaf.high, tuple) else leaf.high
    if rules.check_membership == "error" and (value < low or value > high):
        return True
    limits = rules.observation_range
    return limits is not None and (value < limits[0] or value > limits[1])


def reward_is_bad(rules: ContractSettings, value: float) -> bool:
    if not math.isfinite(value) or abs(value) > FLOAT32_MAX:
        return True
    return rules.reward_range is not None and (value < rules.reward_range[0] or value > rules.reward_range[1])


def flags_are_bad(rules: ContractSettings, within_step: bool, row: list[int], is_invalid_due: int) -> bool:
    terminated, truncated, reset, invalid = row
    if any(byte not in (0, 1) for byte in row):
        return True
    ended = terminated == 1 or truncated == 1
    if invalid != is_invalid_due or (invalid == 1 and ended):
        return True
    if reset != (1 if ended and within_step else 0):
        return True
    return rules.exclusive_flags and terminated == 1 and truncated == 1


ANY = st.sampled_from([math.nan, math.inf, -math.inf, 1e300, -1e300, FLOAT32_MAX, -FLOAT32_MAX, FLOAT32_MAX * (1 + 2**-24)])
LIMITS = st.sampled_from(
    [-math.inf, -(2.0**63), -100.0, -1.0, -0.5, 0.0, 0.5, 1.0, 100.0, 127.0, 255.0, 255.5, 2.0**53, 2.0**63, math.inf]
)
EXTREME_INTEGERS = [sign * (2**power + offset) for sign in (1, -1) for power in (7, 8, 31, 53, 54, 62) for offset in (-1, 0, 1)]
RANGES = st.none() | st.tuples(LIMITS, LIMITS).filter(lambda pair: pair[0] < pair[1])


@st.composite
def cases(draw: st.DrawFn) -> tuple[Contract, np.ndarray, np.ndarray, bytes, bytes, bool]:
    dtype = draw(st.sampled_from(["float32", "float64", "int64", "int8", "uint8"]))
    shape = draw(st.sampled_from([(1,), (2,), (3,), (2, 2), ()]))
    size, num_envs = math.prod(shape), draw(st.integers(1, 3))

    def bounds(usual: float) -> Any:
        one = st.just(usual) | LIMITS
        return draw(st.just(usual) | one | st.tuples(*[one] * size))

    spec = spec_of(shape, dtype, bounds(-math.inf), bounds(math.inf))
    rules = ContractSettings(
        check_membership=draw(st.sampled_from(["error", "off"])),
        observation_range=draw(RANGES),
        reward_range=draw(RANGES),
        exclusive_flags=draw(st.booleans()),
    )
    # mostly harmless values, so that both verdicts are common
    whole = np.dtype(dtype).kind in "iu"
    harmless: Any = st.integers(0, 1) if whole else st.sampled_from([0.5, 1.0, 0.75])
    wild: Any = ANY | st.floats(width=32)
    if whole:
        least, greatest = int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)
        extremes = [least, greatest, *(value for value in EXTREME_INTEGERS if least <= value <= greatest)]
        wild = st.integers(least, greatest) | st.sampled_from(extremes)
    count = 2 * num_envs * size
    values = draw(st.lists(harmless, min_size=count, max_size=count))
    for index, value in draw(st.lists(st.tuples(st.integers(0, max(count - 1, 0)), wild), max_size=2)):
        values[index] = value
    with np.errstate(over="ignore", invalid="ignore"):
        both = np.array(values, np.float64 if dtype.startswith("float") else np.int64).astype(dtype)
    reward = st.sampled_from([0.5, 0.75]) if draw(st.booleans()) else ANY | st.floats() | st.just(0.5)
    rewards = np.array(draw(st.lists(reward, min_size=num_envs, max_size=num_envs)))
    within_step = draw(st.booleans())
    rows = []
    for _ in range(num_envs):
        terminated, truncated, invalid = draw(
            st.sampled_from([(0, 0, 0), (0, 0, 0), (1, 0, 0), (0, 1, 0), (1, 1, 0), (0, 0, 1)])
        )
        rows.append([terminated, truncated, int((terminated or truncated) and within_step), invalid])
    expected_invalid = bytes(row[3] for row in rows)
    if draw(st.booleans()):
        rows[draw(st.integers(0, num_envs - 1))][draw(st.integers(0, 3))] = draw(st.sampled_from([0, 1]) | st.integers(0, 255))
    flags = bytes(rows[i][k] for k in range(4) for i in range(num_envs))
    contract = Contract(spec, rules, resets_within_step=within_step)
    return contract, both.reshape(2, num_envs, *shape), rewards, flags, expected_invalid, within_step


@settings(max_examples=600)
@given(cases())
def test_the_vectorised_pass_agrees_with_plain_loops(
    case: tuple[Contract, np.ndarray, np.ndarray, bytes, bytes, bool],
) -> None:
    contract, both, rewards, flags, expected_invalid, within_step = case
    spec, rules, num_envs = contract.spec, contract.settings, len(rewards)
    bad: set[tuple[str, int, tuple[int, ...]]] = set()
    for field, values in (("obs", both[0]), ("final_obs", both[1])):
        for env in range(num_envs):
            if field == "final_obs" and not (within_step and (flags[env] or flags[num_envs + env])):
                continue
            for flat_index, index in enumerate(np.ndindex(spec.observation[0].shape)):
                if observation_is_bad(spec, rules, flat_index, values[(env, *index)].item()):  # integers compare exactly
                    bad.add((field, env, index))
    for env in range(num_envs):
        if reward_is_bad(rules, float(rewards[env])):
            bad.add(("rewards", env, ()))
        if flags_are_bad(rules, within_step, [flags[k * num_envs + env] for k in range(4)], expected_invalid[env]):
            bad.add(("flags", env, ()))

    def verdict(check: Any, *args: Any) -> ContractViolation | None:
        try:
            check(*args)
        except ContractViolation as violation:
            return violation
        return None

    def named(violation: ContractViolation) -> tuple[str, int, tuple[int, ...]]:
        match = re.fullmatch(r"(\w+)\[([\d, ]+)\]", violation.field)
        assert match is not None, violation.field
        env, *component = (int(part) for part in match[2].split(","))
        assert env == violation.env
        return match[1] if match[1] in ("obs", "final_obs", "rewards") else "flags", env, tuple(component)

    violation = verdict(check_values, contract, both, rewards, flags, expected_invalid)
    assert (violation is not None) == bool(bad)
    assert violation is None or named(violation) in bad
    first = verdict(check_observations, contract, both[0])
    assert (first is not None) == any(field == "obs" for field, _, _ in bad)
    assert first is None or named(first) in bad


# -- membership of the declared space, when it is not fatal


def test_an_observation_outside_its_space_is_told_once_with_the_figures_and_accepted() -> None:
    said: list[str] = []
    contract = Contract(spec_of(), on_warning=said.append)
    both = np.full((2, 3, 2), 0.25, np.float32)
    both[0, 2, 0] = 1.5
    check_values(contract, both, np.zeros(3), bytes(12), bytes(3))
    assert said == [
        "obs[2, 0]: expected a value in [-1.0, 1.0] (the declared observation space), got 1.5; the run goes on without this "
        "check. data.contract.check_membership=error stops instead, =off says nothing"
    ]
    both[0, 1, 1] = -7.0
    check_values(contract, both, np.zeros(3), bytes(12), bytes(3))
    check_observations(contract, both[0])
    assert len(said) == 1


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_refused_beside_and_after_an_accepted_observation(value: float) -> None:
    for beside in (True, False):
        contract = Contract(spec_of())
        both = np.full((2, 3, 2), 0.25, np.float32)
        both[0, 0, 0] = 1.5
        if not beside:
            check_values(contract, both, np.zeros(3), bytes(12), bytes(3))
        both[0, 2, 1] = value
        message = refusal(check_values, contract, both, np.zeros(3), bytes(12), bytes(3))
        assert message == f"obs[2, 1]: expected a finite value, got {value}"


def test_a_range_of_the_users_stays_fatal_when_the_space_is_not() -> None:
    contract = Contract(spec_of(), ContractSettings(observation_range=(-2.0, 2.0)))
    check_observations(contract, np.array([[1.5, 0.0]], np.float32))
    assert "data.contract.observation_range" in refusal(check_observations, contract, np.array([[2.5, 0.0]], np.float32))


def test_whole_numbers_outside_their_space_are_told_once_and_accepted() -> None:
    said: list[str] = []
    contract = Contract(spec_of(dtype="uint8", low=0.0, high=254.0), on_warning=said.append)
    for _ in range(2):
        check_observations(contract, np.full((1, 2), 255, np.uint8))
    assert len(said) == 1 and "got 255" in said[0]


def test_a_way_to_check_membership_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"data\.contract\.check_membership=True: expected warn, error or off"):
        ContractSettings(check_membership=True)  # type: ignore[arg-type]


# -- actions of other kinds

BOX = Leaf("", "box", (2,), "float32", -1.0, 2.0)
KINDS = Leaf("", "multi_discrete", (2,), "int64", (0, 5), (2, 6))


@pytest.mark.parametrize(
    ("leaf", "actions", "message"),
    [
        (BOX, [[0.0, 2.0], [0.0, math.nan]], "actions[1, 1]: expected a finite value, got nan"),
        (BOX, [[0.0, -1.5]], "actions[0, 1]: expected a value in [-1.0, 2.0] (the action space), got -1.5"),
        (KINDS, [[0, 5], [3, 5]], "actions[1, 0]: expected a value in [0, 2] (the action space), got 3"),
        (KINDS, [[0, 4]], "actions[0, 1]: expected a value in [5, 6] (the action space), got 4"),
        (Leaf("", "multi_binary", (2,), "int8", 0, 1), [[0, 2]], "actions[0, 1]: expected a value in [0, 1]"),
        (Leaf("", "discrete", (), "int64", -3, -1), [-3, 0], "actions[1]: expected a value in [-3, -1] (the action space)"),
    ],
)
def test_actions_of_every_kind_are_checked_before_they_are_sent(leaf: Leaf, actions: list[Any], message: str) -> None:
    contract = Contract(spec_of(action=leaf))
    good = np.stack([leaf.neutral()] * 3)
    assert contract.check_actions(good) is good
    with pytest.raises(ValueError) as raised:
        contract.check_actions(np.array(actions, leaf.dtype))
    assert str(raised.value).startswith(message)
    with pytest.raises(ValueError, match="actions: expected "):
        contract.check_actions(good.astype(np.float16))


# -- masks


def test_a_mask_without_a_possible_action_is_a_violation() -> None:
    mask = Leaf("info:action_mask", "multi_binary", (5,), "int8", 0, 1)
    spec = EnvSpec("Test-v0", (mask,), Leaf("", "multi_discrete", (2,), "int64", 0, (1, 2)), "info:action_mask")
    contract = Contract(spec)
    masks = np.array([[1, 0, 0, 0, 1], [0, 1, 1, 1, 1]], np.int8)
    contract.check_observations({mask.path: masks})
    masks[1, :2] = 0  # of the first component, no value is possible
    message = refusal(contract.check_observations, {mask.path: masks})
    assert message == "obs.info:action_mask[1]: expected at least one possible action, got an action mask of zeros"
    rewards, ended = np.zeros(2), bytes([0, 1, 0, 0, 0, 1, 0, 0])
    good = np.ones_like(masks)
    contract.check_values(
        {mask.path: good}, {mask.path: masks}, rewards, ended, bytes(2)
    )  # after the end nothing need be possible
    masks[1, 0] = 2
    message = refusal(contract.check_observations, {mask.path: masks})
    assert message.startswith("obs.info:action_mask[1, 0]: expected a value in [0, 1]")
