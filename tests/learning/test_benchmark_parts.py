"""Parts of the learning benchmarks: environments with the optimum that they claim, settings translated as they are meant."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from benchmarks.learning import envs
from benchmarks.learning.__main__ import sb3_settings
from benchmarks.learning.rows import Row, read_row
from benchmarks.learning.translation import NoCounterpart, to_sb3

ROWS = [read_row(path) for path in sorted((Path(__file__).parents[2] / "configs" / "rows").glob("*.yaml"))]
Oracle = Callable[[Any, Any], Any]  # from the environment and its observation to the best action


def best_rank(env: envs.MaskedRanks, obs: Any) -> int:
    legal = np.flatnonzero(obs["mask"])
    pick = np.argmax if obs["wanted"] else np.argmin
    return int(legal[pick(env.RANKS[legal])])


def shortest_path(env: envs.ColouredPads, obs: Any) -> int:
    """From the observation alone."""
    pad = np.argwhere(obs["picture"][:, :, 2 * obs["colour"]])[0]
    row, column = pad - (obs["position"] * 2 + 2).round().astype(int)
    return (1 if row > 0 else 0) if row else (3 if column > 0 else 2)


ORACLES: dict[str, tuple[Oracle, float]] = {
    "MaskedRanks-v0": (best_rank, 10),
    "Dials-v0": (lambda env, obs: (obs + np.arange(4)) % [3, 4, 5, 6], 10),
    "ParityBits-v0": (lambda env, obs: obs if sum(obs) % 2 == 0 else 1 - obs, 10),
    "ColouredPads-v0": (shortest_path, 1),
}


def played(name: str, choose: Oracle, seed: int) -> tuple[float, list[Any]]:
    """Return and observations of one episode."""
    env = gymnasium.make(name)
    obs, _ = env.reset(seed=seed)
    total, seen, ended = 0.0, [obs], False
    while not ended:
        obs, reward, terminated, truncated, _ = env.step(choose(env.unwrapped, obs))
        total, ended = total + float(reward), terminated or truncated
        seen.append(obs)
    return total, seen


@pytest.mark.parametrize("name", ORACLES)
def test_oracle_gets_the_optimum_in_every_episode(name: str) -> None:
    oracle, optimum = ORACLES[name]
    assert [played(name, oracle, seed)[0] for seed in range(50)] == pytest.approx([optimum] * 50)


@pytest.mark.parametrize("name", ORACLES)
def test_episode_is_determined_by_its_seed(name: str) -> None:
    oracle, _ = ORACLES[name]
    first, again, other = (played(name, oracle, seed)[1] for seed in (7, 7, 8))
    assert str(first) == str(again) != str(other)


def test_cartpole_without_velocities_is_cartpole_for_the_rest() -> None:
    hidden, whole = gymnasium.make("CartPoleNoVel-v0"), gymnasium.make("CartPole-v1")
    seen, full = hidden.reset(seed=3)[0], whole.reset(seed=3)[0]
    for _ in range(5):
        assert np.array_equal(seen, full[[0, 2]])
        seen, full = hidden.step(1)[0], whole.step(1)[0]
    assert hidden.spec is not None and whole.spec is not None
    assert hidden.spec.max_episode_steps == whole.spec.max_episode_steps == 500


# -- translation


def settings(**changes: Any) -> dict[str, Any]:
    data = {"env_id": "A-v0", "env_kwargs": None, "obs_keys": None, "action_mask": None, "num_envs": 4, "horizon": 8}
    model: dict[str, Any] = {
        "actor_hidden_sizes": [64], "critic_hidden_sizes": [32], "activation": "tanh", "shared_torso": False,
        "orthogonal_init": True, "action_bounds": "clip", "log_std": "parameter", "log_std_init": 0.0, "learning_rate": 1e-3,
        "learning_rate_decay": "linear", "adam_epsilon": 1e-5, "gamma": 0.9, "gae_lambda": 0.95, "update_epochs": 4,
        "minibatch_size": 16, "clip_epsilon": 0.2, "clip_decay": "constant", "value_clip": None, "value_coefficient": 0.5,
        "entropy_coefficient": 0.0, "normalize_advantages": "minibatch", "max_grad_norm": 0.5, "target_kl": None,
        "torso": None, "optimizer": None, "lr_scheduler": None, "loss": None, "reward_scale": 1.0, "memory": None,
        "normalize_observations": False, "normalize_rewards": False,
    }  # fmt: skip
    for key, value in changes.items():
        (data if key in data else model)[key] = value
    return {"total_env_steps": 64, "data": data, "model": model}


def test_value_coefficient_loses_the_half_that_our_value_loss_has_inside() -> None:
    assert to_sb3(settings(value_coefficient=0.5))["ppo"]["vf_coef"] == 0.25


def test_value_clip_is_the_clip_range_of_the_value_function() -> None:
    assert to_sb3(settings(value_clip=0.2))["ppo"]["clip_range_vf"] == 0.2
    assert to_sb3(settings())["ppo"]["clip_range_vf"] is None


def test_observation_without_parts_is_normalised_by_its_path() -> None:
    assert to_sb3(settings(normalize_observations=[""]))["normalize"] == {"norm_obs": True, "norm_reward": False}


def test_state_dependent_exploration_is_theirs_and_without_steps_it_is_that_of_a_rollout() -> None:
    explored = [to_sb3(settings(gsde=True, gsde_steps=steps))["ppo"] for steps in (4, None)]
    assert [(ppo["use_sde"], ppo["sde_sample_freq"]) for ppo in explored] == [(True, 4), (True, -1)]
    assert "use_sde" not in to_sb3(settings())["ppo"]


def test_masked_run_has_the_masked_peer() -> None:
    translated = to_sb3(settings(action_mask="obs:mask"))
    assert (translated["algorithm"], translated["env"]["mask_key"]) == ("MaskablePPO", "mask")


@pytest.mark.parametrize(
    "change",
    [{"target_kl": 0.1}, {"normalize_advantages": "rollout"}, {"minibatch_size": 15}, {"memory": "gru"}],
    ids=str,
)
def test_setting_without_counterpart_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(NoCounterpart, match=f"model.{next(iter(change))}"):
        to_sb3(settings(**change))


@pytest.mark.parametrize("row", [row for row in ROWS if row.sb3_seeds], ids=lambda row: row.name)
def test_row_that_is_compared_with_sb3_has_its_settings_there(row: Row) -> None:
    translated = sb3_settings(row)
    assert translated["env_steps"] == row.env_steps
