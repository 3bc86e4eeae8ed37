"""Workers under another interpreter: which can run one, and that it makes no difference."""

import json
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest
import torch

from lit_ppo.bridge.client import EnvBridge
from lit_ppo.bridge.interpreter import refusal, refusal_after_failure
from lit_ppo.bridge.settings import BridgeSettings
from lit_ppo.errors import ConfigError

NEEDED = "expected Python 3.10, numpy 1.26 and Gymnasium 0.29, or newer, got"
INSTALL = "; run: /py -m pip install 'gymnasium>=0.29' 'numpy>=1.26'"
OLDEST = {"python": "3.10.0", "numpy": "1.26.4", "gymnasium": "0.29.1"}


@pytest.mark.parametrize(
    ("versions", "found"),
    [
        (OLDEST, None),
        ({"python": "3.14.0rc1", "numpy": "2.4.6", "gymnasium": "1.4.0a2"}, None),
        (OLDEST | {"python": "2.7.18"}, "python 2.7.18"),
        (OLDEST | {"python": "3.9.18", "gymnasium": None}, "python 3.9.18"),
        (OLDEST | {"numpy": "1.25.2"}, f"numpy 1.25.2{INSTALL}"),
        (OLDEST | {"gymnasium": "0.28.1"}, f"gymnasium 0.28.1{INSTALL}"),
        (OLDEST | {"gymnasium": None}, f"no gymnasium{INSTALL}"),
    ],
)
def test_versions_that_are_too_old_are_refused(versions: dict[str, str | None], found: str | None) -> None:
    assert refusal("/py", versions) == (None if found is None else f"data.python=/py: {NEEDED} {found}")


def script(path: Path, answer: str) -> str:
    path.write_text(f"#!/bin/sh\necho '{answer}'\n")
    path.chmod(0o700)
    return str(path)


def test_interpreter_that_does_not_start_a_worker_says_why(tmp_path: Path) -> None:
    venv.create(tmp_path / "bare", with_pip=False)
    bare, old = str(tmp_path / "bare/bin/python"), script(tmp_path / "old", json.dumps(OLDEST | {"python": "3.9.2"}))
    found = {
        "/bin/true": "expected a Python interpreter",
        "/bin/cat": "expected a Python interpreter",
        script(tmp_path / "talker", "hello"): "expected a Python interpreter",
        old: f"{NEEDED} python 3.9.2",
        bare: f"{NEEDED} no numpy; run: {bare} -m pip install 'gymnasium>=0.29' 'numpy>=1.26'",
    }
    for python, message in found.items():
        settings = BridgeSettings(python=python)
        with EnvBridge("CartPole-v1", 1, lambda env, number: number, settings=settings) as bridge:
            with pytest.raises(ConfigError) as refused:
                bridge.reset()
            assert str(refused.value) == f"data.python={python}: {message}" and bridge.restarts == 0
    assert refusal_after_failure(sys.executable) is None


def test_worker_that_announces_too_old_a_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lit_ppo.bridge.interpreter._OLDEST", {"gymnasium": (999, 0)})
    with (
        EnvBridge("CartPole-v1", 1, lambda env, number: number) as bridge,
        pytest.raises(ConfigError, match=rf"data\.python={sys.executable}: {NEEDED} gymnasium"),
    ):
        bridge.reset()


# -- two real ones


def oldest_python() -> str:
    """Python 3.10 if there is one on this machine, else this one."""
    named = shutil.which("python3.10")
    for python in [*([named] if named else []), *map(str, Path.home().glob(".pyenv/versions/3.10.*/bin/python3.10"))]:
        if subprocess.run([python, "-c", "import venv"], capture_output=True, timeout=60, check=False).returncode == 0:
            return python
    return sys.executable


def interpreter(python: str, directory: Path, *requirements: str) -> str:
    """That of a new virtual environment."""
    subprocess.run([python, "-m", "venv", str(directory)], capture_output=True, timeout=200, check=True)
    install = [str(directory / "bin/python"), "-m", "pip", "install", "--quiet", *requirements]
    if subprocess.run(install, capture_output=True, timeout=600, check=False).returncode:
        pytest.skip(f"{' '.join(requirements)} cannot be installed here")
    return str(directory / "bin/python")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_oldest_and_newest_interpreter_train_alike(tmp_path: Path) -> None:
    old = interpreter(oldest_python(), tmp_path / "old", "gymnasium==0.29.1", "numpy==1.26.4")
    new = interpreter(sys.executable, tmp_path / "new", "gymnasium", "numpy")
    options = ["--trainer.max_epochs=2", "--data.num_envs=4", "--data.horizon=64", "--data.frame_stack=2"]
    options += ["--evaluation.num_episodes=4", "--trainer.logger=false"]
    curves, weights = [], []
    for name, python in (("this", sys.executable), ("old", old), ("new", new)):
        where = [f"--data.python={python}", f"--checkpoint.dirpath={name}", f"--curve.path={name}.json"]
        command = [sys.executable, "-m", "lit_ppo", "fit", *options, *where]
        subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=200, check=True)
        curves.append((tmp_path / f"{name}.json").read_bytes())
        weights.append(torch.load(tmp_path / name / "last.ckpt", weights_only=True)["state_dict"])
    assert curves[0] == curves[1] == curves[2]
    assert all(weights[0][key].equal(other[key]) for other in weights[1:] for key in weights[0])
    settings = BridgeSettings(python=old, vectorization="native")
    with (
        EnvBridge("CartPole-v1", 2, lambda env, number: number, settings=settings) as bridge,
        pytest.raises(ConfigError, match=r"vectorization=native: expected Gymnasium 1\.1 or newer, got 0\.29\.1"),
    ):
        bridge.reset()
