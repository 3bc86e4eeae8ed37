"""Namespaces for a worker: users, processes, mounts, network and System V objects of its own.

The guard enters the first two (`enter`), so its child is process 1 of the new process namespace: a small init, which enters the
others (`enter_as_init`), starts the worker and says how it ended (`serve_as_init`). When init ends, the kernel kills everything
in the namespace.

A kernel, a container or a security module may refuse any of these steps. So all of them are tried first, in processes of their
own (`refusal`): half of them would be of no use, since a process namespace without its own /proc shows wrong numbers.
"""

import os
import signal
import struct
from collections.abc import Callable
from typing import Final, NoReturn

from lit_ppo.bridge import kernel

_USERS, _PROCESSES = 0x10000000, 0x20000000
_INSIDE: Final = {"mount": 0x00020000, "System V": 0x08000000, "network": 0x40000000}
_SLAVE, _RECURSIVE = 1 << 19, 1 << 14
_NO_SETUID, _NO_DEVICES, _NO_PROGRAMS = 2, 4, 8
_STATUS: Final = struct.Struct("i")
_SHARED_MEMORY: Final = "/dev/shm"


class _RefusedError(Exception):
    """The kernel refused a namespace or a mount."""


def refusal() -> str | None:
    """Which namespace the kernel refuses, and why; None if it gives all of them."""
    read, write = os.pipe()
    trial = os.fork()
    if trial == 0:
        _report(write, _try_all)
    os.close(write)
    with open(read, "rb") as pipe:
        refused = pipe.read().decode("utf-8", "replace")
    os.waitpid(trial, 0)
    return refused or None


def _try_all() -> None:
    enter()
    init = os.fork()
    if init == 0:
        enter_as_init()
        return  # to `_report`, as its parent does
    os.waitpid(init, 0)


def _report(pipe: int, step: Callable[[], None]) -> NoReturn:
    """Do something, write what was refused, and end this process."""
    try:
        step()
    except (_RefusedError, OSError) as error:
        os.write(pipe, str(error).encode())
    finally:
        os._exit(0)


def enter() -> None:
    """Enter new namespaces of users and, for the children of this process, of processes."""
    uid, gid = os.getuid(), os.getgid()
    _unshare("user", _USERS)
    # stay who we were, as far as files are concerned
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)
    _unshare("process", _PROCESSES)


def enter_as_init() -> None:
    """Enter the other namespaces, with a /proc and shared memory of their own; in the first child of who has called `enter`."""
    for name, flag in _INSIDE.items():
        _unshare(name, flag)
    _mount(None, "/", None, _SLAVE | _RECURSIVE)  # what is mounted from here on stays here
    _mount("proc", "/proc", "proc", _NO_SETUID | _NO_DEVICES | _NO_PROGRAMS)
    if os.path.isdir(_SHARED_MEMORY):
        _mount("tmpfs", _SHARED_MEMORY, "tmpfs", _NO_SETUID | _NO_DEVICES)


def shared_memory() -> list[str]:
    """Directories that are a worker's own because it is in these namespaces."""
    return [path for path in (_SHARED_MEMORY,) if os.path.isdir(path)]


def serve_as_init(worker: int, status_fd: int) -> NoReturn:
    """Reap what ends; end with the worker, and write its wait status.

    The worker's pipes stay open here: so the trainer sees their end when the status is written, and not before.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    while True:
        ended, status = os.wait()
        if ended == worker:
            os.write(status_fd, _STATUS.pack(status))
            os._exit(0)


def status_of_worker(status_fd: int) -> int | None:
    """The wait status that init has written, once it has ended; None if it was killed before."""
    written = os.read(status_fd, _STATUS.size)
    return _STATUS.unpack(written)[0] if len(written) == _STATUS.size else None


def _unshare(name: str, flag: int) -> None:
    try:
        kernel.unshare(flag)
    except OSError as error:
        raise _RefusedError(f"{name} namespace: {error.strerror}") from error


def _mount(source: str | None, target: str, kind: str | None, flags: int) -> None:
    try:
        kernel.mount(source, target, kind, flags)
    except OSError as error:
        raise _RefusedError(f"mounting {kind or 'privately'} at {target}: {error.strerror}") from error
