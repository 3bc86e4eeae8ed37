"""Stable-Baselines3 or sb3-contrib in a process and a venv of its own: a task as JSON comes in, the record of its run goes out.

Trains for the env steps that are asked for, evaluates as `lit_ppo fit` does (greedy episodes before the first update and at
equal distances after it; of equal policies the later counts as better), and judges the best and the last policy on episodes of
their own. The record has the form of `benchmarks.learning.run_record`.
"""

import copy
import importlib
import json
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any, Final, NamedTuple

import gymnasium
import numpy as np
import torch
from gymnasium.wrappers import DtypeObservation, FilterObservation
from numpy.typing import NDArray
from sb3_contrib import MaskablePPO, RecurrentPPO
from stable_baselines3 import PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize
from torch import Tensor, nn

from benchmarks.report import machine, versions
from lit_ppo.atomic_file import write_json
from lit_ppo.bridge.atari import atari
from lit_ppo.bridge.settings import package_of
from lit_ppo.run_statistics import thinned

Settings = dict[str, Any]
_ALGORITHMS: Final[dict[str, Any]] = {"PPO": PPO, "MaskablePPO": MaskablePPO, "RecurrentPPO": RecurrentPPO}
_ACTIVATIONS: Final = {"tanh": nn.Tanh, "relu": nn.ReLU, "elu": nn.ELU, "silu": nn.SiLU, "gelu": nn.GELU}
_PLAYED_AT_A_TIME: Final = 50
_EVALUATION_SEEDS: Final = 1 << 20  # the first of them; training has those from the run's seed on
_JUDGING_SEEDS: Final = 1 << 24
_LAST_EPISODES: Final = 100  # whose mean is the final training return


class SmallImages(BaseFeaturesExtractor):
    """lit_ppo's features of a Dict with images smaller than 36 x 36, for which SB3's own network is too large.

    Args:
        observation_space: A Dict; SB3 has scaled its images, put their channels first and made one-hot codes of its choices.
    """

    def __init__(self, observation_space: gymnasium.spaces.Dict) -> None:
        encoders: dict[str, nn.Module] = {}
        num_features = 0
        for key, space in observation_space.spaces.items():
            if is_image_space(space):
                encoders[key], num_outputs = self._image(*space.shape), 128
            else:
                encoders[key], num_outputs = nn.Flatten(), gymnasium.spaces.flatdim(space)
            num_features += num_outputs
        super().__init__(observation_space, num_features)
        self.encoders = nn.ModuleDict(encoders)

    @staticmethod
    def _image(channels: int, height: int, width: int) -> nn.Module:
        convs = [nn.Conv2d(channels, 16, 3, 1, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU()]
        convs += [nn.Conv2d(32, 64, 3, 2, 1), nn.ReLU(), nn.Flatten()]
        with torch.no_grad():
            num_inputs = nn.Sequential(*convs)(torch.zeros(1, channels, height, width)).shape[1]
        return nn.Sequential(*convs, nn.Linear(num_inputs, 128), nn.ReLU())

    def forward(self, obs: dict[str, Tensor]) -> Tensor:
        return torch.cat([encoder(obs[key]) for key, encoder in self.encoders.items()], dim=1)


def make_env(settings: Settings, is_training: bool) -> gymnasium.Env[Any, Any]:
    """One environment, with the parts of its observation that the policy sees, and a monitor outside."""
    if (package := package_of(settings["env_id"])) is not None:
        importlib.import_module(package)
    limit = {} if settings["max_episode_steps"] is None else {"max_episode_steps": settings["max_episode_steps"]}
    env = gymnasium.make(settings["env_id"], **settings["env_kwargs"], **limit)
    for wrapper in settings["wrappers"]:
        module, _, name = wrapper.rpartition(".")
        # the preprocessing of both sides is the same code
        env = atari(env, is_training) if wrapper == "atari" else getattr(importlib.import_module(module), name)(env)
    if isinstance(env.observation_space, gymnasium.spaces.Dict):
        keys = settings["obs_keys"] or list(env.observation_space.spaces)
        env = FilterObservation(env, [key for key in keys if key != settings["mask_key"]])
    if settings["casts_to_float"]:
        env = DtypeObservation(env, np.float32)
    return Monitor(env)


class Player:
    """Plays greedy episodes, each from a seed of its own.

    Args:
        settings: Of the environments.
    """

    def __init__(self, settings: Settings) -> None:
        self._envs = [make_env(settings, is_training=False) for _ in range(_PLAYED_AT_A_TIME)]
        self._is_masked = settings["mask_key"] is not None

    def returns(self, model: BaseAlgorithm, seeds: Sequence[int]) -> NDArray[np.float64]:
        """The return of one episode from each seed."""
        batches = [seeds[begin : begin + len(self._envs)] for begin in range(0, len(seeds), len(self._envs))]
        return np.concatenate([self._play(model, batch) for batch in batches])

    def _play(self, model: BaseAlgorithm, seeds: Sequence[int]) -> NDArray[np.float64]:
        """One episode in each environment; one that has ended is not stepped, and keeps its last observation."""
        envs = self._envs[: len(seeds)]
        obs = [env.reset(seed=seed)[0] for env, seed in zip(envs, seeds, strict=True)]
        returns, playing, memory = np.zeros(len(seeds)), np.ones(len(seeds), np.bool_), None
        starts = playing.copy()
        while playing.any():
            state: dict[str, Any] = {"state": memory, "episode_start": starts} if isinstance(model, RecurrentPPO) else {}
            if self._is_masked:
                state["action_masks"] = np.stack([env.get_wrapper_attr("action_masks")() for env in envs])
            actions, memory = model.predict(self._seen(model, obs), deterministic=True, **state)
            starts = np.zeros_like(starts)
            for row in np.flatnonzero(playing):
                obs[row], reward, terminated, truncated, _ = envs[row].step(actions[row])
                returns[row] += float(reward)
                playing[row] = not (terminated or truncated)
        return returns

    @staticmethod
    def _seen(model: BaseAlgorithm, obs: list[Any]) -> Any:
        """Observations side by side, normalised as in training."""
        stacked = {key: np.stack([one[key] for one in obs]) for key in obs[0]} if isinstance(obs[0], dict) else np.stack(obs)
        statistics = model.get_vec_normalize_env()
        return stacked if statistics is None else statistics.normalize_obs(stacked)


class Kept(NamedTuple):
    """A copy of a policy."""

    parameters: dict[str, Any]
    obs_statistics: Any  # of VecNormalize

    @classmethod
    def of(cls, model: BaseAlgorithm) -> "Kept":
        normalize = model.get_vec_normalize_env()
        return copy.deepcopy(cls(model.policy.state_dict(), None if normalize is None else normalize.obs_rms))

    def restore(self, model: BaseAlgorithm) -> None:
        """Make it the model's policy."""
        model.policy.load_state_dict(self.parameters)
        if (normalize := model.get_vec_normalize_env()) is not None:
            normalize.obs_rms = self.obs_statistics


class Watch(BaseCallback):
    """Greedy episodes at equal distances, a copy of the best policy so far, and the returns of the training episodes.

    Args:
        player: Plays the greedy episodes.
        every_env_steps: Env steps between evaluations.
        num_episodes: Episodes of each.
    """

    def __init__(self, player: Player, every_env_steps: int, num_episodes: int) -> None:
        super().__init__()
        self._player, self._every_env_steps, self._num_episodes = player, every_env_steps, num_episodes
        self._next_at, self._next_seed = 0, _EVALUATION_SEEDS
        self.updates = -1
        self.best: tuple[float, int, Kept] | None = None  # mean return, env steps, policy
        self.greedy: list[tuple[int, float]] = []  # env steps, mean return
        self.training: list[tuple[int, float]] = []  # env steps, return of one episode

    def _on_step(self) -> bool:
        """Keep what the monitors say of episodes that have ended."""
        ended = [info["episode"]["r"] for info in self.locals["infos"] if "episode" in info]
        self.training += [(self.num_timesteps, float(value)) for value in ended]
        return True

    def _on_rollout_start(self) -> None:
        """The update before, if there was one, is over."""
        self._evaluate()

    def _on_training_end(self) -> None:
        self._evaluate()

    def _evaluate(self) -> None:
        self.updates += 1
        if self.num_timesteps < self._next_at:
            return
        self._next_at = (self.num_timesteps // self._every_env_steps + 1) * self._every_env_steps
        seeds = range(self._next_seed, self._next_seed + self._num_episodes)
        self._next_seed = seeds.stop
        mean = float(self._player.returns(self.model, seeds).mean())
        self.greedy.append((self.num_timesteps, mean))
        if self.best is None or mean >= self.best[0]:
            self.best = mean, self.num_timesteps, Kept.of(self.model)


def _schedule(start: float, decay: str, settings: Settings) -> Callable[[float], float]:
    """A schedule of SB3, called with the share of the run that remains after a rollout; ours take the env steps before it."""
    if decay == "constant":
        return lambda remaining: start
    env_steps, total = settings["env_steps"], settings["total_env_steps"]
    rollout = settings["ppo"]["n_steps"] * settings["env"]["num_envs"]
    return lambda remaining: start * min(1.0, max(0.0, 1 - ((1 - remaining) * env_steps - rollout) / total))


def make_model(settings: Settings, seed: int) -> BaseAlgorithm:
    """An untrained model on its training environments."""
    envs: VecEnv = DummyVecEnv([lambda: make_env(settings["env"], is_training=True)] * settings["env"]["num_envs"])
    envs.seed(seed)
    if any(settings["normalize"].values()):
        envs = VecNormalize(envs, gamma=settings["ppo"]["gamma"], **settings["normalize"])
    policy = dict(settings["policy"])
    policy["activation_fn"] = _ACTIVATIONS[policy.pop("activation")]
    policy["optimizer_kwargs"] = {"eps": policy.pop("adam_epsilon")}
    if not isinstance(envs.action_space, gymnasium.spaces.Box):
        del policy["log_std_init"]
    is_dict = isinstance(envs.observation_space, gymnasium.spaces.Dict)
    if is_dict:
        policy["features_extractor_class"] = SmallImages
    schedules = {name: _schedule(*schedule, settings) for name, schedule in settings["schedules"].items()}
    algorithm = _ALGORITHMS[settings["algorithm"]]
    kind = "MultiInput" if is_dict else "Cnn" if is_image_space(envs.observation_space) else "Mlp"
    name = kind + ("LstmPolicy" if algorithm is RecurrentPPO else "Policy")
    policy |= settings["lstm"]
    return algorithm(name, envs, **settings["ppo"], **schedules, policy_kwargs=policy, seed=seed, device="cpu")  # type: ignore[no-any-return]


def main() -> None:
    """Arguments: the task's file, and the file for the record."""
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    task = json.loads(Path(sys.argv[1]).read_text())
    settings, seed, episodes = task["settings"], task["seed"], task["num_episodes"]
    player = Player(settings["env"])
    model, watch = make_model(settings, seed), Watch(player, **settings["evaluation"])
    start = perf_counter()
    model.learn(settings["env_steps"], callback=watch)
    wall_s = perf_counter() - start
    judging = range(_JUDGING_SEEDS + 10_000 * seed, _JUDGING_SEEDS + 10_000 * seed + episodes)
    last = player.returns(model, judging)
    assert watch.best is not None
    best_at, kept = watch.best[1:]
    kept.restore(model)
    best = player.returns(model, judging)
    final = [value for _, value in watch.training[-_LAST_EPISODES:]]
    used = machine()
    record = {
        "algorithm": settings["algorithm"],
        "settings": settings,
        "env_steps": model.num_timesteps,
        "updates": watch.updates,
        "wall_s": round(wall_s, 1),
        "training": _curve(watch.training),
        "greedy": _curve(watch.greedy),
        "final_training": {"mean": float(np.mean(final)), "episodes": len(final)} if final else None,
        "final_greedy": _summary(last),
        "best_greedy": _summary(best) | {"env_steps": best_at},
        "versions": versions(),
        "cpu": f"{used['cpu']}, {used['cores']} cores",
    }
    write_json(Path(sys.argv[2]), record)


def _curve(points: list[tuple[int, float]]) -> dict[str, list[float]]:
    steps, returns = thinned([step for step, _ in points], [value for _, value in points], [1] * len(points))
    return {"env_steps": list(steps), "returns": [round(value, 4) for value in returns]}


def _summary(returns: NDArray[np.float64]) -> dict[str, float]:
    return {"mean": round(float(returns.mean()), 4), "std": round(float(returns.std()), 4), "episodes": len(returns)}


if __name__ == "__main__":
    main()
