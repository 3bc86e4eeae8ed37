"""Workers under another interpreter: which can run one, and that it makes no difference."""

import json
import os
import shutil
import signal
import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
import pytest
import torch

from lit_ppo import exit_codes
from lit_ppo.bridge.client import EnvBridge
from lit_ppo.bridge.interpreter import refusal, refusal_after_failure
from lit_ppo.bridge.process import WorkerProcess
from lit_ppo.bridge.settings import BridgeSettings, EnvironmentSettings
from lit_ppo.contract import VectorStep
from lit_ppo.errors import ConfigError
from tests.faults.harness import child_of

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


def python_of(version: str) -> str | None:
    """An interpreter of this version, if there is one on this machine."""
    named = shutil.which(f"python{version}")
    of_pyenv = Path.home().glob(f".pyenv/versions/{version}.*/bin/python{version}")
    for python in [*([named] if named else []), *map(str, of_pyenv)]:
        if subprocess.run([python, "-c", "import venv"], capture_output=True, check=False).returncode == 0:
            return python
    return None


OLDEST_PYTHON = python_of("3.10") or sys.executable


def interpreter(python: str, directory: Path, *requirements: str) -> str:
    """That of a new virtual environment."""
    subprocess.run([python, "-m", "venv", str(directory)], capture_output=True, check=True)
    install = [str(directory / "bin/python"), "-m", "pip", "install", "--quiet", *requirements]
    if subprocess.run(install, capture_output=True, check=False).returncode:
        pytest.skip(f"{' '.join(requirements)} cannot be installed here")
    return str(directory / "bin/python")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_oldest_and_newest_interpreter_train_alike(tmp_path: Path) -> None:
    old = interpreter(OLDEST_PYTHON, tmp_path / "old", "gymnasium==0.29.1", "numpy==1.26.4")
    new = interpreter(sys.executable, tmp_path / "new", "gymnasium", "numpy")
    options = ["--trainer.max_epochs=2", "--data.num_envs=4", "--data.horizon=64", "--data.frame_stack=2"]
    options += ["--evaluation.num_episodes=4", "--trainer.logger=false"]
    curves, weights = [], []
    for name, python in (("this", sys.executable), ("old", old), ("new", new)):
        where = [f"--data.python={python}", f"--checkpoint.dirpath={name}", f"--curve.path={name}.json"]
        command = [sys.executable, "-m", "lit_ppo", "fit", *options, *where]
        subprocess.run(command, cwd=tmp_path, capture_output=True, check=True)
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


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("version", "requirements", "found"),
    [
        ("3.10", ["gymnasium==0.28.1", "numpy==1.26.4"], "gymnasium 0.28.1; run: "),
        ("3.10", ["gymnasium==0.29.1", "numpy==1.25.2"], "numpy 1.25.2; run: "),
        ("3.10", ["numpy==1.26.4"], "no gymnasium; run: "),
        ("3.9", ["gymnasium==0.29.1", "numpy==1.26.4"], "python 3.9."),
    ],
)
def test_real_interpreter_that_is_too_old_ends_the_command_in_one_line_and_exit_code_2(
    version: str, requirements: list[str], found: str, tmp_path: Path
) -> None:
    base = python_of(version)
    if base is None:
        pytest.skip(f"there is no Python {version} here")
    python = interpreter(base, tmp_path / "venv", *requirements)
    command = [sys.executable, "-m", "lit_ppo", "fit", f"--data.python={python}"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr.count("\n")) == (exit_codes.USAGE, "", 1), ended.stderr
    assert ended.stderr.startswith(f"lit_ppo: error: data.python={python}: {NEEDED} {found}")


def answer_of(step: VectorStep) -> tuple[bytes, list[float], list[bool]]:
    return step.obs[""].tobytes(), step.rewards.tolist(), step.terminated.tolist()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_atari_preprocessing_works_with_the_oldest_gymnasium(tmp_path: Path) -> None:
    atari = ["ale-py==0.10.1", "opencv-python-headless"]
    python = interpreter(OLDEST_PYTHON, tmp_path / "old", "gymnasium==0.29.1", "numpy==1.26.4", *atari)
    breakout = EnvironmentSettings("ALE/Breakout-v5", wrappers=["atari"])
    actions = np.random.default_rng(0).integers(0, 4, (150, 2))
    with EnvBridge(breakout, 2, lambda env, number: 100 * env + number, settings=BridgeSettings(python=python)) as bridge:
        [leaf] = bridge.spec.observation
        assert (leaf.shape, leaf.dtype, bridge.versions["gymnasium"]) == ((84, 84, 4), "uint8", "0.29.1")
        seen = []
        for _ in range(2):
            bridge.reset()
            steps = [answer_of(bridge.step(row)) for row in actions[:100]]
            worker = bridge.slices[0].worker
            assert isinstance(worker, WorkerProcess)
            os.kill(child_of(worker.guard_pid), signal.SIGKILL)  # the games come back
            seen.append(steps + [answer_of(bridge.step(row)) for row in actions[100:]])
        assert seen[0] == seen[1] and bridge.restarts == 2 and bridge.abandoned_episodes == 0
        assert any(any(ended) for _, _, ended in seen[0])  # lives were lost
