"""`PPOModule.predict`: one observation or many of any space, as Gymnasium gives it; what does not fit is refused."""

from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

import tests.toy_envs  # noqa: F401  registers the environments
from lit_ppo.bridge.trees import ObservationTree, action_leaf, mask_leaf
from lit_ppo.module import PPOModule
from lit_ppo.spaces import EnvSpec
from tests.specs import box, discrete, generator, spec_of

SPACES: dict[str, dict[str, Any]] = {
    "vector": {},
    "image": {"observation": "image"},
    "nested": {"observation": "nested"},
    "masked": {"observation": "nested", "masked": True},
    "multi_discrete": {"action": "multi_discrete"},
    "multi_binary": {"action": "multi_binary"},
    "box": {"action": "box"},
}
SMALL = {"actor_hidden_sizes": (8,), "critic_hidden_sizes": (8,)}


def made(name: str, **settings: Any) -> tuple[PPOModule, Any]:
    env = gymnasium.make("Anything-v0", disable_env_checker=True, **SPACES[name])
    action = action_leaf("", env.action_space)
    path, leaf = mask_leaf("info:possible", action) if name == "masked" else (None, None)
    tree = ObservationTree("", env.observation_space, None, leaf)
    return PPOModule(EnvSpec("Anything-v0", tree.leaves, action, path), **SMALL, **settings), env


def masked(info: dict[str, Any]) -> dict[str, Any]:
    return {"action_mask": info["possible"]} if "possible" in info else {}


@pytest.mark.parametrize("memory", [None, "gru", "lstm"])
@pytest.mark.parametrize("name", SPACES)
def test_policy_plays_an_environment_and_many_observations_get_the_actions_of_each(name: str, memory: Any) -> None:
    module, env = made(name, memory=memory, normalize_observations=name == "vector")
    (obs, info), state, actions, seen = env.reset(seed=0), None, [], []
    for _ in range(6):
        action, after = module.predict(obs, state, **masked(info))
        assert action in env.action_space and (after is None) is (memory is None)
        seen.append((obs, state if state is not None or memory is None else np.zeros_like(after), info))
        actions.append(action)
        obs, _, _, _, info = env.step(action)
        state = after
    many = batched([obs for obs, _, _ in seen])
    states = None if memory is None else np.stack([state for _, state, _ in seen])
    masks = {"action_mask": np.stack([info["possible"] for *_, info in seen])} if name == "masked" else {}
    together, after = module.predict(many, states, **masks)
    assert np.allclose(together, np.stack(actions), atol=1e-6) and len(together) == 6
    flattened = {path: torch.from_numpy(leaf) for path, leaf in module._reader.read(many, masks.get("action_mask"))[0].items()}  # type: ignore[union-attr]
    assert np.array_equal(module.predict(flattened, states)[0], together)  # tensors by path


def batched(values: list[Any]) -> Any:
    if isinstance(values[0], dict):
        return {key: batched([value[key] for value in values]) for key in values[0]}
    return (
        tuple(batched(list(parts)) for parts in zip(*values, strict=True)) if isinstance(values[0], tuple) else np.stack(values)
    )


def test_draws_come_from_the_generator_alone_and_the_module_keeps_its_mode() -> None:
    module, env = made("box")
    obs, _ = env.reset(seed=0)
    before = torch.random.get_rng_state()
    draws = [module.predict(obs, deterministic=False, generator=generator(seed))[0] for seed in (1, 1, 2)]
    assert np.array_equal(draws[0], draws[1]) and not np.array_equal(draws[0], draws[2])
    assert torch.equal(before, torch.random.get_rng_state()) and module.policy.actor.training
    with pytest.raises(ValueError, match=r"^deterministic=False: expected generator="):
        module.predict(obs, deterministic=False)


def test_beginning_episode_forgets() -> None:
    module, env = made("vector", memory="gru")
    obs, _ = env.reset(seed=0)
    fresh = module.predict(obs)[1]
    assert fresh is not None
    assert np.array_equal(module.predict(obs, 9 * fresh, episode_start=True)[1], fresh)
    assert not np.array_equal(module.predict(obs, 9 * fresh)[1], fresh)


def test_parts_that_the_policy_does_not_see_are_ignored() -> None:
    module = PPOModule(spec_of(box(2, path="x"), discrete(3, path="y"), action=discrete(2, start=5)), **SMALL)
    obs = {"x": np.zeros(2, np.float32), "y": 1, "mission": "go"}
    assert module.predict(obs)[0] in (5, 6)


GOOD = {"x": np.zeros(2, np.float32), "y": 1}
REFUSED: dict[str, tuple[Any, dict[str, Any], str]] = {
    "no dict": (
        np.zeros(2),
        {},
        r"^obs: expected a dict by path, or nested as Gymnasium gives it, with \['x', 'y'\], got ndarray",
    ),
    "missing": ({"x": GOOD["x"]}, {}, r"^obs.y: expected a part of the observation, got parts \['x'\]"),
    "shape": (GOOD | {"x": np.zeros(3, np.float32)}, {}, r"^obs.x: expected shape \(2,\), or \(rows, 2\).*got shape \(3,\)"),
    "dtype": (GOOD | {"x": np.zeros(2, np.int64)}, {}, r"^obs.x: expected dtype float32, got dtype int64"),
    "rows": (
        {"x": np.zeros((4, 2), np.float32), "y": np.ones(3, np.int64)},
        {},
        r"^obs.y: expected shape \(4,\), got shape \(3,\)",
    ),
    "NaN": (GOOD | {"x": np.array([0, np.nan], np.float32)}, {}, r"^obs.x\[0, 1\]: expected a finite value, got nan"),
    "choice": (GOOD | {"y": 3}, {}, r"^obs.y\[0\]: expected a value in \[0, 2\]"),
    "list": (GOOD | {"x": [0.0, 1.0]}, {}, r"^obs.x: expected shape \(2,\).*got list \[0.0, 1.0\]"),
    "state": (GOOD, {"state": np.zeros(3)}, r"^state: expected None; the policy has no memory"),
    "mask": (GOOD, {"action_mask": np.ones(2, np.int8)}, r"^action_mask: expected None; the policy was trained without"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_refused(name: str) -> None:
    module = PPOModule(spec_of(box(2, path="x"), discrete(3, path="y"), action=discrete(2)), **SMALL)
    obs, arguments, message = REFUSED[name]
    with pytest.raises(ValueError, match=message) as refused:
        module.predict(obs, **arguments)
    assert "\n" not in str(refused.value)


def test_mask_of_the_environment_must_be_given() -> None:
    module, env = made("masked")
    obs, _ = env.reset(seed=0)
    with pytest.raises(ValueError, match=r"^action_mask: expected what the environment gives in info\['possible'\], got None"):
        module.predict(obs)
    with pytest.raises(ValueError, match=r"^obs.info:possible\[0\]: expected at least one possible action"):
        module.predict(obs, action_mask=np.zeros(4, np.int8))
    with pytest.raises(ValueError, match=r"^obs.camera/right: expected no such part"):
        module.predict(obs | {"camera": obs["camera"] | {"right": 0}}, action_mask=np.ones(4, np.int8))
