"""The directory of a run: nothing stays in TMPDIR, however trainer, guards, workers and sweeper end."""

import fcntl
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from lit_ppo.bridge import sweeper
from lit_ppo.bridge.child import Child
from lit_ppo.errors import ConfigError
from tests.faults.harness import child_of, wait_for
from tests.patience import patient

DEADLINE_S = 20.0  # on an idle machine
TRAINER = """
import os, sys, time
from lit_ppo.bridge.process import WorkerProcess
workers = [WorkerProcess() for _ in range(2)]
for worker in workers:
    worker.ask("make", 60, env_id="CartPole-v1")
print(*(worker.guard_pid for worker in workers), flush=True)
sys.stdin.read()
"""


@contextmanager
def trainer(temporary: Path) -> Iterator[tuple[int, list[int], list[int]]]:
    """A trainer with two workers: its process number, those of its guards and workers, and those of sweepers."""
    with subprocess.Popen(
        [sys.executable, "-c", TRAINER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
        env=os.environ | {"TMPDIR": str(temporary)},
    ) as process:
        try:
            assert process.stdout is not None
            assert select.select([process.stdout], [], [], patient(DEADLINE_S))[0], "the workers did not start in time"
            guards = [int(number) for number in process.stdout.readline().split()]
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            others = [*guards, *map(child_of, guards)]
            yield process.pid, others, [int(number) for number in children if int(number) not in guards]
        finally:
            process.kill()


def kill_at_once(*pids: int) -> None:
    """Stop all of them, so that none sees the end of another, and kill them."""
    ends = [os.pidfd_open(pid) for pid in pids]
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for pid in pids:
            os.kill(pid, number)
    for end in ends:
        assert select.select([end], [], [], patient(DEADLINE_S))[0]
        os.close(end)


def test_directories_go_that_are_nested_more_deeply_than_a_path_a_recursion_or_the_open_files_reach() -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as place, ExitStack() as stack:
        top, depth = os.path.join(place, "top"), 2 * max(sys.getrecursionlimit(), 2048)
        os.mkdir(top)
        here = os.open(top, os.O_RDONLY)
        for _ in range(depth):
            os.mkdir("down", dir_fd=here)
            inner = os.open("down", os.O_RDONLY, dir_fd=here)
            os.close(here)
            here = inner
        stack.callback(os.close, here)
        os.symlink(place, "up", dir_fd=here)
        Path(place, "kept").touch()
        sweeper.remove_tree(top)
        assert os.listdir(place) == ["kept"]


def test_directory_goes_when_trainer_guards_and_workers_are_killed_at_once(tmp_path: Path) -> None:
    with trainer(tmp_path) as (pid, others, _):
        assert len(list(tmp_path.glob("lit_ppo-*/*/cwd"))) == 2
        kill_at_once(pid, *others)
    wait_for(lambda: os.listdir(tmp_path) == [], "the removal", DEADLINE_S)


def test_directory_goes_with_the_trainer_when_the_sweeper_alone_was_killed(tmp_path: Path) -> None:
    directory = sweeper.RunDirectory(str(tmp_path))
    process = next(part for part in directory.close.peek()[2] if isinstance(part, subprocess.Popen))  # type: ignore[index]
    process.kill()
    directory.close()
    assert os.listdir(tmp_path) == []


def test_directory_goes_with_the_next_run_when_the_sweeper_was_killed_as_well(tmp_path: Path) -> None:
    with trainer(tmp_path) as (pid, others, sweepers):
        assert len(sweepers) == 1
        kill_at_once(pid, *others, *sweepers)
    [left] = tmp_path.iterdir()
    with trainer(tmp_path):
        wait_for(lambda: not left.exists(), "the removal", DEADLINE_S)
    wait_for(lambda: os.listdir(tmp_path) == [], "the removal", DEADLINE_S)


def number_of_no_process() -> int:
    with subprocess.Popen(["true"]) as ended:
        pass
    return ended.pid


def test_nothing_that_may_be_in_use_or_is_not_ours_is_removed(tmp_path: Path) -> None:
    nobody = number_of_no_process()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "file").touch()
    for name in ("lit_ppo", f"lit_ppo-{nobody}", f"lit_ppo-x-{nobody}", f"my-lit_ppo-{nobody}-1", f"lit_ppo-{os.getpid()}-1"):
        (tmp_path / name).mkdir()
    (tmp_path / f"lit_ppo-{nobody}-2").touch()
    (tmp_path / f"lit_ppo-{nobody}-3").symlink_to(tmp_path / "elsewhere")
    (tmp_path / f"lit_ppo-{nobody}-4").mkdir()
    (tmp_path / f"lit_ppo-{nobody}-5").mkdir()
    locked = os.open(tmp_path / f"lit_ppo-{nobody}-4", os.O_RDONLY)  # by a run whose number means nothing here
    fcntl.flock(locked, fcntl.LOCK_EX)
    before = set(os.listdir(tmp_path))
    sweeper.remove_orphans(str(tmp_path))
    os.close(locked)
    assert set(os.listdir(tmp_path)) == before - {f"lit_ppo-{nobody}-5"}
    assert (tmp_path / "elsewhere" / "file").exists()


def test_temporary_directory_that_cannot_be_listed_is_no_reason_not_to_start(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str) -> None:
        raise PermissionError(path)

    monkeypatch.setattr(sweeper.os, "scandir", refuse)
    sweeper.remove_orphans("/tmp")


def test_temporary_directory_that_is_not_there_is_the_callers_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="TMPDIR: expected a directory that can be written"):
        Child(None, {})
