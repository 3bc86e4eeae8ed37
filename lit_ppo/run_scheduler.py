"""Runs side by side, each in a process and a directory of its own, of any program that writes a record when it ends.

A run that was killed goes on from what its directory holds when it is started again.
"""

import json
import os
import select
import shutil
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from lit_ppo import exit_codes
from lit_ppo.errors import CheckpointError
from lit_ppo.run_lock import RunLock

RECORD: Final = "record.json"  # of a finished run, in its directory
_KEPT: Final = "kept.json"  # the same when it stands in the results
_OUTPUT: Final = "output.txt"
# Becomes another program that the kernel ends if its parent ends (1 is PR_SET_PDEATHSIG, which outlives execv).
_LAUNCH: Final = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)
if os.getppid() != int(sys.argv[1]):  # it ended before the kernel knew whom to tell
    sys.exit(1)
os.execv(sys.argv[2], sys.argv[2:])
"""


@dataclass(frozen=True)
class Run:
    """One run that is still to be made.

    Attributes:
        name: For messages.
        directory: Of its own.
        command: Makes the command when the run starts; the process that it starts writes `record.json` into the directory.
        keep: Stores the record of the finished run, and returns a summary of it for one line.
    """

    name: str
    directory: Path
    command: Callable[[], list[str]]
    keep: Callable[[dict[str, Any]], str]


@dataclass(frozen=True)
class Failure:
    """A run that ended without a result.

    Attributes:
        name: Of the run.
        code: Exit code of its process.
        message: The last line that it printed.
    """

    name: str
    code: int
    message: str


def make_runs(runs: Sequence[Run], jobs: int, say: Callable[[str], None] = print) -> list[Failure]:
    """Make runs side by side, each in a process that the kernel ends if this one ends, and keep their results.

    Call it in the main thread: the processes end with the thread that has started them.

    Args:
        runs: In the order in which they are started.
        jobs: How many at a time.
        say: Is told of each run that starts or ends, in one line.

    Returns:
        The runs that failed; what they have saved stays, and a later call goes on from there.

    Raises:
        ConfigError: Another process makes runs in the parent of one of the directories.
        CheckpointError: A directory or a result cannot be written.
    """
    locks = [RunLock(directory, "--runs_dir") for directory in dict.fromkeys(run.directory.parent for run in runs)]
    waiting, failures = deque(runs), list[Failure]()
    running: dict[int, tuple[Run, subprocess.Popen[bytes]]] = {}  # by the descriptor of the process
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                run = waiting.popleft()
                if not (run.directory / RECORD).is_file():
                    process = _started(run)
                    running[os.pidfd_open(process.pid)] = run, process
                    say(f"{run.name}: started, output in {run.directory / _OUTPUT}")
                else:  # its process ended after this one had been killed
                    say(_kept(run))
            for descriptor in select.select(list(running), [], [])[0] if running else []:
                run, process = running.pop(descriptor)
                os.close(descriptor)
                code = process.wait()
                if code == 0 and (run.directory / RECORD).is_file():
                    say(_kept(run))
                else:
                    code = exit_codes.of_signal(-code) if code < 0 else code or exit_codes.CHECKPOINT
                    failures.append(Failure(run.name, code, _last_line(run)))
                    say(f"{run.name}: failed with exit code {code}: {failures[-1].message}")
    finally:
        for _, process in running.values():
            process.kill()
            process.wait()
        for lock in locks:
            lock.release()
    return failures


def _started(run: Run) -> subprocess.Popen[bytes]:
    try:
        if (run.directory / _KEPT).exists():  # its result was deleted, so it is wanted anew
            shutil.rmtree(run.directory)
        run.directory.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-ISc", _LAUNCH, str(os.getpid()), *run.command()]
        with open(run.directory / _OUTPUT, "ab") as output:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
    except OSError as error:
        raise CheckpointError(f"{run.directory}: {run.name} cannot be started: {error}") from error


def _kept(run: Run) -> str:
    """Keep the result of a run that has ended; one line about it."""
    try:
        record = json.loads((run.directory / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{run.directory / RECORD}: cannot be read: {error}") from error
    summary = run.keep(record)
    os.replace(run.directory / RECORD, run.directory / _KEPT)
    return f"{run.name}: {summary}"


def _last_line(run: Run) -> str:
    text = (run.directory / _OUTPUT).read_text(encoding="utf-8", errors="replace")
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].removeprefix("lit_ppo: error: ") if lines else "no output"
