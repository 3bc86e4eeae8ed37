"""Calls to the Linux kernel that Python's standard library lacks. Each raises OSError if the kernel refuses it."""

import ctypes
import os
from typing import Final

# options of prctl(2)
PARENT_DEATH_SIGNAL: Final = 1
DUMPABLE: Final = 4
DROP_FROM_BOUNDING_SET: Final = 24
CHILD_SUBREAPER: Final = 36
NO_NEW_PRIVILEGES: Final = 38

_libc = ctypes.CDLL(None, use_errno=True)
_CAPABILITIES_VERSION: Final = 0x20080522  # 64 capabilities, in two halves


def prctl(option: int, value: int) -> None:
    """Change an attribute of this process."""
    _require_success(_libc.prctl(option, *(ctypes.c_ulong(number) for number in (value, 0, 0, 0))))


def system_call(number: int, *arguments: "int | ctypes.Array[ctypes.c_char] | None") -> int:
    """A system call by its number; what it returns."""
    _libc.syscall.restype = ctypes.c_long
    passed = [ctypes.c_long(argument) if isinstance(argument, int) else argument for argument in arguments]
    return _require_success(_libc.syscall(ctypes.c_long(number), *passed))


def unshare(flags: int) -> None:
    """Enter new namespaces; a new process namespace is for the children of this process."""
    _require_success(_libc.unshare(flags))


def mount(source: str | None, target: str, kind: str | None, flags: int) -> None:
    """Mount a file system."""
    names = [None if name is None else name.encode() for name in (source, target, kind)]
    _require_success(_libc.mount(*names, ctypes.c_ulong(flags), None))


def drop_capabilities() -> None:
    """Give up every capability for good: also those that a program could get back because its user is root."""
    for capability in range(64):
        try:
            prctl(DROP_FROM_BOUNDING_SET, capability)
        except OSError:  # there is no capability of this number, or this process has none that could be dropped
            continue
    header = (ctypes.c_uint32 * 2)(_CAPABILITIES_VERSION, 0)
    nothing = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; twice
    _require_success(_libc.capset(header, nothing))


def _require_success(result: int) -> int:
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
