"""An installation without one of its packages says what to do; a wheel in an empty environment is complete."""

import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from lit_ppo import exit_codes
from lit_ppo.presets import all_presets
from tests import versions

ROOT = Path(__file__).parents[1]
HIDING = """
import os, sys

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name == os.environ.get("HIDDEN"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Hidden())
"""


@pytest.mark.parametrize(("package", "command"), [("torch", "fit"), ("lightning", "test"), ("yaml", "presets")])
def test_package_that_is_missing_is_one_line_with_what_to_do(package: str, command: str, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(HIDING)
    environment = {**os.environ, "HIDDEN": package, "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    ended = subprocess.run(
        [sys.executable, "-m", "lit_ppo", command],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    pip = f"{sys.executable} -m pip install -c {ROOT}/constraints.txt -e {ROOT}"
    said = f"lit_ppo: error: {package} is not installed for {sys.executable}; use: make fit, or {pip}\n"
    assert (ended.returncode, ended.stdout, ended.stderr) == (exit_codes.USAGE, "", said)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_wheel_runs_in_an_empty_environment(tmp_path: Path) -> None:
    """It needs a package index."""

    def run(*command: str | Path) -> str:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, f"{command}\n{ended.stdout}\n{ended.stderr}"
        return ended.stdout

    source = tmp_path / "source"  # a copy: setuptools would put what older builds have left in `build` into the wheel
    shutil.copytree(ROOT / "lit_ppo", source / "lit_ppo", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", tmp_path, source)
    [wheel] = tmp_path.glob("*.whl")
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "lit_ppo").rglob("*") if path.suffix in (".py", ".yaml")}
    assert names == sources | {"lit_ppo/py.typed"}

    venv.create(tmp_path / "venv", with_pip=True)
    python, script = tmp_path / "venv/bin/python", tmp_path / "venv/bin/lit_ppo"
    constraints = ROOT / "constraints.txt"
    run(python, "-m", "pip", "install", "--quiet", "-c", constraints, "torch")  # first, as the Makefile does
    run(python, "-m", "pip", "install", "--quiet", "-c", constraints, wheel)
    assert "torch==2.13.0" in run(python, "-m", "pip", "freeze")
    listed = run(script, "presets")
    assert all(preset.name in listed for preset in all_presets())
    summary = run(script, "fit", "--total_env_steps=256", "--evaluation.num_episodes=1")
    assert "1 updates, 256 env steps" in summary and (tmp_path / "runs/CartPole-v1/1/last.ckpt").is_file()


def test_newer_releases_are_told_and_an_index_that_cannot_be_asked_is_one_line() -> None:
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines())
    assert list(versions.lines(pinned.__getitem__)) == ["the tests run with the newest releases"]
    newer = pinned | {"torch": "2.99.0", "lightning": "3.0.0"}
    assert list(versions.lines(newer.__getitem__)) == [
        f"torch 2.99.0 is out: tested with {pinned['torch']}; pyproject.toml admits it (<3,>=2.10)",
        f"lightning 3.0.0 is out: tested with {pinned['lightning']}; pyproject.toml does not admit it (<3,>=2.6.4)",
    ]
    assert list(versions.lines(lambda name: None)) == ["torch: the package index cannot be asked; is this machine offline?"]
