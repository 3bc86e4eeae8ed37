"""What the settings of the sandbox allow, and which of them are refused."""

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Final

import pytest

import lit_ppo
from lit_ppo.bridge import landlock
from lit_ppo.bridge.client import EnvBridge
from lit_ppo.bridge.settings import BridgeSettings, EnvironmentSettings
from lit_ppo.errors import ConfigError, EnvironmentRaised

ROOT: Final = Path(__file__).parents[2]
READER = """
from gymnasium.envs.classic_control import CartPoleEnv

class Reader(CartPoleEnv):
    def __init__(self, path):
        super().__init__()
        open(path).close()
"""


def test_confined_environment_reads_what_it_is_allowed_and_its_own_modules(tmp_path: Path) -> None:
    (tmp_path / "envs").mkdir()
    (tmp_path / "data").mkdir()
    (tmp_path / "envs" / "reader_env.py").write_text(READER)
    (tmp_path / "data" / "levels").touch()
    kwargs = {"path": str(tmp_path / "data" / "levels")}
    environment = EnvironmentSettings("reader_env:Reader", kwargs, env_path=[str(tmp_path / "envs")])
    for allowed in (None, [str(tmp_path / "data")]):
        settings = BridgeSettings(sandbox="strict", sandbox_read=allowed)
        with EnvBridge(environment, 1, lambda env, episode: episode, settings=settings) as bridge:
            if allowed is None:
                with pytest.raises(EnvironmentRaised, match="PermissionError"):
                    bridge.reset()
            else:
                assert bridge.reset()[""].shape == (1, 4)


LOOKER = """
import os
import gymnasium, numpy as np
class Looker(gymnasium.Env):
    observation_space, action_space = gymnasium.spaces.MultiBinary(9), gymnasium.spaces.Discrete(2)
    def __init__(self, paths):
        self.paths = paths
    def reset(self, *, seed=None, options=None):
        return np.array([self.is_open(path) for path in self.paths], np.int8), {}
    def is_open(self, path):
        try:
            os.listdir(path) if os.path.isdir(path) else open(path).close()
        except PermissionError:
            return False
        return True
"""


@pytest.mark.parametrize("is_at_home", [True, False])
def test_working_directory_is_open_only_where_the_environment_lives_and_but_for_runs_and_what_is_hidden(
    is_at_home: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, elsewhere = tmp_path / "work", tmp_path / "elsewhere"
    for directory in (work / "runs" / "X" / "1", work / "assets", work / ".git", elsewhere, tmp_path / "closed"):
        directory.mkdir(parents=True)
    (work / "linked").symlink_to(tmp_path / "closed")
    files = ("helper.py", "assets/mesh", "notes", ".env", ".git/config", "runs/X/1/.lock", "runs/X/1/last.ckpt", "linked/token")
    for name in files:
        (work / name).write_text("")
    ((work if is_at_home else elsewhere) / "looker_env.py").write_text(LOOKER)
    monkeypatch.chdir(work)
    monkeypatch.setattr(sys, "path", [*sys.path, str(elsewhere), str(work)])
    environment = EnvironmentSettings("looker_env:Looker", {"paths": [str(work / name) for name in ("", *files)]})
    with EnvBridge(environment, 1, lambda env, episode: episode, settings=BridgeSettings(sandbox="strict")) as bridge:
        found = dict(zip(("", *files), bridge.reset()[""][0].tolist(), strict=True))
    opened = dict.fromkeys(["", "helper.py", "assets/mesh", "notes"], int(is_at_home))
    assert found == dict.fromkeys(files, 0) | opened


def test_confined_environment_of_another_interpreter_reads_exactly_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "reader_env.py").write_text(READER)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    package = Path(lit_ppo.PACKAGE)
    # an interpreter that is named has its own import path, which does not lead to this checkout
    settings = BridgeSettings(sandbox="strict", python=sys.executable)
    refused = pytest.raises(EnvironmentRaised, match="PermissionError")
    allowed = {package / "errors.py": nullcontext(), package / "bridge" / "landlock.py": nullcontext()}
    for path, outcome in {**allowed, ROOT / "README.md": refused}.items():
        environment = EnvironmentSettings("reader_env:Reader", {"path": str(path)}, env_path=[str(tmp_path)])
        with EnvBridge(environment, 1, lambda env, episode: episode, settings=settings) as bridge, outcome:
            bridge.reset()


def test_import_path_does_not_open_the_home_directory_but_what_is_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    (home / "envs").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    for entry in (tmp_path, home, home / "envs"):
        monkeypatch.syspath_prepend(str(entry))
    (tmp_path / "home too").symlink_to(home)
    monkeypatch.syspath_prepend(str(tmp_path / "home too"))
    assert [place for place in landlock._of_interpreter() if place.startswith(str(tmp_path))] == [str(home / "envs")]


@pytest.mark.parametrize("setting", ["worker_cwd", "sandbox_write"])
def test_directory_that_the_trainer_imports_from_is_no_place_for_workers_to_write(
    setting: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "modules").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    for directory in (tmp_path, tmp_path / "modules"):
        value: Any = str(directory) if setting == "worker_cwd" else [str(directory)]
        with pytest.raises(ConfigError, match=f"data.{setting}={directory}: expected a directory from which the training"):
            BridgeSettings(sandbox="strict", **{setting: value})
    assert BridgeSettings(worker_cwd=str(tmp_path)).worker_cwd == str(tmp_path)  # without a sandbox they write anywhere
    (tmp_path / "modules" / "inside").mkdir()  # no module there is found by its own name
    BridgeSettings(sandbox="strict", worker_cwd=str(tmp_path / "modules" / "inside"))


def test_path_that_is_not_there_is_refused_and_one_at_home_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "data").mkdir()
    assert BridgeSettings(sandbox_read=["~/data"]).sandbox_read == [str(tmp_path / "data")]
    with pytest.raises(ConfigError, match=r"data\.sandbox_read='~/none': expected a file or directory that exists"):
        BridgeSettings(sandbox_read=["~/none"])
