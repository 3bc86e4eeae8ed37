"""One run for each directory: the second is refused, and a dead owner's lock is nobody's."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lit_ppo.callbacks.run_checkpoint import RunCheckpoint
from lit_ppo.errors import CheckpointError, ConfigError
from lit_ppo.run_lock import RunLock
from tests.runs import bare_trainer, small_module

_HOLD = """
import sys, pathlib
from lit_ppo.run_lock import RunLock
lock = RunLock(pathlib.Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def owner(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Another process that holds the lock of `tmp_path`."""
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[1],
    )
    with process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == b"held\n"
            yield process
        finally:
            process.kill()


def test_second_run_is_refused_and_told_whose_directory_it_is(owner: subprocess.Popen[bytes], tmp_path: Path) -> None:
    descriptors = os.listdir("/proc/self/fd")
    with pytest.raises(ConfigError) as caught:
        RunLock(tmp_path)
    assert str(caught.value) == (
        f"checkpoint.dirpath={tmp_path}: the run of process {owner.pid} writes there; wait for it or choose another directory"
    )
    assert os.listdir("/proc/self/fd") == descriptors


def test_lock_of_a_dead_owner_is_taken_over(owner: subprocess.Popen[bytes], tmp_path: Path) -> None:
    owner.kill()
    owner.wait()
    lock = RunLock(tmp_path)
    assert (tmp_path / ".lock").read_text() == f"{os.getpid()}\n"
    lock.release()


def test_lock_is_free_once_it_was_released(tmp_path: Path) -> None:
    first = RunLock(tmp_path / "made" / "for it")
    with pytest.raises(ConfigError, match=f"the run of process {os.getpid()} writes there"):
        RunLock(tmp_path / "made" / "for it")
    first.release()
    first.release()
    RunLock(tmp_path / "made" / "for it").release()


def test_lock_is_not_inherited_by_a_child(tmp_path: Path) -> None:
    """Else a worker that outlives its trainer would keep the next run out."""
    lock = RunLock(tmp_path)
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, close_fds=False):
        lock.release()
        RunLock(tmp_path).release()


def test_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=r"file: cannot be written: .* \(errno (17|20)\)"):
        RunLock(tmp_path / "file")


def test_run_that_takes_the_directory_removes_what_a_killed_one_left_half_written(tmp_path: Path) -> None:
    for name in (".last.ckpt.77.tmp", ".last.previous.ckpt.77.tmp", "mine.tmp", "last.ckpt"):
        (tmp_path / name).touch()
    callback = RunCheckpoint(str(tmp_path))
    callback.setup(bare_trainer(1, callback), small_module(), "fit")
    callback.teardown(bare_trainer(1), small_module(), "fit")
    assert {path.name for path in tmp_path.iterdir()} == {".lock", "mine.tmp", "last.ckpt"}
