"""The state of native vector environments: each kind of it comes back bit for bit, or is refused by name."""

import json
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_ppo.bridge.client import EnvBridge
from lit_ppo.bridge.frame import FrameLayout
from lit_ppo.bridge.hosts import NativeHost
from lit_ppo.bridge.settings import BridgeSettings, EnvironmentSettings
from lit_ppo.errors import ConfigError, ProtocolError
from lit_ppo.spaces import Row
from tests.vector_envs import CONSTANTS, KINDS, SAVED

REFUSAL = re.compile(
    r"data\.vectorization=native: expected state that can be saved as plain data, got (\w+\.\w+), which .*; "
    r"use data\.vectorization=sync"
)


def host_of(name: str = "Keeper-v0", **kwargs: Any) -> NativeHost:
    host = NativeHost(EnvironmentSettings(f"tests.vector_envs:{name}", env_kwargs=kwargs), 2)
    row = Row(host.spec.observation)
    layout = FrameLayout(2, row.size, host.action.shape, host.action.dtype, host.resets_within_step)
    host.allocate(row, layout.reply_views(bytearray(layout.reply_bytes), 0))
    return host


def played(host: NativeHost, actions: np.ndarray) -> list[bytes]:
    seen = []
    for row in actions:
        host.step(row)
        seen.append(host.rows.tobytes() + host.rewards.tobytes() + host.flags.tobytes())
    return seen


def comes_back(kind: str, in_reset: bool, num_steps: int, seed: int = 1, resets_other: bool = False) -> bool:
    """Whether state comes back bit for bit, in an environment that is fresh or was reset; else it is refused."""
    in_reset |= kind == "its stream by another name"  # one that is made before the first reset has no seed
    actions = np.random.default_rng(seed).integers(0, 2, (num_steps + 25, 2))
    one, other = host_of(kind=kind, in_reset=in_reset), host_of(kind=kind, in_reset=in_reset)
    one.reset([seed, None])
    if resets_other:
        other.reset([seed + 1, None])
    played(one, actions[:num_steps])
    try:
        other.restore(json.loads(json.dumps(one.save())))
    except ConfigError as error:
        refused = str(error)
    else:
        assert played(one, actions[num_steps:]) == played(other, actions[num_steps:])
        return True
    found = REFUSAL.fullmatch(refused)
    assert found is not None and found[1] in ("Keeper.kept", "Keeper.other"), refused
    return False


@pytest.mark.parametrize("in_reset", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_state_comes_back_bit_for_bit_or_is_refused_by_name(kind: str, in_reset: bool) -> None:
    is_as_made = kind == "deleted" and in_reset  # what a reset adds is not there before it
    assert comes_back(kind, in_reset, 7) == (kind in SAVED or is_as_made)


@given(st.sampled_from(sorted(KINDS)), st.booleans(), st.integers(0, 30), st.integers(0, 2**31), st.booleans())
@settings(max_examples=50)
def test_no_kind_of_state_comes_back_as_another(
    kind: str, in_reset: bool, num_steps: int, seed: int, resets_other: bool
) -> None:
    comes_back(kind, in_reset, num_steps, seed, resets_other)


@pytest.mark.parametrize("constant", CONSTANTS)
def test_an_attribute_that_never_changes_is_not_refused(constant: str) -> None:
    one, other = host_of(constant=constant), host_of(constant=constant)
    one.reset([0, None])
    actions = np.ones((30, 2), np.int64)
    played(one, actions)
    other.restore(one.save())
    assert played(one, actions) == played(other, actions)


def test_state_of_wrappers_is_saved_or_refused_as_well() -> None:
    one, other = host_of("Counting-v0"), host_of("Counting-v0")
    one.reset([0, None])
    actions = np.ones((30, 2), np.int64)
    played(one, actions)
    other.restore(one.save())
    assert played(one, actions) == played(other, actions)
    refused = host_of("Counting-v0", in_list=True)
    refused.reset([0, None])
    played(refused, actions)
    with pytest.raises(ConfigError, match=r"got Counting\.counted, which is a list"):
        refused.save()


def test_a_stream_of_another_kind_is_refused() -> None:
    host = host_of()
    host.reset([0, None])
    host.vector.unwrapped.np_random.spawn(1)
    with pytest.raises(ConfigError, match=r"got Keeper\.np_random"):
        host.save()
    host.vector.unwrapped.np_random = np.random.Generator(np.random.MT19937(0))
    with pytest.raises(ConfigError, match=r"got Keeper\.np_random"):
        host.save()


def test_a_malformed_state_is_no_state() -> None:
    for change in (
        {"fields": []},
        {"fields": {"9.t": {"integer": 1}}},
        {"fields": {"t": 1}},
        {"fields": {"t": {"float": "x"}}},
        {"fields": {"t": {"same_as": "nothing"}}},
        {"fields": {"t": {"dtype": "<f8", "shape": [1], "data": "AAAAAAAAAAA=", "order": "sideways"}}},
        {"random": {"bit_generator": "MT19937"}},
    ):
        host = host_of()
        host.reset([0, None])
        state = host.save() | change
        with pytest.raises(ProtocolError):
            host.restore(state)


@pytest.mark.parametrize("kind", ["class", "module", "second stream", "list"])
def test_a_run_does_not_begin_with_state_that_a_fresh_process_lacks(kind: str) -> None:
    environment = EnvironmentSettings("tests.vector_envs:Keeper-v0", env_kwargs={"kind": kind})
    expected = REFUSAL.pattern if kind in KINDS else "in a fresh process, got other observations, rewards or ends"
    with (
        EnvBridge(environment, 2, lambda env, episode: episode, settings=BridgeSettings(vectorization="native")) as bridge,
        pytest.raises(ConfigError, match=expected),
    ):
        bridge.reset()
