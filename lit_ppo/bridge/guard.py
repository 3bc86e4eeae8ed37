"""The guard: a small process between trainer and worker, so that nothing of the worker outlives either.

`split()` forks before anything heavy is imported. The child returns and becomes the worker, in a process group of its own;
the parent stays as guard and sleeps until

- the trainer closes the worker's standard input (POLLHUP); or
- the trainer goes away, however it dies. That closes the pipe as well, unless the worker has opened it for writing through
  /proc; so the guard looks at the process, too; or
- the worker goes away.

Then it kills the worker's group and every descendant that was left behind (it is their subreaper, so even a daemon comes back
to it), removes the worker's private directory, and ends the way the worker ended. If the guard itself is killed, the kernel
kills the worker (PR_SET_PDEATHSIG), and what the worker had started comes back to the trainer, which is the next subreaper
(see `child`). A worker cannot look into its guard, whose memory is not dumpable.

With namespaces there is a third process, the guard's child and the worker's parent: the init of the process namespace.
"""

import os
import resource
import select
import signal
from collections.abc import Iterator
from typing import Any, NoReturn

from lit_ppo.bridge import kernel, namespaces, sandbox


def split(confinement: dict[str, Any]) -> dict[str, str]:
    """Fork; return in the worker, never in the guard.

    Args:
        confinement: `cwd`: working directory, null for an empty one that is removed at the end; `rlimits`: see `sandbox.limit`;
            `level`: see `sandbox.confine`; `read`, `write`, `start` and `modules`: see `landlock.confine`.

    Returns:
        The layers of the sandbox, as `sandbox.confine` reports them, and `error` if something is refused.
    """
    report: dict[str, str] = {}
    kernel.prctl(kernel.CHILD_SUBREAPER, 1)
    guard, trainer = os.pidfd_open(os.getpid()), os.pidfd_open(os.getppid())
    private = _make_private(confinement, report)
    level, has_namespaces = confinement["level"], False
    if level in sandbox.WITH_NAMESPACES:
        refused = namespaces.refusal()
        report["namespaces"] = sandbox.ON if refused is None else f"off ({refused})"
        if has_namespaces := refused is None:
            namespaces.enter()
    kernel.prctl(kernel.DUMPABLE, 0)
    status_read, status_write = os.pipe()
    child = os.fork()
    if child != 0:
        os.close(status_write)
        _guard(child, private, status_read, trainer)
    os.close(status_read)
    os.close(trainer)
    os.setpgid(0, 0)
    if has_namespaces:
        namespaces.enter_as_init()
        _end_with(guard)
        worker = os.fork()
        if worker != 0:
            namespaces.serve_as_init(worker, status_write)
        os.setpgid(0, 0)
    os.close(status_write)
    kernel.prctl(kernel.DUMPABLE, 1)
    try:
        sandbox.limit(confinement["rlimits"])
    except ValueError as error:
        report["error"] = str(error)
    files = {name: confinement[name] for name in ("read", "start", "modules")}
    files["write"] = [private, os.getcwd(), *confinement["write"]]
    report |= sandbox.confine(level, files, has_namespaces)
    if level in sandbox.NEEDED and (missing := sandbox.missing(report)):
        report.setdefault("error", f"sandbox={level}: {missing}; data.sandbox=best-effort goes without what this machine lacks")
    _end_with(guard)
    os.close(guard)
    return report


def _make_private(confinement: dict[str, Any], report: dict[str, str]) -> str:
    """Make the worker's private directory in TMPDIR, which then is a part of it, and go to where the worker works."""
    private = f"{os.environ['TMPDIR']}/{os.getpid()}"
    try:
        for path in (private, f"{private}/cwd", f"{private}/tmp"):
            os.mkdir(path, 0o700)
        os.environ["TMPDIR"] = f"{private}/tmp"
        os.chdir(f"{private}/cwd" if confinement["cwd"] is None else confinement["cwd"])
    except OSError as error:
        report["error"] = f"worker_cwd={confinement['cwd']}: {error}"
    return private


def _end_with(guard: int) -> None:
    """Let the kernel kill this process when its parent ends; end it now if the guard has ended before the kernel knew."""
    kernel.prctl(kernel.PARENT_DEATH_SIGNAL, signal.SIGKILL)
    ended = select.poll()
    ended.register(guard, select.POLLIN)
    if ended.poll(0):
        os._exit(1)


def _guard(child: int, private: str, status_fd: int, trainer: int) -> NoReturn:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    os.close(1)  # else the trainer would not see the end of the worker's replies
    os.close(2)
    ends = select.poll()
    ends.register(0, 0)  # no event but POLLHUP, which is always reported
    for process in (os.pidfd_open(child), trainer):
        ends.register(process, select.POLLIN)
    ends.poll()
    status = _kill_all(child)
    of_worker = namespaces.status_of_worker(status_fd)
    from lit_ppo.bridge.sweeper import remove_tree  # here, so that starting does not pay for it

    remove_tree(private)
    code = os.waitstatus_to_exitcode(status if of_worker is None else of_worker)
    if code < 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.signal(-code, signal.SIG_DFL) if -code not in (signal.SIGKILL, signal.SIGSTOP) else None
        os.kill(os.getpid(), -code)
    os._exit(code if code >= 0 else 1)


def _kill_all(child: int) -> int:
    """Kill and reap our child and all that was left behind; the child's wait status."""
    ended, status = os.waitpid(child, os.WNOHANG)
    try:
        os.killpg(child, signal.SIGKILL)
    except ProcessLookupError:
        pass  # the whole group is gone already
    if not ended:
        try:
            os.kill(child, signal.SIGKILL)  # it may not have reached its own group yet
        except ProcessLookupError:
            pass
        _, status = os.waitpid(child, 0)
    while left := [pid for pid, _ in children()]:
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            break
    return status


def children() -> Iterator[tuple[int, int]]:
    """Process number and session of each child of this process: orphans come back to a subreaper from every session."""
    me = os.getpid()
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/stat", "rb") as stat:
                    _, parent, _, session = stat.read().rsplit(b")", 1)[1].split()[:4]
            except (OSError, ValueError, IndexError):
                continue  # it ended while we looked
            if int(parent) == me:
                yield int(entry), int(session)
