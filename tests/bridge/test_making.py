"""How environments are made: ids, factories and wrappers, and whose fault it is when that fails."""

import functools
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from lit_ppo import exit_codes
from lit_ppo.bridge.client import EnvBridge
from lit_ppo.bridge.command import worker_command
from lit_ppo.bridge.frame_stack import FrameStack
from lit_ppo.bridge.hosts import NativeHost, SyncHost
from lit_ppo.bridge.making import EnvironmentMaker
from lit_ppo.bridge.settings import BridgeSettings, EnvironmentSettings
from lit_ppo.data import RolloutDataModule
from lit_ppo.errors import ConfigError, EnvironmentRaised
from tests.patience import patient
from tests.toy_envs import EPISODE_STEPS, IdentityEnv

IDENTITY, CONSTANT, TOYS = "tests.toy_envs:Identity-v0", "tests.toy_envs:ConstantReward-v0", "tests.toy_wrappers"
ROOT = Path(__file__).parents[2]


def made(env_id: str = CONSTANT, env_kwargs: dict[str, Any] | None = None, **settings: Any) -> gymnasium.Env[Any, Any]:
    return EnvironmentMaker(EnvironmentSettings(env_id, env_kwargs, **settings)).make(0)


def episode(env: gymnasium.Env[Any, Any]) -> list[float]:
    """Rewards of an episode of action 0, of at most 50 steps."""
    env.reset(seed=1)
    rewards = []
    for _ in range(50):
        _, reward, terminated, truncated, _ = env.step(0)
        rewards.append(float(reward))
        if terminated or truncated:
            break
    return rewards


def test_wrappers_are_applied_in_their_order_with_their_arguments_and_know_what_they_are_for() -> None:
    scale = {"class_path": f"{TOYS}.Scale", "init_args": {"factor": 3.0}}
    repeat = f"{TOYS}.Repeat"
    assert episode(made(wrappers=[scale, repeat])) == [1.0 * 3 + 1] * (EPISODE_STEPS // 2)
    assert episode(made(wrappers=[repeat, scale])) == [(1.0 + 1) * 3] * (EPISODE_STEPS // 2)
    assert episode(made(wrappers=[repeat, scale], is_training=False)) == [1.0 * 3] * (EPISODE_STEPS // 2)


def test_list_is_a_tuple_to_a_wrapper_that_asks_for_one() -> None:
    reshape = {"class_path": "gymnasium.wrappers.ReshapeObservation", "init_args": {"shape": [3, 1]}}
    with pytest.raises((AssertionError, TypeError)):
        gymnasium.wrappers.ReshapeObservation(IdentityEnv(), [3, 1])  # type: ignore[arg-type]
    assert made(IDENTITY, wrappers=[reshape]).observation_space.shape == (3, 1)
    assert reshape["init_args"] == {"shape": [3, 1]}  # as it is saved


def test_time_limit_replaces_that_of_the_id_and_counts_the_steps_of_the_agent() -> None:
    repeat = [f"{TOYS}.Repeat"]
    for wrappers, limit, steps in ((None, None, 10), (None, 12, 12), (repeat, None, 5), (repeat, 7, 7), (repeat, 3, 3)):
        settings = EnvironmentSettings(CONSTANT, wrappers=wrappers, max_episode_steps=limit)  # type: ignore[arg-type]
        host = SyncHost(settings, 1)
        assert len(episode(host.envs[0])) == steps
        assert host.spec.max_episode_steps == (limit or EPISODE_STEPS)
    native = NativeHost(EnvironmentSettings("CartPole-v1", max_episode_steps=7), 2)
    assert native.spec.max_episode_steps == 7


@pytest.mark.parametrize("env_id", [f"{TOYS}:identity", f"{TOYS}:IdentityEnv"])
def test_function_or_class_of_a_module_makes_an_environment_without_limit_and_threshold(env_id: str) -> None:
    host = SyncHost(EnvironmentSettings(env_id), 2)
    assert (host.spec.reward_threshold, host.spec.max_episode_steps) == (None, None)
    assert isinstance(host.envs[1], IdentityEnv) and host.envs[0] is not host.envs[1]


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a misspelt id": (
        {"env_id": "CartPol-v1"},
        "env_id=CartPol-v1: Environment `CartPol` doesn't exist. Did you mean: `CartPole`?",
    ),
    "no version": (
        {"env_id": "CartPole"},
        "env_id=CartPole: No registered env with id: CartPole. Did you mean: `CartPole-v1`?",
    ),
    "an id of nowhere": ({"env_id": "Xyzzyqwk-v0"}, "If a package registers it, name its module as well: env_id=module:EnvId"),
    "no module": ({"env_id": "nowhere:X-v0"}, "env_id=nowhere:X-v0: there is no module nowhere in "),
    "an id that its module does not register": (
        {"env_id": "json:Xyzzyqwk-v0"},
        f". json is there, but registers no such id with Gymnasium {gymnasium.__version__}",
    ),
    "no such name in a module": ({"env_id": f"{TOYS}:Identty-v0"}, "Did you mean: `Identity`?"),
    "a factory of nothing": ({"env_id": f"{TOYS}:nothing"}, "expected it to return a gymnasium.Env, got builtins.NoneType"),
    "a vector environment": (
        {"env_id": "gymnasium.envs.classic_control.cartpole:CartPoleVectorEnv"},
        "got gymnasium.envs.classic_control.cartpole.CartPoleVectorEnv; name what makes one environment: lit_ppo steps",
    ),
    "an unknown argument": (
        {"env_kwargs": {"level": 3}},
        "env_kwargs={'level': 3}: ConstantRewardEnv.__init__() got an unexpected keyword argument 'level'",
    ),
    "an unknown argument of a factory": (
        {"env_id": f"{TOYS}:identity", "env_kwargs": {"row": 3}},
        "env_kwargs={'row': 3}: IdentityEnv.__init__() got an unexpected keyword argument 'row'",
    ),
    "an unknown argument that is passed on": (
        {"env_id": f"{TOYS}:Forwarding", "env_kwargs": {"level": 3}},
        "env_kwargs={'level': 3}: ConstantRewardEnv.__init__() got an unexpected keyword argument 'level'",
    ),
    "a missing argument": (
        {"env_id": "tests.toy_envs:Verbatim-v0"},
        "missing 2 required positional arguments: 'digits' and 'word'",
    ),
    "a short name": (
        {"wrappers": ["atary"]},
        "wrappers: expected an import path such as my_package.MyWrapper, or one of atari, got",
    ),
    "a misspelt wrapper": (
        {"wrappers": [f"{TOYS}.Scal"]},
        f"wrappers: {TOYS}.Scal: there is no class or function Scal in {TOYS} (did you mean {TOYS}.Scale?)",
    ),
    "a wrapper of no module": (
        {"wrappers": ["nowhere.Scale"]},
        "; name its directory in env_path",
    ),
    "an argument that a wrapper lacks": (
        {"wrappers": [{"class_path": f"{TOYS}.Scale", "init_args": {"by": 3}}]},
        f"wrappers: {TOYS}.Scale: Scale.__init__() got an unexpected keyword argument 'by'",
    ),
    "a wrapper that is none": (
        {"wrappers": ["builtins.repr"]},
        "wrappers: builtins.repr: expected it to return a gymnasium.Env",
    ),
    "a package that is missing": (
        {"env_id": f"{TOYS}:lacking"},
        f"{sys.executable} has no package no_such_package; run: {sys.executable} -m pip install 'no_such_package', or name the "
        "directory of your own module in env_path",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_fault_of_a_setting_is_one_line(what: str) -> None:
    settings, message = REFUSED[what]
    with pytest.raises(ValueError) as refused:
        made(**settings)
    assert message in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("env_id", "env_kwargs"), [(f"{TOYS}:Broken", {"level": 3}), (f"{TOYS}:BrokenForwarding", {"reward": 2.0})]
)
def test_error_of_the_environments_own_code_stays_its_own(env_id: str, env_kwargs: dict[str, Any]) -> None:
    with pytest.raises(EnvironmentRaised, match=r"_takes_nothing\(\) got an unexpected keyword argument 'level'"):
        made(env_id, env_kwargs)


@pytest.mark.parametrize(
    ("env_id", "package", "extra"),
    [
        ("LunarLander-v3", "Box2D", "box2d"),
        ("Ant-v5", "mujoco", "mujoco"),
        ("ALE/Pong-v5", "ale_py", "atari"),
        ("MiniGrid-Empty-5x5-v0", "minigrid", "minigrid"),
        ("minigrid:MiniGrid-Empty-5x5-v0", "minigrid", "minigrid"),
        ("highway-v0", "highway_env", "highway"),
    ],
)
def test_missing_extra_is_named_with_interpreter_and_command(
    env_id: str, package: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in list(sys.modules):
        if name.startswith((package, f"gymnasium.envs.{extra}")):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)  # importing it raises ModuleNotFoundError
    with pytest.raises(ValueError) as refused:
        made(env_id)
    install = f"{sys.executable} -m pip install 'lit_ppo[{extra}]'"
    assert str(refused.value) == f"env_id={env_id}: {sys.executable} has no package {package}; run: {install}"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"env_kwargs": [1]}, "data.env_kwargs=[1]: expected a mapping or null"),
        ({"env_kwargs": {"x": object}}, "data.env_kwargs: expected plain data that JSON can hold: "),
        ({"wrappers": "atari"}, "data.wrappers='atari': expected a list or null"),
        (
            {"wrappers": [{"class": "x"}]},
            "data.wrappers: expected import paths, or mappings with class_path and init_args, got",
        ),
        ({"wrappers": [IdentityEnv]}, "data.wrappers: expected plain data that JSON can hold: "),
        ({"max_episode_steps": 0}, "data.max_episode_steps=0: expected at least 1"),
        ({"frame_stack": True}, "data.frame_stack=True: expected an integer or null"),
        ({"env_path": ["/no/where"]}, "data.env_path=/no/where: expected a directory"),
        ({"remake_each_episode": "yes"}, "data.remake_each_episode='yes': expected true or false"),
        ({"env_id": IdentityEnv}, "write env_id=tests.toy_envs:IdentityEnv"),
        ({"env_id": lambda: 1}, "expected text, since environments are made in another process; write env_id=my_env:make, a"),
        ({"env_id": IdentityEnv()}, "write env_id=my_env:make, a function of a file my_env.py that returns the environment"),
    ],
)
def test_setting_that_cannot_be_is_refused_before_anything_starts(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        RolloutDataModule(**{"env_id": CONSTANT, **settings})
    assert message in str(refused.value) and "\n" not in str(refused.value)


def test_environment_that_is_registered_in_the_trainer_only_is_told_where_to_go(monkeypatch: pytest.MonkeyPatch) -> None:
    cell = {"__name__": "__main__", "IdentityEnv": IdentityEnv}  # of a notebook
    exec("class Here(IdentityEnv): pass\nfactory = lambda: Here()", cell)
    entries = {
        "Here-v0": cell["Here"],
        "Lambda-v0": cell["factory"],
        "Path-v0": "__main__:Here",
        "There-v0": IdentityEnv,
        "Partial-v0": functools.partial(IdentityEnv),
    }
    for env_id, entry in entries.items():
        monkeypatch.setitem(gymnasium.registry, env_id, gymnasium.envs.registration.EnvSpec(env_id, entry))
    expected = {
        **{env_id: f"my_env:{env_id}" for env_id in ("Here-v0", "Lambda-v0", "Path-v0")},
        **{env_id: f"tests.toy_envs:{env_id}" for env_id in ("There-v0", "Partial-v0")},
        "__main__:Here-v0": "my_env:Here-v0",
        "__main__:factory": "my_env:factory",
    }
    for env_id, written in expected.items():
        hint = f"data.env_id={env_id}: .* write env_id={written}"
        with pytest.raises(ConfigError, match=hint):
            EnvBridge(env_id, 1, lambda env, number: number)
    EnvironmentSettings("CartPole-v1").require_known_elsewhere()


def test_native_environments_take_no_wrappers() -> None:
    refused = {"wrappers": [], "frame_stack": 2, "obs_keys": ["a"], "action_mask": "info:a", "remake_each_episode": True}
    for name, value in refused.items():
        with pytest.raises(ValueError, match=f"vectorization=native: {name} needs vectorization=sync"):
            NativeHost(EnvironmentSettings("CartPole-v1", **{name: value}), 2)  # type: ignore[arg-type]


# -- frame stacking


class Counting(gymnasium.Env[Any, Any]):
    """Observations of a space, filled with the number of the step, in the same arrays every time."""

    def __init__(self, space: gymnasium.Space[Any]) -> None:
        self.observation_space, self.action_space = space, spaces.Discrete(2)
        self.arrays: dict[int, np.ndarray] = {}

    def filled(self, space: gymnasium.Space[Any]) -> Any:
        if isinstance(space, spaces.Dict):
            return {name: self.filled(part) for name, part in space.items()}
        if isinstance(space, spaces.Tuple):
            return tuple(self.filled(part) for part in space)
        if isinstance(space, spaces.Discrete):
            return np.int64(self.steps)
        if isinstance(space, spaces.Text):
            return str(self.steps)
        array = self.arrays.setdefault(id(space), np.empty(space.shape or (), space.dtype))
        array[...] = self.steps
        return array

    def reset(self, **kwargs: Any) -> Any:
        self.steps = 1
        return self.filled(self.observation_space), {}

    def step(self, action: Any) -> Any:
        self.steps += 1
        return self.filled(self.observation_space), 0.0, False, False, {}


BYTES: dict[str, Any] = {"low": 0, "high": 255, "dtype": np.uint8}
STACKED: dict[
    str, tuple[gymnasium.Space[Any], tuple[int, ...], int]
] = {  # space, shape of 3 of them, and the axis of the steps
    "vector": (spaces.Box(-9, 9, (2,)), (6,), -1),
    "number": (spaces.Box(-9, 9, ()), (3,), -1),
    "bytes": (spaces.Box(shape=(2,), **BYTES), (6,), -1),
    "table": (spaces.Box(-9, 9, (4, 5)), (4, 15), -1),
    "grey image": (spaces.Box(shape=(8, 9), **BYTES), (8, 9, 3), -1),
    "image": (spaces.Box(shape=(8, 9, 2), **BYTES), (8, 9, 6), -1),
    "channels first": (spaces.Box(shape=(2, 8, 9), **BYTES), (6, 8, 9), 0),
    "discrete": (spaces.Discrete(7, start=1), (3,), -1),
    "multi_discrete": (spaces.MultiDiscrete([7, 8]), (6,), -1),
    "multi_binary": (spaces.MultiBinary(2), (6,), -1),
}


@pytest.mark.parametrize("kind", STACKED)
def test_stacked_observations_stay_of_their_kind_from_the_oldest_to_the_newest(kind: str) -> None:
    space, shape, axis = STACKED[kind]
    env = FrameStack(Counting(space), 3)
    first, _ = env.reset()
    seen = [first, env.step(0)[0]] if kind == "multi_binary" else [first, *(env.step(0)[0] for _ in range(3))]
    expected = [[1, 1, 1], [1, 1, 2], [1, 2, 3], [2, 3, 4]]
    for obs, numbers in zip(seen, expected, strict=False):
        assert obs.shape == env.observation_space.shape == shape and obs.dtype == env.observation_space.dtype
        assert np.moveaxis(obs, axis, -1).reshape(-1, 3, shape[axis] // 3)[..., 0].tolist() == [numbers] * (
            obs.size // shape[axis]
        )
        assert kind == "multi_binary" or obs in env.observation_space


def test_parts_are_stacked_each_by_its_kind_but_no_mask_and_no_text() -> None:
    parts = {
        "a": spaces.Tuple((spaces.Box(-9, 9, (2,)), spaces.Discrete(7))),
        "mask": spaces.MultiBinary(2),
        "t": spaces.Text(3),
    }
    env = FrameStack(Counting(spaces.Dict(parts)), 2, "obs:mask")
    env.reset()
    obs, *_ = env.step(0)
    assert obs["a"][0].tolist() == [1, 1, 2, 2] and obs["a"][1].tolist() == [1, 2]
    assert obs["mask"].tolist() == [2, 2] and obs["t"] == "2"
    assert env.observation_space["mask"] == parts["mask"] and env.observation_space["t"] == parts["t"]  # type: ignore[index]


# -- what the worker sees

MODULE = """
import os
import gymnasium, numpy as np

class Env(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-1, 1, (1,))
    action_space = gymnasium.spaces.Discrete(2)
    def __init__(self):
        self.spec = gymnasium.envs.registration.EnvSpec("Env-v0", reward_threshold=float(os.environ.get("MY_LEVEL", -1)))
    def reset(self, **kwargs):
        return np.zeros(1, np.float32), {}
    def step(self, action):
        return np.zeros(1, np.float32), 1.0, False, False, {}
"""


def test_directories_and_variables_reach_the_worker_and_no_others_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "module_of_a_user.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MY_LEVEL", "7")
    environment = EnvironmentSettings("module_of_a_user:Env", env_path="elsewhere")
    for names, level in ((None, -1.0), (["MY_LEVEL", "NOT_SET"], 7.0)):
        with EnvBridge(environment, 1, lambda env, number: number, settings=BridgeSettings(worker_env=names)) as bridge:
            assert bridge.spec.reward_threshold == level
    with EnvBridge("module_of_a_user:Env", 1, lambda env, number: number) as bridge, pytest.raises(ConfigError):
        bridge.reset()


ENDING = """
import gymnasium, numpy as np

class Ending(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-1, 1, (1,))
    action_space = gymnasium.spaces.Discrete(2)
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(1, np.float32), {}
    def step(self, action):
        self.steps += 1
        return np.zeros(1, np.float32), 1.0, self.steps == 5, False, {}

gymnasium.register("Ending-v0", Ending)
"""
FACTORY = """
import os
from module_elsewhere import Ending

def make(level):
    assert os.environ["MY_LEVEL"] == level
    return Ending()
"""


def test_installed_script_trains_on_ones_own_module_without_time_limit_and_threshold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "module_elsewhere.py").write_text(ENDING)
    (tmp_path / "module_of_a_user.py").write_text(FACTORY)
    monkeypatch.setenv("MY_LEVEL", "7")

    def script(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(Path(sys.executable).parent / "lit_ppo"), *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    options = ["--data.env_id=module_of_a_user:make", "--data.env_kwargs={level: '7'}", "--data.env_path=elsewhere"]
    options += ["--data.worker_env=[MY_LEVEL]", "--data.num_envs=2", "--data.horizon=16", "--model.minibatch_size=32"]
    options += ["--trainer.max_epochs=1", "--evaluation.num_episodes=2", "--trainer.logger=false"]
    done = script("fit", *options)
    assert done.returncode == 0, done.stderr
    assert "no solve threshold: the environment has none; --solved.threshold=RETURN sets one\n" in done.stdout
    checked = script("check-env", "module_elsewhere:Ending-v0", "--env_path=elsewhere", "--steps=20")
    assert checked.returncode == 0, checked.stderr
    assert re.search(r"^threshold +none\ntime limit +none$", checked.stdout, re.MULTILINE)
    refused = script("check-env", "module_of_a_user:make", "--env_kwargs={level: '7'}")
    assert refused.returncode == exit_codes.USAGE and refused.stderr.count("\n") == 1
    assert "has no package module_elsewhere; run: " in refused.stderr
    assert refused.stderr.endswith(", or name the directory of your own module in env_path\n")


IDS = {
    "ALE/Pong-v5": "ale_py",
    "MiniGrid-Empty-5x5-v0": "minigrid",
    "BabyAI-GoToRedBall-v0": "minigrid",
    "highway-v0": "highway_env",
    "highway-fast-v0": "highway_env",
}
WITH_THEIR_PACKAGE = [f"{package}:{env_id}" for env_id, package in IDS.items()] + ["highway_env:merge-v0"]


@pytest.mark.parametrize("env_id", [*IDS, *WITH_THEIR_PACKAGE])
def test_id_of_another_package_is_found_with_and_without_the_name_of_the_package(env_id: str) -> None:
    package, _, name = env_id.rpartition(":")
    package = package or IDS[name]
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    environment = EnvironmentSettings(env_id, obs_keys=["image"] if package == "minigrid" else None)
    with EnvBridge(environment, 1, lambda env, number: number) as bridge:
        bridge.reset()
        bridge.step(np.zeros(1, np.int64))
        assert bridge.spec.env_id == env_id
        assert bridge.spec.reward_threshold is None


@pytest.mark.slow
def test_many_environments_of_6_steps_a_second_are_not_taken_for_one_that_hangs() -> None:
    if importlib.util.find_spec("highway_env") is None:
        pytest.skip("highway_env is not installed")
    settings = BridgeSettings(step_timeout_s=patient(2.0), max_restarts=0, num_workers=1)
    with EnvBridge("highway_env:highway-v0", 24, lambda env, number: 100 * env + number, settings=settings) as bridge:
        bridge.reset()
        for _ in range(3):
            bridge.step(np.ones(24, np.int64))  # 3.6 s of them


def test_checkpoint_without_the_newer_settings_continues_with_their_defaults_only() -> None:
    with EnvBridge(IDENTITY, 1, lambda env, number: number) as bridge:
        bridge.reset()
        bridge.step(np.zeros(1, np.int64))
        state = json.loads(json.dumps(bridge.state_dict()))
    newer = ("wrappers", "max_episode_steps", "frame_stack", "env_kwargs", "env_path", "remake_each_episode", "is_training")
    old = {key: value for key, value in state.items() if key not in newer}
    with EnvBridge(IDENTITY, 1, lambda env, number: number) as bridge:
        bridge.load_state_dict(old)
    stacked = EnvironmentSettings(IDENTITY, frame_stack=2)
    with (
        EnvBridge(stacked, 1, lambda env, number: number) as bridge,
        pytest.raises(ConfigError, match=r"data\.frame_stack=2: the checkpoint holds episodes with frame_stack=None; use that"),
    ):
        bridge.load_state_dict(old)


# -- Atari


def test_atari_preprocessing_clips_and_ends_with_a_life_in_training_only() -> None:
    pytest.importorskip("ale_py", reason="pip install -e '.[atari]'")
    pytest.importorskip("cv2", reason="pip install -e '.[atari]'")
    rewards, lengths, seen = {}, {}, []
    for is_training in (True, True, False):
        env = made("ALE/Breakout-v5", wrappers=["atari"], is_training=is_training)
        obs, _ = env.reset(seed=3)
        assert obs.shape == env.observation_space.shape == (84, 84, 4) and obs.dtype == np.uint8
        game: Any = env.unwrapped
        assert game.ale.lives() == 5 and game.ale.getFloat("repeat_action_probability") == 0.25
        num_fired = 0
        got, observations, actions = [], [obs.tobytes()], np.random.default_rng(0)
        for _ in range(2000):
            before = game.ale.getEpisodeFrameNumber()
            obs, reward, terminated, truncated, _ = env.step(int(actions.integers(4)))
            got.append(float(reward))
            observations.append(obs.tobytes())
            if terminated or truncated:
                break
            frames = game.ale.getEpisodeFrameNumber() - before
            assert frames in (4, 8)  # 8 with the FIRE after a lost life
            num_fired += frames == 8
        assert terminated and (game.ale.lives(), num_fired) == ((4, 0) if is_training else (0, 4))
        rewards[is_training], lengths[is_training] = got, len(got)
        seen.append(observations)
        env.close()
    assert seen[0] == seen[1]  # all follows from seed and actions
    assert lengths[True] < lengths[False] and set(rewards[True]) <= {0.0, 1.0}


def test_atari_rewards_are_signs_in_training_and_points_in_evaluation() -> None:
    pytest.importorskip("ale_py", reason="pip install -e '.[atari]'")
    pytest.importorskip("cv2", reason="pip install -e '.[atari]'")
    rewards = {}
    for is_training in (True, False):
        env = made("ALE/SpaceInvaders-v5", wrappers=["atari"], is_training=is_training)
        env.reset(seed=3)
        rewards[is_training] = [float(env.step(1)[1]) for _ in range(150)]
        env.close()
    assert max(rewards[False]) > 1 and [float(np.sign(reward)) for reward in rewards[False]] == rewards[True]


def test_variables_that_are_let_through_are_part_of_what_a_worker_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_LEVEL", "7")
    (_, without), (command, through) = worker_command(None, {}), worker_command(None, {"env": ["MY_LEVEL"]})
    assert through == without | {"MY_LEVEL": "7"} and "7" not in command[-1]  # the command has names only
    monkeypatch.setenv("MY_LEVEL", "8")
    assert worker_command(None, {"env": ["MY_LEVEL"]}) != (command, through)


CONVENTIONS = {
    "old gym": (
        "import sys, types\nsys.modules.setdefault('gym', types.ModuleType('gym'))\n"
        "Old = type('Old', (), {'__module__': 'gym.core'})\nclass Env(Old): pass",
        "make",
        r"got conventional\.Env; for an environment of the old gym run: pip install 'shimmy\[gym-v26\]'",
    ),
    "registered by a function": (
        "def register_robots(): pass",
        "make",
        r"call conventional\.register_robots\(\) in a module of your own, and name that: env_id=module:Env",
    ),
    "lazily imported": (
        "def __getattr__(name):\n    import nowhere_to_be_found",
        "make",
        r"has no package nowhere_to_be_found; run: .* -m pip install 'nowhere_to_be_found'",
    ),
    "raising when asked for": ("def __getattr__(name): raise SystemExit(0)", "make", "raised in import: SystemExit: 0"),
    "reset without seed": (
        "from tests.toy_envs import IdentityEnv\nclass Env(IdentityEnv):\n    def reset(self): pass",
        "reset",
        r"unexpected keyword argument 'seed'; Gymnasium calls reset\(seed=\.\.\., options=\.\.\.\)",
    ),
    "four values": (
        "import gymnasium\nfrom tests.toy_envs import IdentityEnv\nclass Old(IdentityEnv):\n"
        "    def step(self, action): return super().step(action)[:4]\ndef Env(): return gymnasium.wrappers.TimeLimit(Old(), 9)",
        "step",
        r"Gymnasium's step returns \(obs, reward, terminated, truncated, info\)",
    ),
    "imported in step": (
        "from tests.toy_envs import IdentityEnv\nclass Env(IdentityEnv):\n"
        "    def step(self, action): import nowhere_to_be_found",
        "step",
        r"No module named 'nowhere_to_be_found'; install it for the interpreter that runs the environments",
    ),
}


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_known_conventions_get_their_sentence(convention: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, call, expected = CONVENTIONS[convention]
    (tmp_path / "conventional.py").write_text(f"{source}\n")
    monkeypatch.delitem(sys.modules, "conventional", raising=False)
    monkeypatch.setitem(sys.modules, "gym", sys.modules.get("gym"))  # put back afterwards
    monkeypatch.delitem(sys.modules, "gym")
    environment = EnvironmentSettings("conventional:Env", env_path=[str(tmp_path)])
    settings = BridgeSettings(bridge="inprocess")
    with EnvBridge(environment, 1, lambda env, episode: episode, settings=settings) as bridge:
        if call == "step":
            bridge.reset()
        with pytest.raises((ConfigError, EnvironmentRaised), match=expected) as raised:
            bridge.step(np.zeros(1, np.int64)) if call == "step" else bridge.reset()
    assert call == "make" or raised.value.during == call  # type: ignore[union-attr]


def test_a_factory_that_takes_no_render_mode_is_told_so() -> None:
    with pytest.raises(ValueError, match="unexpected keyword argument 'render_mode'; to be seen or recorded, the environment"):
        made("tests.toy_envs:IdentityEnv", {"render_mode": "rgb_array"})


# -- environment code that makes runs and environments itself

NESTING = """
import os, subprocess, sys
from tests.toy_envs import ConstantRewardEnv

def nested(place):
    with open("starts", "a") as file:
        file.write(place + "\\n")
    if place == {place!r}:
        {code}

class Env(ConstantRewardEnv):
    def __init__(self):
        super().__init__()
        nested("make")
    def reset(self, **named):
        nested("reset")
        return super().reset(**named)
    def step(self, action):
        nested("step")
        return super().step(action)

nested("import")
"""
BRIDGE = "from lit_ppo import EnvBridge; EnvBridge('nesting:Env', 1, lambda env, episode: 0)"
MAKES_A_RUN = {
    "EnvBridge": BRIDGE,
    "RolloutDataModule": "from lit_ppo import RolloutDataModule; RolloutDataModule('nesting:Env')",
    "LitPPOCLI": "from lit_ppo import LitPPOCLI; LitPPOCLI(args=['fit', '--data.env_id=nesting:Env'])",
    "fit": "from lit_ppo.__main__ import main; sys.argv = ['lit_ppo', 'fit', '--data.env_id=nesting:Env']; main()",
}


def played(directory: Path, place: str, code: str, **settings: Any) -> str:
    """An episode of an environment whose code does something in one place; the refusal, and what was printed until then."""
    (directory / "nesting.py").write_text(NESTING.format(place=place, code=code))
    environment = EnvironmentSettings("nesting:Env", env_path=str(directory))
    with EnvBridge(environment, 1, lambda env, episode: 0, settings=BridgeSettings(**settings)) as bridge:
        refusal = ""
        try:
            bridge.reset()
            bridge.step(np.zeros(1, np.int64))
        except ConfigError as error:
            refusal = str(error)
        assert bridge.restarts == 0 and "\n" not in refusal
        return refusal


@pytest.mark.parametrize(
    ("place", "made"),
    [
        *((place, "EnvBridge") for place in ("import", "make", "reset", "step")),
        *(pytest.param("import", made, marks=pytest.mark.slow) for made in ("RolloutDataModule", "LitPPOCLI", "fit")),
    ],
)
def test_run_that_environment_code_makes_is_refused_at_once(place: str, made: str, tmp_path: Path) -> None:
    refusal = played(tmp_path, place, MAKES_A_RUN[made], worker_cwd=str(tmp_path))
    assert refusal.startswith("env_id: ") and "put the run behind `if __name__ == '__main__':`" in refusal
    assert (tmp_path / "starts").read_text().split().count(place) == 1  # and no other process has come so far


def test_process_that_an_environment_starts_makes_no_environments_either(tmp_path: Path) -> None:
    path = {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "lit_ppo", "check-env", "nesting:Env"]
    code = f"subprocess.run({command}, env=os.environ | {path}, stderr=os.open('said', os.O_CREAT | os.O_WRONLY))"
    assert played(tmp_path, "make", code, worker_cwd=str(tmp_path)) == ""
    assert (tmp_path / "said").read_text().startswith("lit_ppo: error: env_id: EnvBridge in an environment process")


def test_environment_in_the_process_of_the_run_may_make_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code = BRIDGE.replace("nesting:Env", CONSTANT)
    assert played(tmp_path, "make", f"{code}.close()", bridge="inprocess") == ""
