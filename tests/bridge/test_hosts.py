"""What the worker takes from an environment and gives to it: spaces, actions, masks. Over a wire without processes."""

from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lit_ppo.bridge.client import EnvBridge
from lit_ppo.bridge.settings import EnvironmentSettings
from lit_ppo.errors import AnnouncementError, ConfigError, ContractViolation, EnvironmentRaised
from tests.fake_wire import FakeWire

ENV_ID = "tests.bridge.test_hosts:MadeEnv"
BOX = spaces.Box(-1, 1, (2,))
MADE: dict[str, Any] = {}  # arguments of the environments of a test; the fake wire makes them in this process


class MadeEnv(gymnasium.Env[Any, Any]):
    """Episodes of three steps, with spaces and masks of one's choice; keeps the actions."""

    def __init__(self) -> None:
        self.observation_space, self.action_space = MADE.get("observation", BOX), MADE.get("action", spaces.Discrete(3))
        self.actions: list[Any] = MADE.setdefault("actions", [])
        self.masks, self.steps = MADE.get("masks"), 0
        if "spec" in MADE:
            self.spec = MADE["spec"]
        if MADE.get("has_method"):
            self.action_masks = lambda: self.masks(self.steps)

    def _returned(self) -> tuple[Any, dict[str, Any]]:
        obs = MADE["observe"](self.steps) if "observe" in MADE else self.observation_space.sample()
        return obs, MADE["info"](self.steps) if "info" in MADE else {}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        self.steps = 0
        return self._returned()

    def step(self, action: Any) -> Any:
        self.actions.append(action)
        self.steps += 1
        obs, info = self._returned()
        return obs, 0.0, self.steps == 3 and MADE.get("ends", "terminated") == "terminated", self.steps == 3, info


def bridge_of(wires: list[FakeWire] | None = None, action_mask: str | None = None, **made: Any) -> EnvBridge:
    MADE.clear()
    MADE.update(made)

    def start(python: str | None, name: str, rows: range, confinement: dict[str, Any]) -> FakeWire:
        wire = FakeWire(name, rows)
        if wires is not None:
            wires.append(wire)
        return wire

    environment = EnvironmentSettings(ENV_ID, action_mask=action_mask)
    return EnvBridge(environment, 2, lambda env, episode: 10 * env + episode, start_worker=start)


# -- spaces that cannot be announced

HOSTILE_KEYS = st.sampled_from(
    [0, 1, "0", ("a", 1), "a", "b", "a/b", "", "a\nb", "\x1b[2J", "k" * 500, "ä", "\ud800", "info:x"]
)
HOSTILE_LEAVES = st.sampled_from(
    [
        BOX,
        spaces.Discrete(3),
        spaces.Discrete(1 << 40),
        spaces.Box(0, 1, (0,)),
        spaces.Box(0, 1, (2,), np.longdouble),
        spaces.Box(0, 1, (2,), np.uint64),
        spaces.Box(0, 1, (2,), np.dtype(">f4")),  # type: ignore[arg-type]
        spaces.Text(3),
        spaces.Dict({}),
        spaces.Tuple([]),
        spaces.Tuple([spaces.Discrete(2)] * 300),
        spaces.MultiDiscrete([2, 3], np.uint64),
    ]
)
HOSTILE_SPACES = st.recursive(
    HOSTILE_LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3).map(spaces.Tuple) | st.dictionaries(HOSTILE_KEYS, inner, max_size=3).map(spaces.Dict)
    ),
    max_leaves=4,
)
HOSTILE_NUMBERS = st.sampled_from(
    [None, 7, 7.0, 7.5, np.int64(7), np.float32(7), float("nan"), float("inf"), "7", "seven", [7], 1 << 70]
)


@settings(max_examples=300)
@given(HOSTILE_SPACES, HOSTILE_LEAVES, HOSTILE_NUMBERS, HOSTILE_NUMBERS)
@example(BOX, spaces.Discrete(3), "seven", None)
def test_every_space_is_announced_or_refused_at_once_in_one_line(
    observation: gymnasium.Space[Any], action: gymnasium.Space[Any], threshold: Any, limit: Any
) -> None:
    wires: list[FakeWire] = []
    spec = SimpleNamespace(reward_threshold=threshold, max_episode_steps=limit)
    with bridge_of(wires, observation=observation, action=action, spec=spec) as bridge:
        try:
            announced, refusal = bridge.spec, None
        except ConfigError as error:
            refusal = str(error)
        if refusal is None:
            assert bridge.reset().keys() == {leaf.path for leaf in announced.observation}
        else:
            assert refusal.startswith(f"env_id={ENV_ID}: ") and "\n" not in refusal and len(refusal) < 700
        assert len(wires) == 1 and bridge.restarts == 0


NAMED = {
    "two of one path": (
        spaces.Dict({"a/b": BOX, "a": spaces.Dict(b=BOX)}),
        "parts ['a']['b'] and ['a/b'] of the observation space have the same path 'a/b'; rename one",
    ),
    "number and text": (spaces.Dict({0: BOX, "0": BOX}), "parts [0] and ['0'] of the observation space have the same path '0'"),
    "newline": (spaces.Dict({"a\nb": BOX, "c": BOX}), r"leaf 'a\nb' is not supported: expected keys of at most 200 printable"),
    "long": (spaces.Dict({"k" * 500: BOX, "c": BOX}), "leaf 'kkkk"),
    "nothing": (spaces.Dict({}), "observation space: expected 1 to 256 parts, got 0"),
    "many": (
        spaces.Tuple([BOX] * 257),
        "observation space: expected 1 to 256 parts, got 257; leave some out with data.obs_keys",
    ),
    "empty axis": (
        spaces.Dict(full=BOX, none=spaces.Box(0, 1, (0, 3))),
        "part 'none' of the observation space, a Box of shape (0, 3), is not supported: expected 1 to 16777216 components; "
        "leave it out with --data.obs_keys=[full]",
    ),
    "longdouble": (
        spaces.Box(0, 1, (2,), np.longdouble),
        "observation space Box of dtype longdouble is not supported: expected",
    ),
    "choices": (spaces.Dict(c=spaces.Discrete(1 << 40)), "leaf 'c' with (1099511627776,) choices is not supported"),
}


@pytest.mark.parametrize("case", NAMED)
def test_a_space_that_cannot_be_announced_is_named(case: str) -> None:
    space, message = NAMED[case]
    with bridge_of(observation=space) as bridge, pytest.raises(ConfigError) as raised:
        bridge.reset()
    assert str(raised.value).startswith(f"env_id={ENV_ID}: {message}")


def test_an_answer_to_make_that_announces_nothing_is_not_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lit_ppo.bridge.worker.spec_to_json", lambda spec: {"env_id": spec.env_id})
    wires: list[FakeWire] = []
    with bridge_of(wires) as bridge, pytest.raises(AnnouncementError, match="observation: expected list, got nothing"):
        bridge.reset()
    assert len(wires) == 1


# -- actions

ACTIONS = [
    spaces.Discrete(3, start=-1),
    spaces.MultiDiscrete([3, 2]),
    spaces.MultiDiscrete([3, 2], np.int8),
    spaces.MultiBinary(2),
    spaces.MultiBinary([2, 2]),
    spaces.Box(-1, 1, (2,)),
    spaces.Box(-1, 1, (2, 3), np.float64),
    spaces.Box(-1, 1, ()),
    spaces.Box(0, 3, (), np.int64),
    spaces.Box(0, 1, (), np.bool_),
]


@pytest.mark.parametrize("space", ACTIONS, ids=str)
def test_an_action_arrives_as_the_space_samples_it_and_stays_as_it_is(space: gymnasium.Space[Any]) -> None:
    with bridge_of(action=space) as bridge:
        bridge.reset()
        leaf = bridge.spec.action
        asked = [np.stack([space.sample(), space.sample()]).astype(leaf.dtype) for _ in range(4)]
        for actions in asked:
            bridge.step(actions.copy())
    sampled, arrived = space.sample(), MADE["actions"]
    assert len(arrived) == 8
    for expected, action in zip(np.concatenate(asked), arrived, strict=True):
        assert type(action) is type(sampled) and action.dtype == sampled.dtype and action.shape == sampled.shape
        assert np.array_equal(action, expected)
        assert not isinstance(action, np.ndarray) or action.flags.owndata


# -- masks

MASK = np.array([0, 1, 0])
FORMS: dict[str, Any] = {
    **{name: MASK.astype(name) for name in ("bool", "int8", "uint8", "int64", "float16", "float32", "float64")},
    "list": [0, 1, 0],
    "booleans": (False, True, False),
    "flags": [np.False_, np.True_, np.False_],
}


def played(bridge: EnvBridge, action: Any, mask: str) -> list[list[int]]:
    """Masks of the first environment at the reset and after each of four steps, past the end of an episode."""
    masks = [bridge.reset()[mask][0].astype(int).tolist()]
    for _ in range(4):
        masks.append(bridge.step(np.array([action, action])).obs[mask][0].astype(int).tolist())
    return masks


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("source", ["info", "call", "obs"])
@pytest.mark.parametrize("ends", ["terminated", "truncated"])
def test_a_mask_has_any_form_and_is_not_read_where_no_action_follows(form: str, source: str, ends: str) -> None:
    def mask_at(step: int) -> Any:
        if step == 3:
            raise AssertionError("read at the end of an episode")
        return FORMS[form]

    made: dict[str, Any] = {"ends": ends}
    action_mask, path = {
        "info": ("info:m", "info:m"),
        "call": ("call:action_masks", "call:action_masks"),
        "obs": ("obs:m", "m"),
    }[source]
    if source == "info":
        made["info"] = lambda step: {} if step == 3 else {"m": mask_at(step)}
    elif source == "call":
        made |= {"has_method": True, "masks": mask_at}
    else:
        kind = np.asarray(FORMS[form]).dtype
        made["observation"] = spaces.Dict(m=spaces.Box(0, 1, (3,), kind.type), x=BOX)
        made["observe"] = lambda step: {"m": np.full(3, 7, kind) if step == 3 else FORMS[form], "x": np.zeros(2, np.float32)}
    with bridge_of(action_mask=action_mask, **made) as bridge:
        assert played(bridge, 1, path) == [MASK.tolist()] * 5


@pytest.mark.parametrize("value", [[0, 2, 1], [0.5, 1, 1], ["0", "1", "1"], [0, 1], [0, 0, 0], None, np.array([np.nan, 1, 1])])
@pytest.mark.parametrize("source", ["info", "call"])
def test_a_mask_of_other_values_is_a_violation(value: Any, source: str) -> None:
    made = {"info": lambda step: {"m": value}} if source == "info" else {"has_method": True, "masks": lambda step: value}
    path = "info:m" if source == "info" else "call:action_masks"
    with bridge_of(action_mask=path, **made) as bridge, pytest.raises(ContractViolation, match=path):
        bridge.reset()


@pytest.mark.parametrize("nvec", [[3, 2], [2, 2]])
def test_masks_of_a_multi_discrete_are_flat_or_one_for_each_component(nvec: list[int]) -> None:
    parts = [np.eye(size)[0] > 0 for size in nvec]
    flat = np.concatenate(parts)
    for form in (parts, tuple(parts), [part.tolist() for part in parts], flat, flat.tolist()):
        made = {"has_method": True, "masks": lambda step, form=form: form}
        with bridge_of(action_mask="call:action_masks", action=spaces.MultiDiscrete(nvec), **made) as bridge:
            assert played(bridge, [0, 0], "call:action_masks") == [flat.astype(int).tolist()] * 5


def test_a_method_that_raises_is_the_environments_fault_and_one_that_is_missing_a_settings() -> None:
    with (
        bridge_of(action_mask="call:action_masks", has_method=True, masks=lambda step: [1 // (1 - step)] * 3) as bridge,
        pytest.raises(EnvironmentRaised) as raised,
    ):
        played(bridge, 1, "call:action_masks")
    assert str(raised.value).startswith("env 0 raised in action_masks: ZeroDivisionError") and raised.value.where["step"] == 0
    with (
        bridge_of(action_mask="call:masks") as bridge,
        pytest.raises(ConfigError, match=r"^action_mask=call:masks: expected a method"),
    ):
        bridge.reset()
    for action_mask, kind in (("info:m", ContractViolation), ("obs:m", ConfigError)):
        with (
            bridge_of(action_mask=action_mask, has_method=True, masks=lambda step: MASK) as bridge,
            pytest.raises(kind, match=r"it has a method for it: data\.action_mask=call:action_masks"),
        ):
            bridge.reset()


def test_values_that_raise_when_they_are_read_are_the_environments_fault() -> None:
    class Lazy(dict[str, Any]):
        def __getitem__(self, key: str) -> Any:
            raise LookupError("lazy")

    with (
        bridge_of(observation=spaces.Dict(x=BOX), observe=lambda step: Lazy(x=0)) as bridge,
        pytest.raises(EnvironmentRaised, match=r"^env 0 raised in reset: LookupError: lazy"),
    ):
        bridge.reset()


@pytest.mark.parametrize("name", ["observation_space", "action_space"])
def test_spaces_that_raise_when_they_are_read_are_the_environments_fault(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def lazy(env: MadeEnv) -> Any:
        raise LookupError(name)

    monkeypatch.setattr(MadeEnv, name, property(lazy, lambda env, space: None), raising=False)
    with bridge_of() as bridge, pytest.raises(EnvironmentRaised, match=f"^env 0 raised in make: LookupError: '?{name}"):
        bridge.reset()


@pytest.mark.parametrize(("module", "cure"), [("jaxlib._jax", "gymnasium.wrappers.JaxToNumpy"), ("torch", "numpy()")])
def test_arrays_of_other_libraries_are_taken_if_numpy_can_read_them_and_else_refused_with_their_cure(
    module: str, cure: str
) -> None:
    array = type("Array", (), {"__module__": module, "__array__": lambda self, *args, **kwargs: np.zeros(2, np.float32)})
    with bridge_of(observe=lambda step: array()) as bridge:
        assert not bridge.reset()[""].any()
    with bridge_of(observe=lambda step: type("Array", (), {"__module__": module})()) as bridge:
        with pytest.raises(ContractViolation) as raised:
            bridge.reset()
        assert cure in str(raised.value)
