"""The guard: a small process between trainer and worker, so that nothing of the worker outlives either.

`split()` forks before anything heavy is imported. The child returns and becomes the worker, in a process group of its own;
the parent stays as guard and sleeps until

- the trainer goes away, however it dies: the last write end of the worker's standard input closes (POLLHUP); or
- the worker goes away.

Then it kills the worker's group and every descendant that was left behind (it is their subreaper, so even a daemon comes back
to it), and ends the way the worker ended. If the guard itself is killed, the kernel kills the worker (PR_SET_PDEATHSIG); the
worker's private directory is then removed by the trainer or, if that was killed too, by the next guard that starts: guard and
worker hold a lock on it, which the kernel releases when both are gone.
"""

import ctypes
import fcntl
import os
import re
import resource
import select
import signal
import time
from typing import Any, Final

from lit_ppo.bridge import sandbox

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_CHILD_SUBREAPER: Final = 36
_PRIVATE_NAME: Final = re.compile(r"lit_ppo-(\d+)-\d+")  # the guard's process number, and when it started


def split(confinement: dict[str, Any]) -> dict[str, str]:
    """Fork; return in the worker, never in the guard.

    Args:
        confinement: `cwd`: working directory, null for an empty one that is removed at the end; `rlimits`: see `sandbox.limit`;
            `strict`: whether to apply `sandbox.apply_strict`.

    Returns:
        The layers of the sandbox, as `sandbox.apply_strict` reports them, and `error` if something cannot be had.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    report, private = {}, None
    try:
        if confinement["cwd"] is None:
            temporary = os.environ.get("TMPDIR", "/tmp")
            remove_orphans(temporary)
            private = f"{temporary}/lit_ppo-{os.getpid()}-{time.monotonic_ns()}"
            os.mkdir(private, 0o700)
            _lock(private)  # never closed: guard and worker hold it for life
        os.chdir(private or confinement["cwd"])
    except OSError as error:
        report["error"] = f"worker_cwd={confinement['cwd']}: {error}"
    guard = os.getpid()
    worker = os.fork()
    if worker == 0:
        os.setpgid(0, 0)
        try:
            sandbox.limit(confinement["rlimits"])
        except ValueError as error:
            report["error"] = str(error)
        if confinement["strict"]:
            report |= sandbox.apply_strict()
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)  # last: entering a user namespace takes it back
        if os.getppid() != guard:  # it died before the kernel knew whom to tell
            os._exit(1)
        return report
    _guard(worker, private)
    raise AssertionError("the guard does not return")


def remove_orphans(temporary: str) -> None:
    """Remove private directories whose guard and worker were both killed; one that may be in use stays.

    Args:
        temporary: Where such directories are.
    """
    try:
        entries = list(os.scandir(temporary))
    except OSError:  # it may be written to, but not listed
        return
    for entry in entries:
        name = _PRIVATE_NAME.fullmatch(entry.name)
        if name is None or os.path.exists(f"/proc/{name[1]}"):
            continue
        try:
            # without a process of that number it may still be in use, in another process namespace: then it is locked
            if entry.stat(follow_symlinks=False).st_uid == os.getuid() and (lock := _lock(entry.path)) is not None:
                import shutil  # here, so that starting does not pay for it

                shutil.rmtree(entry.path, ignore_errors=True)
                os.close(lock)
        except OSError:
            continue  # no directory, or another guard was faster


def _lock(directory: str) -> int | None:
    """A descriptor that holds the lock on a directory; None if another process holds it, or the file system has no locks."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _guard(worker: int, private: str | None) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    os.close(1)  # else the trainer would not see the end of the worker's replies
    os.close(2)
    ends = select.poll()
    ends.register(0, 0)  # no event but POLLHUP, which is always reported
    ends.register(os.pidfd_open(worker), select.POLLIN)
    ends.poll()
    status = _kill_all(worker)
    if private is not None:
        import shutil  # here, so that starting does not pay for it

        shutil.rmtree(private, ignore_errors=True)
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.signal(-code, signal.SIG_DFL) if -code not in (signal.SIGKILL, signal.SIGSTOP) else None
        os.kill(os.getpid(), -code)
    os._exit(code if code >= 0 else 1)


def _kill_all(worker: int) -> int:
    """Kill and reap the worker and all that it left behind; its wait status."""
    ended, status = os.waitpid(worker, os.WNOHANG)
    try:
        os.killpg(worker, signal.SIGKILL)
    except ProcessLookupError:
        pass  # the whole group is gone already
    if not ended:
        try:
            os.kill(worker, signal.SIGKILL)  # it may not have reached its own group yet
        except ProcessLookupError:
            pass
        _, status = os.waitpid(worker, 0)
    while children := _children():
        for child in children:
            try:
                os.kill(child, signal.SIGKILL)
            except ProcessLookupError:
                pass
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            break
    return status


def _children() -> list[int]:
    """Our children: orphans of the worker come back here from every session."""
    me, found = os.getpid(), []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/stat", "rb") as stat:
                    parent = int(stat.read().rsplit(b")", 1)[1].split()[1])
            except (OSError, IndexError):
                continue  # it ended while we looked
            if parent == me:
                found.append(int(entry))
    return found
