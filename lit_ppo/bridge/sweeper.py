"""The directory of a run in which its workers have their private ones, and the process that removes it.

The sweeper is a small process of the trainer's. It sleeps until trainer, guards and workers have ended or were killed: each of
them holds the write end of its standard input. Then it removes the directory and ends. If it is killed as well, the directory
stays until the next run's sweeper starts: trainer and sweeper hold a lock on it, which the kernel releases when both are gone.

Run as a program, this file is the sweeper. It imports only what that needs.
"""

import fcntl
import os
import re
import select
import signal
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import subprocess

_NAME: Final = re.compile(r"lit_ppo-(\d+)-\w+")  # the trainer's process number, and something random
_END_WAIT_S: Final = 2.0


class RunDirectory:
    """A directory that goes when this object and all processes that hold `descriptor` are gone.

    Args:
        parent: Where to make it.

    Raises:
        OSError: It cannot be made.

    Attributes:
        path: The directory.
        descriptor: To be inherited by every process that uses the directory.
    """

    def __init__(self, parent: str) -> None:
        import subprocess  # the sweeper itself needs neither
        import tempfile
        import weakref

        self.parent, self.owner = parent, os.getpid()
        self.path = tempfile.mkdtemp(prefix=f"lit_ppo-{self.owner}-", dir=parent)
        lock = _lock(self.path)
        held = [] if lock is None else [lock]
        ends, self.descriptor = os.pipe()
        sweeper = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, self.path],
            stdin=ends,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={name: value for name, value in os.environ.items() if name == "LD_LIBRARY_PATH"},
            pass_fds=held,
            start_new_session=True,  # what is sent to the trainer's group is not for the sweeper
        )
        os.close(ends)
        self.close = weakref.finalize(self, _close, self.path, sweeper, [self.descriptor, *held])


def _close(path: str, sweeper: "subprocess.Popen[bytes]", descriptors: list[int]) -> None:
    """Let go of the directory, and wait until it is removed, unless another process uses it for longer."""
    import subprocess

    for descriptor in descriptors:
        os.close(descriptor)
    try:
        if sweeper.wait(_END_WAIT_S):  # it was killed
            remove_tree(path)
    except subprocess.TimeoutExpired:
        pass


_current: RunDirectory | None = None


def run_directory() -> RunDirectory:
    """The one of this process, made when it is first asked for.

    Raises:
        OSError: It cannot be made.
    """
    global _current
    parent = os.path.abspath(os.environ.get("TMPDIR") or "/tmp")
    if _current is None or (_current.owner, _current.parent) != (os.getpid(), parent) or not os.path.isdir(_current.path):
        _current = RunDirectory(parent)
    return _current


def remove_tree(directory: str) -> None:
    """Remove a directory with all that a worker has left in it, as far as this user may.

    A worker can nest directories more deeply than a path, a recursion or the number of open files reaches: so only one of them
    is open here at a time. Those that it has closed by their mode are opened.
    """
    here = _opened(directory)
    if here is None:
        return
    subdirectories = _emptied(here)
    above: list[tuple[str, list[str]]] = []  # of each level: the subdirectory that we are in, and those that follow
    while subdirectories or above:
        if subdirectories:
            name = subdirectories.pop()
            if (inner := _opened(name, here)) is not None:
                os.close(here)
                above.append((name, subdirectories))
                here, subdirectories = inner, _emptied(inner)
            continue
        outer = os.open("..", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=here)
        os.close(here)
        here = outer
        name, subdirectories = above.pop()
        with suppress(OSError):
            os.rmdir(name, dir_fd=here)
    os.close(here)
    with suppress(OSError):
        os.rmdir(directory)


def _opened(name: str, within: int | None = None) -> int | None:
    """A descriptor of a directory that may be changed; None if this user may not."""
    try:
        os.chmod(name, 0o700, dir_fd=within)
        return os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=within)
    except OSError:
        return None


def _emptied(directory: int) -> list[str]:
    """Remove the files of a directory; its subdirectories."""
    subdirectories = []
    with os.scandir(directory) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                subdirectories.append(entry.name)
                continue
            with suppress(OSError):
                os.unlink(entry.name, dir_fd=directory)
    return subdirectories


def remove_orphans(parent: str) -> None:
    """Remove directories of runs whose trainer and sweeper were both killed; one that may be in use stays.

    Args:
        parent: Where such directories are.
    """
    try:
        entries = list(os.scandir(parent))
    except OSError:  # it may be written to, but not listed
        return
    for entry in entries:
        name = _NAME.fullmatch(entry.name)
        if name is None or os.path.exists(f"/proc/{name[1]}"):
            continue
        try:
            # without a process of that number it may still be in use, in another process namespace: then it is locked
            if entry.stat(follow_symlinks=False).st_uid == os.getuid() and (lock := _lock(entry.path)) is not None:
                remove_tree(entry.path)
                os.close(lock)
        except OSError:
            continue  # no directory, or another sweeper was faster


def _lock(directory: str) -> int | None:
    """A descriptor that holds the lock on a directory; None if another process holds it, or the file system has no locks."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _sweep(directory: str) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    remove_orphans(os.path.dirname(directory))
    ends = select.poll()
    ends.register(0, 0)  # no event but POLLHUP, which is always reported: what a worker may write is not read
    ends.poll()
    remove_tree(directory)


if __name__ == "__main__":
    _sweep(sys.argv[1])
