"""Examples, notebooks and the site: each runs, or is built; most of it in the slow tests."""

import http.client
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from lit_ppo.checkpoint_io import read_checkpoint
from tests.faults.harness import CommandLine, wait_for
from tests.pages import PACKAGES, ROOT
from tests.test_resume import differences

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
NOTEBOOKS = sorted((ROOT / "docs/notebooks").glob("*.ipynb"))
PRINTS = {  # by name: what says that it did what it shows
    "optuna_pruning": "best return ",
    "own_callback": "update 10: shares ",
    "own_environment": "solved at env step ",
    "own_loss": "solved at env step ",
    "own_torso": "solved at env step ",
    "own_trainer": "test return ",
    "ray_train": "return after 20 updates ",
    "wandb_run": "solved at env step ",
}
NEEDS = {"optuna_pruning": "optuna", "ray_train": "ray", "wandb_run": "wandb", "serve_onnx": "onnx"}


def require(extra: str) -> None:
    """Skip the test if a package of an extra is missing."""
    if not all(importlib.util.find_spec(package) for package in PACKAGES[extra]):
        pytest.skip(f"pip install -e '.[{extra}]'")


def run(directory: Path, *command: str | Path) -> str:
    quiet = {"WANDB_MODE": "offline", "RAY_USAGE_STATS_ENABLED": "0"}
    environment = {**os.environ, **quiet, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        [sys.executable, *command], cwd=directory, env=environment, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, f"{ended.stdout}\n{ended.stderr}"
    return ended.stdout


def test_examples_are_short_and_listed() -> None:
    listed = re.findall(r"^\| `(\w+)\.py` \|", (ROOT / "docs/examples.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(listed) == [path.stem for path in EXAMPLES] == sorted([*PRINTS, "serve_onnx"])
    for path in EXAMPLES:
        source = path.read_text(encoding="utf-8")
        assert source.count("\n") <= 70 and source.startswith('"""'), path
        compile(source, path, "exec")


def test_notebooks_have_no_outputs() -> None:
    listed = (ROOT / "docs/notebooks/index.md").read_text(encoding="utf-8")
    assert len(NOTEBOOKS) == 2
    for path in NOTEBOOKS:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        assert f"]({path.name})" in listed and not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", PRINTS)
def test_example_runs(name: str, tmp_path: Path) -> None:
    if name in NEEDS:
        require(NEEDS[name])
    assert PRINTS[name] in run(tmp_path, "-W", "ignore", ROOT / f"examples/{name}.py")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_run_whose_worker_is_killed_goes_on_under_ray_train_as_if_nothing_had_happened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require("ray")
    example = ["-W", "ignore", str(ROOT / "examples/ray_train.py")]
    run(tmp_path, *example, "undisturbed")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    with tempfile.TemporaryDirectory(prefix="ray") as short:  # Ray's sockets are in it, whose paths must not be long
        monkeypatch.setenv("RAY_TMPDIR", short)
        struck = CommandLine(tmp_path, "killed", launcher=example)
        try:
            wait_for((tmp_path / "killed/run/checkpoint_manager_snapshot.json").exists, "a checkpoint that Ray knows", 600.0)
            workers = [pid for pid in struck.processes() if b"RayTrainWorker" in Path(f"/proc/{pid}/cmdline").read_bytes()]
            assert len(workers) == 2
            os.kill(max(workers), signal.SIGKILL)
            ended = struck.ended(900.0, is_tidy=False)  # Ray kills the sweeper of temporary files with its worker
        finally:
            struck.close()
    assert ended.code == 0, ended
    assert PRINTS["ray_train"] in ended.out and "Restored all states from the checkpoint" in ended.out + ended.err
    curves = [(tmp_path / name / "curve.json").read_bytes() for name in ("undisturbed", "killed")]
    assert curves[0] == curves[1]
    checkpoints = [newest_of_ray(tmp_path / name) for name in ("undisturbed", "killed")]
    assert differences(*({key: kept[key] for key in ("state_dict", "optimizer_states")} for kept in checkpoints)) == []


def newest_of_ray(directory: Path) -> dict[str, Any]:
    return read_checkpoint(max(directory.glob("run/checkpoint_*/checkpoint.ckpt")))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_served_policy_answers_as_the_policy_does(tmp_path: Path) -> None:
    require("onnx")
    run(tmp_path, "-m", "lit_ppo", "fit", "--total_env_steps=256", "--evaluation.num_episodes=1")
    run(tmp_path, "-m", "lit_ppo", "export", "--format=onnx", "--out=policy.onnx")
    served = [sys.executable, str(ROOT / "examples/serve_onnx.py"), "policy.onnx", "0"]
    with subprocess.Popen(served, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            port = int(server.stdout.readline().rpartition(":")[2])
            observations = [[0.0, 0.0, angle / 50, 0.0] for angle in range(-9, 10)]
            assert asked(port, {"obs": observations}) == (200, {"action": greedy(tmp_path, observations)})
            assert asked(port, {"seen": observations})[0] == 400
        finally:
            server.kill()


def asked(port: int, body: dict[str, object]) -> tuple[int, object]:
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("POST", "/", json.dumps(body))
    response = connection.getresponse()
    return response.status, json.loads(response.read())


def greedy(directory: Path, observations: list[list[float]]) -> list[int]:
    import numpy as np

    from lit_ppo import PPOModule

    module = PPOModule.load_from_checkpoint(directory / "runs/CartPole-v1/1/best.ckpt", weights_only=True)
    actions, _ = module.predict(np.array(observations, np.float32))
    return [int(action) for action in actions]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("default")  # of Jupyter's packages
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("ipykernel", "nbclient"):
        pytest.importorskip(package, reason="pip install -e '.[docs]'")
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_site_is_built_without_a_warning_and_needs_no_other_server(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="pip install -e '.[docs]'")
    run(ROOT, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", tmp_path / "site")
    settings = (tmp_path / "site/reference/settings.html").read_text(encoding="utf-8")
    assert "--model.gae_lambda" in settings and "--data.sandbox" in settings
    for page in (tmp_path / "site").rglob("*.html"):
        assert not re.findall(r'<(?:script|link|img)[^>]* (?:src|href)="https?://', page.read_text(encoding="utf-8")), page
