"""Runs of the command line in a process of their own: started, struck, awaited, looked at."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple
from uuid import uuid4

from lit_ppo.checkpoint_io import read_checkpoint
from tests.patience import patient

ROOT = Path(__file__).parents[2]
DEADLINE_S = 60.0  # on an idle machine
FAULTY = "tests.fault_envs:Faulty-v0"
CURVE = "curve.json"
LAST = "checkpoints/last.ckpt"


class Ended(NamedTuple):
    """How a run ended."""

    code: int
    out: str
    err: str


def wait_for(condition: Callable[[], Any], what: str, deadline_s: float = DEADLINE_S) -> Any:
    """What `condition` gives once it is true; looked at every few milliseconds, since files and processes do not notify."""
    limit_s = patient(deadline_s)
    deadline = monotonic() + limit_s
    while not (result := condition()):
        if monotonic() > deadline:
            raise TimeoutError(f"{what} did not happen within {limit_s:.0f} s")
        signal.sigtimedwait([], 0.005)
    return result


def child_of(guard_pid: int) -> int:
    """Process number of the worker that a guard has forked, while both live."""
    # orphans of the worker, which come back to the guard, follow behind it
    return int(Path(f"/proc/{guard_pid}/task/{guard_pid}/children").read_text().split()[0])


class CommandLine:
    """`python -m lit_ppo ...`, started in a directory of its own.

    Its processes are known by a variable in their environment, so that they are found whoever their parent is by now.

    Args:
        directory: Where it works; made if there is none.
        arguments: Of the command line.
        out, err: Descriptors for its output and messages; None for files that `ended` reads.
        launcher: Options of Python that start it, such as `-m torch.distributed.run`; none for `-m lit_ppo`.
        prefix: Command that runs Python, such as `ip netns exec NAME`; none to start it here.
    """

    def __init__(
        self,
        directory: Path,
        *arguments: str,
        out: int | None = None,
        err: int | None = None,
        launcher: Sequence[str] = (),
        prefix: Sequence[str] = (),
    ) -> None:
        directory.mkdir(exist_ok=True)
        self.directory = directory
        self._mark = f"PYTHONLITPPOTEST={uuid4()}"  # workers get the variables that begin with PYTHON
        (directory / "tmp").mkdir(exist_ok=True)
        self._environment = os.environ | {
            "PYTHONPATH": str(ROOT),
            "TMPDIR": str(directory / "tmp"),
            "HF_TOKEN": "a secret",
            self._mark.split("=")[0]: self._mark.split("=")[1],
        }
        self._err = tempfile.TemporaryFile("w+b")  # noqa: SIM115  a file, not a pipe: nobody reads while it runs
        self._out = tempfile.TemporaryFile("w+b")  # noqa: SIM115
        self._shared_before = set(os.listdir("/dev/shm"))
        self.process = subprocess.Popen(
            [*prefix, sys.executable, *(launcher or ["-m", "lit_ppo"]), *arguments],
            cwd=directory,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=self._out if out is None else out,
            stderr=self._err if err is None else err,
        )

    def processes(self) -> list[int]:
        """All its processes that are still there, zombies not among them."""
        found = []
        for entry in os.listdir("/proc"):
            try:
                if entry.isdigit() and self._mark.encode() in Path(f"/proc/{entry}/environ").read_bytes().split(b"\0"):
                    found.append(int(entry))
            except OSError:
                continue  # it ended while we looked
        return found

    def workers(self) -> list[int]:
        """Guards and workers, that is all processes but the trainer."""
        return [pid for pid in self.processes() if pid != self.process.pid]

    def ended(self, deadline_s: float = DEADLINE_S, is_tidy: bool = True) -> Ended:
        """Wait for the end; then nothing may be left: no process, no shared memory and, if `is_tidy`, no temporary file."""
        limit_s = patient(deadline_s)
        try:
            code = self.process.wait(limit_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"still running after {limit_s:.0f} s: {self._texts()}") from None
        # those of a trainer that was killed are ended by their guards, at once but not before we look
        wait_for(lambda: not self.processes(), f"the end of processes {self.processes()}", 10.0)
        out, err = self._texts()
        assert set(os.listdir("/dev/shm")) <= self._shared_before
        if is_tidy:
            wait_for(lambda: not self._temporary_files(), f"removal of {self._temporary_files()}", 10.0)
        return Ended(code, out, err)

    def _temporary_files(self) -> list[str]:
        return [name for name in os.listdir(self.directory / "tmp") if name.startswith("lit_ppo")]

    def _texts(self) -> tuple[str, str]:
        texts = []
        for file in (self._out, self._err):
            file.seek(0)
            texts.append(file.read().decode("utf-8", "replace"))
        return texts[0], texts[1]

    def kill(self) -> None:
        """End it with SIGKILL, whatever it is doing; its guards do the rest."""
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        """For the end of a test, whatever became of it."""
        self.kill()
        self._out.close()
        self._err.close()


def fit_of(env_kwargs: dict[str, Any], *more: str) -> list[str]:
    """A small run whose every update is evaluated; options in `more` win."""
    options = {
        "data.env_id": FAULTY,
        "data.env_kwargs": json.dumps(env_kwargs),
        "data.num_envs": 2,
        "data.horizon": 16,
        "data.evaluation_envs": 1,
        "data.start_timeout_s": patient(60.0),
        "data.step_timeout_s": patient(30.0),
        "model.minibatch_size": 16,
        "evaluation.every_env_steps": 1,
        "evaluation.num_episodes": 2,
        "trainer.max_epochs": 6,
        "trainer.logger": "false",
        "curve.path": CURVE,
        "checkpoint.dirpath": "checkpoints",
        "data.report_dir": "data/reports",
    }
    return ["fit", *(f"--{key}={value}" for key, value in options.items()), *more]


def outcome(directory: Path) -> tuple[bytes, dict[str, Any]]:
    """All that a disturbed run must have in common with the undisturbed one: curve bytes, parameters, optimizer, episodes."""
    checkpoint = read_checkpoint(directory / LAST)
    data = checkpoint["RolloutDataModule"]
    data["bridge"] = {key: value for key, value in data["bridge"].items() if key != "restarts"}
    kept = {key: checkpoint[key] for key in ("state_dict", "optimizer_states", "global_step")}
    return (directory / CURVE).read_bytes(), kept | {"data": data}
