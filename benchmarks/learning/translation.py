"""Our settings in Stable-Baselines3's terms, as plain data for the process that runs it.

Where the two differ: our value loss has the 1/2 inside, so `value_coefficient` c is their `vf_coef` c/2. Our schedules take the
env steps before a rollout, theirs those after it, so theirs are shifted by one rollout (`peer._schedule`). Our clipped value
loss is the worse of the clipped and the unclipped prediction, theirs that of the clipped one.
"""

from collections.abc import Mapping
from typing import Any, Final

from lit_ppo.optimization import ADAM_EPSILON, LEARNING_RATE

Settings = Mapping[str, Any]
# what SB3 has no counterpart for, and the values with which ours does nothing different
_WITHOUT_COUNTERPART: Final[Settings] = {
    "target_kl": None,
    "log_std": "parameter",
    "action_bounds": "clip",
    "torso": None,
    "optimizer": None,
    "lr_scheduler": None,
    "loss": None,
    "reward_scale": 1.0,
}


class NoCounterpart(Exception):
    """A setting that Stable-Baselines3 does not have."""


def to_sb3(settings: Settings) -> dict[str, Any]:
    """The settings of a run, complete as in a row or printed by `fit --print_config`, for `peer.py`.

    Raises:
        NoCounterpart: Stable-Baselines3 cannot run with them.
    """
    data, model = settings["data"], settings["model"]
    for name, neutral in _WITHOUT_COUNTERPART.items():
        if model.get(name, neutral) != neutral:
            raise NoCounterpart(f"model.{name}={model[name]}: Stable-Baselines3 has no such setting")
    if model["normalize_advantages"] == "rollout":
        raise NoCounterpart("model.normalize_advantages=rollout: Stable-Baselines3 normalises over minibatches or not at all")
    if data["num_envs"] * data["horizon"] % model["minibatch_size"]:
        raise NoCounterpart("model.minibatch_size: Stable-Baselines3 splits a rollout otherwise if it has no equal parts")
    is_masked, memory = data["action_mask"] is not None, model["memory"] is not None
    exploration = {"use_sde": True, "sde_sample_freq": model["gsde_steps"] or -1} if model.get("gsde") else {}
    if model["memory"] == "gru":
        raise NoCounterpart("model.memory=gru: sb3-contrib has LSTMs only")
    if data.get("frame_stack") is not None:
        raise NoCounterpart("data.frame_stack: the peers' environments do not stack; use a wrapper")
    if model["normalize_observations"] not in (True, False, [""]):  # "" is the path of an observation without parts
        raise NoCounterpart("model.normalize_observations: Stable-Baselines3 normalises all of an observation or nothing")
    return {
        "algorithm": "MaskablePPO" if is_masked else "RecurrentPPO" if memory else "PPO",
        "total_env_steps": settings["total_env_steps"],
        "env_steps": settings["total_env_steps"],
        "env": {
            "env_id": data["env_id"],
            "env_kwargs": data["env_kwargs"] or {},
            "wrappers": data.get("wrappers") or [],
            # its buffer keeps normalised observations in the type of the environment: of bytes only whole numbers are left
            "casts_to_float": model["normalize_observations"] == [""],
            "max_episode_steps": data.get("max_episode_steps"),
            "obs_keys": data["obs_keys"],
            "mask_key": data["action_mask"].partition(":")[2] if is_masked else None,
            "num_envs": data["num_envs"],
        },
        "ppo": {
            "n_steps": data["horizon"],
            "batch_size": model["minibatch_size"],
            "n_epochs": model["update_epochs"],
            "gamma": model["gamma"],
            "gae_lambda": model["gae_lambda"],
            "ent_coef": model["entropy_coefficient"],
            "vf_coef": 0.5 * model["value_coefficient"],
            "clip_range_vf": model["value_clip"],
            "max_grad_norm": 1e9 if model["max_grad_norm"] is None else model["max_grad_norm"],
            "normalize_advantage": model["normalize_advantages"] == "minibatch",
            **exploration,
        },
        "normalize": {
            "norm_obs": bool(model["normalize_observations"]),
            "norm_reward": model["normalize_rewards"],
        },
        "lstm": {"lstm_hidden_size": model["memory_size"]} if memory else {},
        "schedules": {
            "learning_rate": [model["learning_rate"] or LEARNING_RATE, model["learning_rate_decay"] or "linear"],
            "clip_range": [model["clip_epsilon"], model["clip_decay"]],
        },
        "policy": {
            "net_arch": {"pi": model["actor_hidden_sizes"], "vf": model["critic_hidden_sizes"]},
            "activation": model["activation"],
            "ortho_init": model["orthogonal_init"],
            "share_features_extractor": model["shared_torso"],
            "log_std_init": model["log_std_init"],
            "adam_epsilon": model["adam_epsilon"] or ADAM_EPSILON,
        },
    }
