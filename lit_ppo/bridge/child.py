"""The process behind a worker, as the kernel knows it: started, and ended with everything it started.

Our child is the guard, which forks the worker (see `guard`). Which processes are killed follows from what we started and from
the kernel's own numbers, never from what a worker says. This process is a subreaper: what a guard that was killed has left
behind becomes a child of ours. If its workers are in a sandbox, its memory is not dumpable: other processes of its user cannot
look into it, debuggers and profilers included, and it leaves no core dump.
"""

import errno
import fcntl
import os
import select
import signal
import subprocess
import weakref
from typing import Any, Final

from lit_ppo.bridge import guard, kernel, sweeper, system_calls
from lit_ppo.bridge.command import worker_command
from lit_ppo.errors import ConfigError

KILL_WAIT_S: Final = 2.0
_FIRST_FREE_DESCRIPTOR: Final = 3


class Child:
    """A guard and its worker.

    They are killed when this object is collected, and at the latest at the end of this process.

    Args:
        python: Interpreter to run it with; None for this one.
        confinement: As in `guard.split`.

    Raises:
        ConfigError: The interpreter cannot be run, there is no temporary directory, or this is not Linux.
    """

    def __init__(self, python: str | None, confinement: dict[str, Any]) -> None:
        if not hasattr(os, "pidfd_open") or not hasattr(os, "memfd_create"):
            raise ConfigError("lit_ppo's bridge needs Linux (memfd_create, pidfd_open)")
        _occupy_standard_descriptors()
        self.command = command, environment = worker_command(python, confinement)
        try:
            self._directory = sweeper.run_directory()  # kept for as long as this object is
        except OSError as error:
            raise ConfigError(f"TMPDIR: expected a directory that can be written: {error}") from error
        if confinement.get("level", "off") != "off":
            kernel.prctl(kernel.DUMPABLE, 0)
        self.frame_fd = _frame()
        _be_subreaper_for(+1)
        try:
            self._process = subprocess.Popen(
                [*command, "--frame-fd", str(self.frame_fd)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                env=environment | {"TMPDIR": self._directory.path},
                cwd="/",  # Python looks there for modules before our own code says where they are
                pass_fds=(self.frame_fd, self._directory.descriptor),
                start_new_session=True,
            )
        except OSError as error:
            _be_subreaper_for(-1)
            os.close(self.frame_fd)
            raise ConfigError(f"data.python={command[0]}: expected a Python interpreter: {error.strerror}") from error
        try:
            self.pidfd = os.pidfd_open(self._process.pid)
        except OSError as error:  # refused, or no descriptor is left
            self._process.kill()
            _release(self._process, [self.frame_fd])
            _be_subreaper_for(-1)
            raise _refused("pidfd_open", error) from error
        self._release = weakref.finalize(self, _end_and_release, self._process, self._directory, self.pidfd, self.frame_fd)
        assert self._process.stdin is not None and self._process.stdout is not None and self._process.stderr is not None
        self.requests, self.replies = self._process.stdin.fileno(), self._process.stdout.fileno()
        self.stderr = self._process.stderr.fileno()

    @property
    def guard_pid(self) -> int:
        """Process number of the guard."""
        return self._process.pid

    def wait(self, timeout_s: float) -> bool:
        """Whether the process has ended within the time."""
        return _has_ended(self.pidfd, timeout_s)

    def end(self) -> int:
        """End guard and worker now, and all that the worker started; how the worker ended, as `Popen.returncode`."""
        _end(self._process, self.pidfd)
        return self._process.returncode

    def release(self) -> None:
        """Close all descriptors, after `end`."""
        self._release()


def _frame() -> int:
    """An anonymous file that can be sealed.

    Raises:
        ConfigError: The system refuses it.
    """
    try:
        frame = os.memfd_create("lit_ppo-frame", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    except OSError as error:
        raise _refused("memfd_create", error) from error
    try:
        fcntl.fcntl(frame, fcntl.F_ADD_SEALS, 0)
    except OSError as error:
        os.close(frame)
        raise _refused("F_ADD_SEALS", error) from error
    return frame


def _refused(call: str, error: OSError) -> Exception:
    """What to raise for a call that the kernel, or the container around this process, refuses; else the error itself."""
    if error.errno not in (errno.ENOSYS, errno.EPERM, errno.EINVAL, errno.EACCES):
        return error
    return ConfigError(
        f"data.bridge=process: this system refuses {call}: {error.strerror}; use Linux 5.9 or newer without a container that "
        "refuses it, or data.bridge=inprocess, which protects the run from nothing"
    )


def _occupy_standard_descriptors() -> None:
    """Open the standard descriptors that are closed, so that no pipe or frame of ours gets the number of one."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) < _FIRST_FREE_DESCRIPTOR:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)


_num_guards = 0


def _be_subreaper_for(more: int) -> None:
    """Count the guards; while there are any, what they could leave behind comes back to this process."""
    global _num_guards
    _num_guards += more
    kernel.prctl(kernel.CHILD_SUBREAPER, int(_num_guards > 0))


def _end(process: "subprocess.Popen[bytes]", pidfd: int) -> None:
    """End a guard, and by it its worker; afterwards `returncode` says how the worker ended."""
    assert process.stdin is not None
    process.stdin.close()  # the guard sees this, kills everything and ends
    if process.returncode is not None:
        return
    if not _has_ended(pidfd, KILL_WAIT_S):  # the guard itself hangs or is stopped
        process.kill()
        _has_ended(pidfd, None)
    # Until the guard is reaped, its number is that of the session that we started, and of no other.
    try:
        how = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    except ChildProcessError:  # other code of this process has reaped it
        how = None
    if how is not None and how.si_code != os.CLD_EXITED:
        _kill_orphans(process.pid)  # a guard that was killed has left behind what the worker had started
    process.wait()


def _has_ended(pidfd: int, timeout_s: float | None) -> bool:
    """Wait for a process to end, without reaping it."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(None if timeout_s is None else timeout_s * 1000))


def _kill_orphans(dead_guard: int) -> None:
    """Kill what a guard that was killed, and is not reaped yet, has left behind.

    All of it has become our children. Of our children those are meant that are in the guard's session, or in another one than
    ours and have more filters of system calls than we: a worker can leave its session, but cannot take off its filter.
    """
    own_session, own_marks, seen = os.getsid(0), system_calls.marks("self"), {dead_guard}
    while orphans := [
        pid
        for pid, session in guard.children()
        if pid not in seen and (session == dead_guard or (session != own_session and _marks(pid) > own_marks))
    ]:
        for pid in orphans:
            seen.add(pid)
            try:
                pidfd = os.pidfd_open(pid)
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                _has_ended(pidfd, KILL_WAIT_S)
                os.close(pidfd)
                os.waitpid(pid, os.WNOHANG)
            except (ProcessLookupError, ChildProcessError):
                continue  # other code of this process has reaped it


def _marks(pid: int) -> int:
    try:
        return system_calls.marks(pid)
    except OSError:
        return 0  # it has ended


def _end_and_release(process: "subprocess.Popen[bytes]", directory: sweeper.RunDirectory, pidfd: int, frame_fd: int) -> None:
    """End a guard and its worker, and release all that this process has of them."""
    _end(process, pidfd)
    if process.returncode < 0:  # a guard that was killed could not remove the worker's directory
        sweeper.remove_tree(f"{directory.path}/{process.pid}")
    _release(process, [pidfd, frame_fd])
    _be_subreaper_for(-1)


def _release(process: "subprocess.Popen[bytes]", descriptors: list[int]) -> None:
    """Close our ends of a process that ends or has ended."""
    for stream in (process.stdin, process.stdout, process.stderr):
        assert stream is not None
        stream.close()
    process.wait()
    for descriptor in descriptors:
        os.close(descriptor)
