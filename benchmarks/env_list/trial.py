"""One environment's trial: two updates in one go, with a worker killed between them, and resumed between them.

Each run is the command line in a process of its own, forked from one that has imported it.
"""

import json
import os
import signal
import sys
import tempfile
from functools import cache
from multiprocessing import get_context
from multiprocessing.context import ForkServerContext
from pathlib import Path
from time import perf_counter
from typing import Any, Final

from lightning.pytorch import Callback, LightningModule, Trainer

from benchmarks.env_list.rows import Row
from benchmarks.report import versions
from lit_ppo.bridge.settings import EnvironmentSettings
from lit_ppo.callbacks.greedy_evaluation import data_of
from lit_ppo.checkpoint_io import read_checkpoint
from lit_ppo.environment_check import check_environment
from lit_ppo.errors import BridgeError, ConfigError, EnvironmentFault, ProtocolError
from tests.faults.harness import LAST, child_of, outcome
from tests.test_resume import differences

_DEADLINE_S: Final = 240.0  # of one run
_STEPS_OF_CHECK: Final = 60
_TIME_LIMIT: Final = 24  # steps: episodes end within a rollout, and no evaluation is long
_OPTIONS: Final = {
    "data.num_envs": 2,
    "data.horizon": 16,
    "data.max_episode_steps": _TIME_LIMIT,
    "data.evaluation_envs": 1,
    "model.minibatch_size": 16,
    "model.update_epochs": 2,
    "evaluation.every_env_steps": 64,
    "evaluation.num_episodes": 1,
    "solved.threshold": ".inf",
    "checkpoint.every_n_updates": 1,
    "trainer.max_epochs": 2,
    "trainer.logger": False,
    "curve.path": "curve.json",
    "checkpoint.dirpath": "checkpoints",
}


class KillWorker(Callback):
    """Kills the process of the training environments, with SIGKILL, when the second rollout is about to be collected."""

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        data = data_of(trainer)
        if data.update == 1:
            assert data._bridge is not None
            os.kill(child_of(data._bridge.slices[0].worker.guard_pid), signal.SIGKILL)  # type: ignore[attr-defined]


class TrialFailed(Exception):
    """What a user would be told."""


def trial(row: Row) -> dict[str, Any]:
    """Try one environment; the result as plain data, `result` is `ok` or what went wrong."""
    start, result = perf_counter(), {"family": row.family, "env_id": row.env_id, "data": row.data}
    try:
        result |= _measured(row) | {"result": "ok"}
        _train(row)
    except (TrialFailed, ConfigError, BridgeError, ProtocolError, EnvironmentFault) as failure:
        reasons = [str(failure), *([result["difference"]] if result.get("difference") else [])]
        result["result"] = "; ".join((reason.strip().splitlines() or [type(failure).__name__])[0] for reason in reasons)
    return result | {"wall_s": round(perf_counter() - start, 1), "versions": versions()}


def _measured(row: Row) -> dict[str, Any]:
    """Kinds of space, and what a step costs."""
    environment = EnvironmentSettings(row.env_id, **row.data, max_episode_steps=_TIME_LIMIT)
    report = check_environment(environment, num_steps=_STEPS_OF_CHECK)
    spec = report.spec
    leaves = [f"{leaf.kind} {list(leaf.shape)} {leaf.dtype}" for leaf in spec.observation]
    return {
        "observation": leaves,
        "action": f"{spec.action.kind} {list(spec.action.shape)}",
        "step_ms": None if report.step is None else round(report.step.median_s * 1e3, 3),
        "reset_ms": None if report.reset is None else round(report.reset.median_s * 1e3, 3),
        "fault": report.fault,
        "difference": report.difference,
        "remarks": report.remarks,
    }


def _train(row: Row) -> None:
    """Two updates in one go, with a killed worker, and resumed.

    Raises:
        TrialFailed: A run failed, or the three do not come to the same bits.
    """
    with tempfile.TemporaryDirectory(prefix="env-list-") as directory:
        straight, struck, resumed = (Path(directory) / name for name in ("straight", "struck", "resumed"))
        _fit(row, straight)
        _fit(row, struck, f"--trainer.callbacks+={__name__}.KillWorker")
        restarts = read_checkpoint(struck / LAST)["RolloutDataModule"]["bridge"]["restarts"]
        if restarts != 1:
            raise TrialFailed(f"killed worker: expected one restart, got {restarts}")
        _fit(row, resumed, f"--ckpt_path={straight / 'checkpoints' / 'last.previous.ckpt'}")
        for name, other in (("killed worker", struck), ("resume", resumed)):
            if found := differences(list(outcome(straight)), list(outcome(other))):
                raise TrialFailed(f"{name}: differs from the undisturbed run in {len(found)} places")


@cache
def _processes() -> ForkServerContext:
    context = get_context("forkserver")
    context.set_forkserver_preload(["lit_ppo.commands.train", __name__])
    return context


def _fit(row: Row, directory: Path, *more: str) -> None:
    """Run `fit` in a directory of its own.

    Raises:
        TrialFailed: It ended with an error, or at its deadline.
    """
    directory.mkdir()
    options = {"data.env_id": row.env_id, **{f"data.{key}": value for key, value in row.data.items()}, **_OPTIONS}
    typed = [f"--{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in options.items()]
    process = _processes().Process(target=_run, args=(directory, ["fit", *typed, *more]))
    process.start()
    process.join(_DEADLINE_S)
    if process.exitcode is None:
        process.kill()
        process.join()
        raise TrialFailed(f"fit: not finished after {_DEADLINE_S:.0f} s")
    if process.exitcode:
        said = [line for line in (directory / "output").read_text(errors="replace").splitlines() if line.strip()]
        errors = [line for line in said if line.startswith("lit_ppo: error: ")] or said[-1:]
        raise TrialFailed(f"exit code {process.exitcode}: {errors[0].removeprefix('lit_ppo: error: ') if errors else ''}")


def _run(directory: Path, arguments: list[str]) -> None:
    os.chdir(directory)
    output = os.open("output", os.O_WRONLY | os.O_CREAT)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.argv[1:] = arguments
    from lit_ppo.commands.train import main

    main()
