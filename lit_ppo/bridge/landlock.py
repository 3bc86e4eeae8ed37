"""The files that a confined worker may use, by Landlock (Linux 5.13; more of it in newer ones).

What it does not restrict is that a path exists: names, sizes and times of all files can be seen. What it cannot restrict,
such as changing the mode of a file, `system_calls` refuses.

Source: https://docs.kernel.org/userspace-api/landlock.html
"""

import ctypes
import os
import stat
import struct
import sys
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Final

from lit_ppo import PACKAGE
from lit_ppo.bridge import kernel
from lit_ppo.run_lock import LOCK_NAME

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # system calls, the same for every kind of computer
_ASK_FOR_VERSION: Final = 1
_RULE_PATH_BENEATH: Final = 1

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_TRUNCATE, _IOCTL_DEV = 1 << 14, 1 << 15
_READ: Final = _EXECUTE | _READ_FILE | _READ_DIR
_OF_FILES: Final = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV  # what a rule for a single file may say
# Landlock's version: the rights on files that it knows. What is known is refused, unless a rule allows it.
_KNOWN: Final = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 5: (1 << 16) - 1}
# From version 6: no signals to processes outside, no abstract sockets of theirs.
_SCOPES: Final = {6: 0b11}
_RULESET_BYTES: Final = {1: 8, 4: 16, 6: 24}

_SYSTEM: Final = (
    *("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/nix/store", "/gnu/store", "/sys", "/proc"),
    *("/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/ld.so.preload", "/etc/alternatives"),
    *("/etc/localtime", "/etc/timezone", "/etc/os-release", "/etc/passwd", "/etc/group", "/etc/nsswitch.conf", "/etc/hosts"),
    *("/etc/host.conf", "/etc/mime.types", "/etc/fonts", "/etc/glvnd", "/etc/vulkan", "/etc/drirc"),
)
_DEVICES: Final = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")


def confine(read: Iterable[str], write: Iterable[str], start: str = "", modules: Collection[str] = ()) -> None:
    """Allow this process, and all that it starts, the system, its interpreter, its import path, and what is named.

    Args:
        read: Files and directories that may be read and executed, with all that they contain.
        write: Those that may be changed as well.
        start: Working directory of the trainer. Although it is on the import path, it is closed; if one of the modules is
            there, it is open but for links, runs, and what is hidden, such as `.env`.
        modules: Top-level names of the environment's modules.

    Raises:
        OSError: The kernel has no Landlock, or a path that is named is not there.
    """
    version = kernel.system_call(_CREATE_RULESET, None, 0, _ASK_FOR_VERSION)
    known = _newest(_KNOWN, version)
    attributes = struct.pack("<QQQ", known, 0, _newest(_SCOPES, version))[: _newest(_RULESET_BYTES, version)]
    ruleset = kernel.system_call(_CREATE_RULESET, ctypes.create_string_buffer(attributes, len(attributes)), len(attributes), 0)
    try:
        places = _of_interpreter()
        start = os.path.realpath(start) if start else ""
        for path in filter(os.path.exists, (*_SYSTEM, *(place for place in places if os.path.realpath(place) != start))):
            _allow(ruleset, path, _READ)
        if start in map(os.path.realpath, places) and (own := _open_parts(start, modules)):
            _allow(ruleset, start, _READ_DIR)
            for path in filter(os.path.exists, own):
                _allow(ruleset, path, _READ)
        for path in filter(os.path.exists, _DEVICES):
            _allow(ruleset, path, (_READ_FILE | _WRITE_FILE | _TRUNCATE | _IOCTL_DEV) & known)
        for path in read:
            _allow(ruleset, path, _READ)
        for path in write:
            _allow(ruleset, path, known)
        kernel.system_call(_RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)


def _newest(by_version: dict[int, int], version: int) -> int:
    """The value of the newest version that is not newer than this one; 0 if there is none."""
    return by_version.get(max((known for known in by_version if known <= version), default=0), 0)


def _of_interpreter() -> list[str]:
    """Where Python and its modules are; a place that contains the home directory is left out."""
    home = os.path.realpath(os.path.expanduser("~"))
    executable = sys.executable
    places = {
        *(sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix),
        *(os.path.dirname(executable), os.path.dirname(os.path.realpath(executable))),
        *(entry for entry in os.environ.get("LD_LIBRARY_PATH", "").split(":") if os.path.isabs(entry)),
        *filter(os.path.isabs, sys.path),
        PACKAGE,
    }
    return [place for place in sorted(places) if not Path(home).is_relative_to(os.path.realpath(place))]


def _open_parts(directory: str, modules: Collection[str]) -> list[str]:
    """Readable parts of a working directory; none if it holds none of the modules."""
    with os.scandir(directory) as entries:
        paths = {entry.name: entry.path for entry in entries if not entry.name.startswith(".") and not entry.is_symlink()}
    code = {name for name in paths if name.partition(".")[0] in modules}
    return [path for name, path in paths.items() if name in code or not _has_runs(Path(path))] if code else []


def _has_runs(path: Path) -> bool:
    """True for the directory of a run and for a directory of runs."""
    return any(next(path.glob(f"{above}{LOCK_NAME}"), None) for above in ("", "*/", "*/*/"))


def _allow(ruleset: int, path: str, rights: int) -> None:
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            rights &= _OF_FILES
        rule = struct.pack("<Qi", rights, descriptor)
        kernel.system_call(_ADD_RULE, ruleset, _RULE_PATH_BENEATH, ctypes.create_string_buffer(rule, len(rule)), 0)
    finally:
        os.close(descriptor)
