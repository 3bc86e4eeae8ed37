"""The rights that a worker gives up before it loads any environment code.

Limits (`resource` module) as the user sets them. With `strict`, in addition:

- `no_new_privs`: no program it starts gains rights (setuid, file capabilities);
- `network_namespace`: no network interface at all, where the kernel lets us make a namespace;
- `seccomp`: no sockets, no signals to other processes, no looking into their memory; such calls fail with EPERM.

A layer that the kernel refuses is left out and reported as off: `apply_strict` says which are really on.
"""

import ctypes
import os
import platform
import resource
import struct
from typing import Final

_PR_SET_NO_NEW_PRIVS: Final = 38
_PR_SET_SECCOMP: Final = 22
_SECCOMP_MODE_FILTER: Final = 2
_CLONE_NEWUSER: Final = 0x10000000
_CLONE_NEWNET: Final = 0x40000000

# seccomp: architecture number, then the numbers of its system calls
_DENIED: Final = (
    "socket",
    "connect",
    "ptrace",
    "process_vm_readv",
    "process_vm_writev",
    "tkill",
    "rt_sigqueueinfo",
    "rt_tgsigqueueinfo",
    "pidfd_send_signal",
    "io_uring_setup",  # could open sockets past the filter
)
_ONLY_TO_ITSELF: Final = ("kill", "tgkill")
_SYSTEM_CALLS: Final = {
    "x86_64": (
        0xC000003E,
        {
            "socket": 41,
            "connect": 42,
            "kill": 62,
            "ptrace": 101,
            "rt_sigqueueinfo": 129,
            "tkill": 200,
            "tgkill": 234,
            "rt_tgsigqueueinfo": 297,
            "process_vm_readv": 310,
            "process_vm_writev": 311,
            "pidfd_send_signal": 424,
            "io_uring_setup": 425,
        },
    ),
    "aarch64": (
        0xC00000B7,
        {
            "ptrace": 117,
            "kill": 129,
            "tkill": 130,
            "tgkill": 131,
            "rt_sigqueueinfo": 138,
            "socket": 198,
            "connect": 203,
            "rt_tgsigqueueinfo": 240,
            "process_vm_readv": 270,
            "process_vm_writev": 271,
            "pidfd_send_signal": 424,
            "io_uring_setup": 425,
        },
    ),
}
# classic BPF: opcode, what it does; offsets into struct seccomp_data
_LOAD, _JUMP_EQUAL, _JUMP_GREATER_EQUAL, _RETURN = 0x20, 0x15, 0x35, 0x06
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16
_ALLOW, _FAIL_WITH_EPERM = 0x7FFF0000, 0x00050001
_X32_CALLS: Final = 0x40000000


def limit(limits: dict[str, int]) -> None:
    """Set resource limits by their names in the `resource` module without the prefix: `as`, `nofile`, `fsize`, ...

    Raises:
        ValueError: There is no such limit, or it may not be set; the message names it.
    """
    for name, value in limits.items():
        number = getattr(resource, f"RLIMIT_{name.upper()}", None)
        if number is None:
            known = sorted(key[7:].lower() for key in vars(resource) if key.startswith("RLIMIT_"))
            raise ValueError(f"rlimits: expected one of {', '.join(known)}, got {name!r}")
        try:
            resource.setrlimit(number, (value, value))
        except (OSError, ValueError) as error:
            raise ValueError(f"rlimits: {name}={value} cannot be set: {error}") from error


def apply_strict() -> dict[str, str]:
    """Apply all layers; `on` for each, or why it is off."""
    libc = ctypes.CDLL(None, use_errno=True)
    layers = {"network_namespace": _leave_network(libc)}
    layers["no_new_privs"] = _outcome(libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    layers["seccomp"] = _filter_system_calls(libc)
    return layers


def _outcome(result: int) -> str:
    return "on" if result == 0 else f"off ({os.strerror(ctypes.get_errno())})"


def _leave_network(libc: ctypes.CDLL) -> str:
    if libc.unshare(_CLONE_NEWNET) == 0:
        return "on"
    uid, gid = os.getuid(), os.getgid()
    outcome = _outcome(libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET))
    if outcome == "on":  # stay who we were, as far as files are concerned
        for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    return outcome


def _filter_system_calls(libc: ctypes.CDLL) -> str:
    if platform.machine() not in _SYSTEM_CALLS:
        return f"off (no filter for {platform.machine()})"
    architecture, numbers = _SYSTEM_CALLS[platform.machine()]
    # each entry: opcode, where to jump if true, if false (relative), value
    program = [(_LOAD, 0, 0, _ARCHITECTURE), (_JUMP_EQUAL, 1, 0, architecture), (_RETURN, 0, 0, _FAIL_WITH_EPERM)]
    program += [(_LOAD, 0, 0, _NUMBER), (_JUMP_GREATER_EQUAL, 0, 1, _X32_CALLS), (_RETURN, 0, 0, _FAIL_WITH_EPERM)]
    for name in _DENIED:
        program += [(_JUMP_EQUAL, 0, 1, numbers[name]), (_RETURN, 0, 0, _FAIL_WITH_EPERM)]
    for name in _ONLY_TO_ITSELF:
        program += [
            (_JUMP_EQUAL, 0, 4, numbers[name]),
            (_LOAD, 0, 0, _FIRST_ARGUMENT),
            (_JUMP_EQUAL, 0, 1, os.getpid()),
            (_RETURN, 0, 0, _ALLOW),
            (_RETURN, 0, 0, _FAIL_WITH_EPERM),
        ]
    program.append((_RETURN, 0, 0, _ALLOW))
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *instruction) for instruction in program))
    header = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(program), ctypes.addressof(code)))
    return _outcome(libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, header, 0, 0))
