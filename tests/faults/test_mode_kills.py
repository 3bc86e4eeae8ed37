"""Every kind of space and policy, killed from outside at two moments: what it leaves is what the undisturbed run leaves."""

import json
import os
import signal
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.faults.harness import LAST, CommandLine, child_of, outcome, wait_for
from tests.test_modes import ANYTHING, MODES, Mode
from tests.test_resume import differences

PARTS = {
    "own optimizer with scheduler": [
        "--model.optimizer=torch.optim.AdamW",
        "--model.optimizer.lr=0.01",
        "--model.optimizer.weight_decay=0.1",
        "--model.lr_scheduler=CosineAnnealingLR",
        "--model.lr_scheduler.T_max=20",
    ],
    "own torso": ["--model.torso=tests.toy_parts.Torso", "--model.torso.width=8"],
}


def arguments_of(name: str) -> list[str]:
    mode = MODES.get(name, Mode())
    sizes: dict[str, Any] = {} if name == "own torso" else {"actor_hidden_sizes": [8], "critic_hidden_sizes": [8]}
    options = {
        "data.env_id": ANYTHING,
        "data.env_kwargs": mode.env_kwargs,
        "data.num_envs": 4,
        "data.horizon": 32,
        "data.evaluation_envs": 2,
        **{f"data.{key}": value for key, value in mode.data.items()},
        "model.minibatch_size": 32,
        **{f"model.{key}": value for key, value in (sizes | mode.settings).items()},
        "evaluation.every_env_steps": 512,
        "evaluation.num_episodes": 2,
        "checkpoint.every_n_updates": 8,
        "solved.threshold": ".inf",
        "trainer.max_epochs": 20,
        "trainer.logger": False,
        "curve.path": "curve.json",
        "checkpoint.dirpath": "checkpoints",
    }
    plain = [f"--{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in options.items()]
    return ["fit", *plain, *PARTS.get(name, [])]


_UNDISTURBED: dict[str, Any] = {}  # outcomes by name


def undisturbed(name: str, directory: Path) -> Any:
    if name not in _UNDISTURBED:
        with closing(CommandLine(directory / "straight", *arguments_of(name))) as run:
            ended = run.ended()
            assert ended.code == 0, ended.err
            _UNDISTURBED[name] = outcome(run.directory)
    return _UNDISTURBED[name]


def kill_workers(run: CommandLine) -> None:
    """Those of training and of evaluation."""
    for guard in run.workers():
        try:
            os.kill(child_of(guard), signal.SIGKILL)
        except (OSError, IndexError):
            continue  # a worker itself, which has no child


@pytest.mark.slow
@pytest.mark.parametrize("who", ["worker", "trainer"])
@pytest.mark.parametrize("name", [*MODES, *PARTS])
def test_killed_run_ends_as_the_undisturbed_one(name: str, who: str, tmp_path: Path) -> None:
    with closing(CommandLine(tmp_path / "killed", *arguments_of(name))) as run:
        wait_for((run.directory / LAST).exists, "the first checkpoint")
        if who == "worker":
            kill_workers(run)
            ended = run.ended()
            assert ended.code == 0 and "is replaced" in ended.err, ended.err
        else:
            run.process.kill()
            assert run.ended().code == -signal.SIGKILL
    if who == "trainer":
        with closing(CommandLine(run.directory, *arguments_of(name), f"--ckpt_path={LAST}")) as again:
            ended = again.ended()
            assert ended.code == 0, ended.err
    assert differences(list(undisturbed(name, tmp_path)), list(outcome(run.directory))) == []
