"""What an environment announces: a spec, or refused with a message."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_ppo.bridge.protocol import decode, encode
from lit_ppo.errors import ProtocolError
from lit_ppo.spaces import EnvSpec, bound_to_json, spec_from_json

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=15,
)


def announced(**changes: Any) -> dict[str, Any]:
    message: dict[str, Any] = {
        "env_id": "Test-v0",
        "observation_space": {
            "type": "Box",
            "shape": [2],
            "dtype": "float32",
            "low": -1.0,
            "high": [1, "Infinity"],
            "repr": "B",
        },
        "action_space": {"type": "Discrete", "n": 3, "start": -1, "repr": "D"},
        "reward_threshold": 475,
        "max_episode_steps": 500,
    }
    for name, value in changes.items():
        section, _, key = name.rpartition("__")
        (message[f"{section}_space"] if section else message)[key] = value
    return message


def test_an_announcement_becomes_a_spec() -> None:
    wanted = EnvSpec("Test-v0", (2,), "float32", -1.0, (1.0, math.inf), 3, -1, 475.0, 500)
    assert spec_from_json(announced()) == wanted
    image = {"shape": [84, 84, 3], "dtype": "uint8", "low": 0, "high": 255}
    spec = spec_from_json(announced(**{f"observation__{key}": value for key, value in image.items()}))
    assert (spec.obs_shape, spec.obs_dtype, spec.obs_low, spec.obs_high) == ((84, 84, 3), "uint8", 0.0, 255.0)
    bare = spec_from_json(announced(reward_threshold=None, max_episode_steps=None))
    assert bare.reward_threshold is None and bare.max_episode_steps is None


SIZES = f"are not supported; expected 1 to {2**24} components"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"observation__type": "Tuple", "observation__repr": "Tuple(...)"},
            "env_id=Test-v0: observation space 'Tuple(...)' is not supported; lit_ppo trains on Box observations",
        ),
        (
            {"action__type": "Box", "action__repr": "Box(2,)"},
            "env_id=Test-v0: action space 'Box(2,)' is not supported; lit_ppo trains on Discrete actions",
        ),
        *(
            ({"observation__shape": shape}, f"env_id=Test-v0: observations of shape {tuple(shape)} {SIZES}")
            for shape in ([], [0], [3, 0], [-3], [-3, -4], [2**40], [2**13, 2**12])
        ),
        *(
            (changes, f"env_id=Test-v0: action space with {numbers} is not supported; expected 1 to 2^20 actions")
            for changes, numbers in (
                ({"action__n": 0}, "n=0 start=-1"),
                ({"action__n": 2**21}, f"n={2**21} start=-1"),
                ({"action__start": 2**40}, f"n=3 start={2**40}"),
            )
        ),
        ({"observation__dtype": "complex64"}, "env_id=Test-v0: observations of dtype 'complex64' are not supported"),
        ({"observation__dtype": "object"}, "env_id=Test-v0: observations of dtype 'object' are not supported"),
    ],
)
def test_each_space_that_cannot_be_trained_on_has_its_message(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as raised:
        spec_from_json(announced(**changes))
    assert str(raised.value) == message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"env_id": 3}, "env_id: expected str, got 3"),
        ({"observation__shape": [True]}, "shape: expected int, got True"),
        ({"observation__shape": 2}, "shape: expected list, got 2"),
        ({"observation__low": [0.0]}, "low: expected 2 numbers, got 1"),
        ({"observation__high": [0.0, "NaN"]}, "high[1]: expected a number, Infinity or -Infinity, got 'NaN'"),
        ({"observation__low": None}, "low: expected a number, Infinity or -Infinity, got None"),
        ({"observation__low": True}, "low: expected a number, Infinity or -Infinity, got True"),
        ({"action__n": 2.0}, "n: expected int, got 2.0"),
        ({"reward_threshold": "475"}, "reward_threshold: expected float or int or null, got '475'"),
        ({"max_episode_steps": 1.5}, "max_episode_steps: expected int or null, got 1.5"),
    ],
)
def test_a_malformed_announcement_is_a_protocol_error(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ProtocolError) as raised:
        spec_from_json(announced(**changes))
    assert str(raised.value) == message


@pytest.mark.parametrize("name", ["observation__low", "observation__high", "reward_threshold"])
def test_an_integer_that_no_float_can_hold_is_a_protocol_error(name: str) -> None:
    with pytest.raises(ProtocolError, match=f"^{name.removeprefix('observation__')}: expected a number"):
        spec_from_json(decode(encode(announced(**{name: -(10**350)}))))


@given(st.dictionaries(st.sampled_from([*announced()]), VALUES))
def test_an_arbitrary_announcement_is_a_spec_or_refused(changes: dict[str, Any]) -> None:
    try:
        assert isinstance(spec_from_json(announced() | changes), EnvSpec)
    except (ProtocolError, ValueError) as error:
        assert type(error) in (ProtocolError, ValueError)  # noqa: PT017  no subclass that happens to fit


def test_bounds_survive_json() -> None:
    assert bound_to_json(np.array([np.inf, np.inf])) == "Infinity" and bound_to_json(np.array([0.1, 0.1])) == 0.1
    bound = np.array([-np.inf, np.float32(0.1), 3.4028235e38])
    line = encode({"low": bound_to_json(bound)})
    spec = spec_from_json(announced(observation__shape=[3], observation__low=decode(line)["low"], observation__high="Infinity"))
    assert spec.obs_low == tuple(bound.tolist()) and spec.obs_high == math.inf
