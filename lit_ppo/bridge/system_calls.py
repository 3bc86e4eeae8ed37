"""The system calls that a confined worker may not make, as a seccomp filter in classic BPF.

A process cannot take off a filter, and passes it on to all that it starts. So a filter is also the mark by which the trainer
knows what a worker has left behind (`marks`), and a worker without a sandbox has one that allows everything.

A call that is refused fails with EPERM, as if the user had no right to it.
"""

import ctypes
import errno
import os
import platform
import struct
import sys
from typing import Final, NamedTuple

from lit_ppo.bridge import kernel

# system call: its number on x86_64, on aarch64 (0: it does not exist there)
_NUMBERS: Final[dict[str, tuple[int, int]]] = {
    # other processes: their memory, descriptors, signals, limits and scheduling
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "process_mrelease": (448, 448),
    "pidfd_getfd": (438, 438),
    "kcmp": (312, 272),
    "move_pages": (279, 239),
    "migrate_pages": (256, 238),
    "kill": (62, 129),
    "tgkill": (234, 131),
    "tkill": (200, 130),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "pidfd_send_signal": (424, 424),
    "fcntl": (72, 25),
    "ioctl": (16, 29),
    "prlimit64": (302, 261),
    "setpriority": (141, 140),
    "ioprio_set": (251, 30),
    "sched_setparam": (142, 118),
    "sched_setscheduler": (144, 119),
    "sched_setaffinity": (203, 122),
    "sched_setattr": (314, 274),
    # sockets, and what could open one past this filter
    "socket": (41, 198),
    "socketpair": (53, 199),
    "connect": (42, 203),
    "bind": (49, 200),  # one of a pair has no need of a name, nor of peers
    "listen": (50, 201),
    "accept": (43, 202),
    "accept4": (288, 242),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    # namespaces and mounts, in which a process has capabilities again
    "setns": (308, 268),
    "unshare": (272, 97),
    "clone": (56, 220),
    "clone3": (435, 435),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "open_tree_attr": (467, 467),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    # parts of the kernel that no environment needs
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "fanotify_init": (300, 262),
    "inotify_add_watch": (254, 27),  # of any file, and with the names of those that are made
    # shared by all processes of a user, by numbers and names that Landlock does not know
    "shmget": (29, 194),
    "shmat": (30, 196),
    "shmctl": (31, 195),
    "semget": (64, 190),
    "semctl": (66, 191),
    "semop": (65, 193),
    "semtimedop": (220, 192),
    "msgget": (68, 186),
    "msgctl": (71, 187),
    "msgsnd": (69, 189),
    "msgrcv": (70, 188),
    "mq_open": (240, 180),
    "mq_unlink": (241, 181),
    # files: what Landlock does not look at, and would be possible everywhere
    "chmod": (90, 0),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
    "chown": (92, 0),
    "fchown": (93, 55),
    "lchown": (94, 0),
    "fchownat": (260, 54),
    "utime": (132, 0),
    "utimes": (235, 0),
    "futimesat": (261, 0),
    "utimensat": (280, 88),
    "truncate": (76, 45),  # before Linux 6.2
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
    "setxattrat": (463, 463),
    "getxattr": (191, 8),
    "lgetxattr": (192, 9),
    "fgetxattr": (193, 10),
    "getxattrat": (464, 464),
    "listxattr": (194, 11),
    "llistxattr": (195, 12),
    "flistxattr": (196, 13),
    "listxattrat": (465, 465),
    "removexattr": (197, 14),
    "lremovexattr": (198, 15),
    "fremovexattr": (199, 16),
    "removexattrat": (466, 466),
    "file_getattr": (468, 468),
    "file_setattr": (469, 469),
}
_SECCOMP: Final = {"x86_64": 317, "aarch64": 277}  # the number of seccomp(2)
_ARCHITECTURES: Final = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # as seccomp names them
_SET_MODE_FILTER: Final = 1
_FILTER_FLAG_SPEC_ALLOW: Final = 4  # else Linux before 5.16 slows down every process that has a filter

_NEW_NAMESPACES: Final = 0x7E020000  # all CLONE_NEW* flags that clone has
_F_SETOWN, _F_SETSIG, _F_SETOWN_EX, _F_SETLEASE = 8, 10, 15, 1024
_FIOSETOWN, _SIOCSPGRP, _TIOCSTI, _TIOCLINUX = 0x8901, 0x8902, 0x5412, 0x541C
_AF_UNIX, _SOCK_TYPE, _SOCK_STREAM, _SOCK_SEQPACKET = 1, 0xF, 1, 5
_PROCESS_PRIORITY, _PROCESS_IO_PRIORITY = 0, 1


class _Condition(NamedTuple):
    """What must hold for an argument of a call, as an unsigned number of 32 bits.

    Attributes:
        argument: Its position, from 0.
        values: Those that are meant.
        is_among: Whether it must be one of them, or none.
        mask: The bits that are looked at.
    """

    argument: int
    values: tuple[int, ...]
    is_among: bool = True
    mask: int = 0xFFFFFFFF


def _conditions(pid: int) -> dict[str, tuple[_Condition, ...]]:
    """The calls that are allowed under conditions; all others in `_NUMBERS` are refused always."""
    itself = (0, pid)
    on_itself = {"prlimit64", "sched_setparam", "sched_setscheduler", "sched_setaffinity", "sched_setattr"}
    return {
        "kill": (_Condition(0, (pid,)),),  # 0 is the whole group
        "tgkill": (_Condition(0, (pid,)),),
        **{name: (_Condition(0, itself),) for name in on_itself},
        "setpriority": (_Condition(0, (_PROCESS_PRIORITY,)), _Condition(1, itself)),
        "ioprio_set": (_Condition(0, (_PROCESS_IO_PRIORITY,)), _Condition(1, itself)),
        "fcntl": (_Condition(1, (_F_SETOWN, _F_SETSIG, _F_SETOWN_EX, _F_SETLEASE), is_among=False),),
        "ioctl": (_Condition(1, (_FIOSETOWN, _SIOCSPGRP, _TIOCSTI, _TIOCLINUX), is_among=False),),
        # a datagram socket could send to any other
        "socketpair": (_Condition(0, (_AF_UNIX,)), _Condition(1, (_SOCK_STREAM, _SOCK_SEQPACKET), mask=_SOCK_TYPE)),
        "clone": (_Condition(0, (0,), mask=_NEW_NAMESPACES),),
    }


# classic BPF: opcodes, and offsets into struct seccomp_data
_LOAD, _AND, _RETURN = 0x20, 0x54, 0x06
_JUMP_EQUAL, _JUMP_GREATER_EQUAL = 0x15, 0x35
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT, _ARGUMENT_BYTES = 0, 4, 16, 8
_ALLOW, _FAIL_WITH = 0x7FFF0000, 0x00050000
_X32_CALLS: Final = 0x40000000
_Instruction = tuple[int, int, int, int]  # opcode, where to jump if true, if false (relative), value
_REFUSE: Final[_Instruction] = (_RETURN, 0, 0, _FAIL_WITH | errno.EPERM)


def confine() -> None:
    """Refuse the calls above, in this process and all that it starts.

    Raises:
        OSError: The kernel has no filters, or there is no filter for this kind of computer.
    """
    _install(_program(os.getpid()))


def mark() -> None:
    """Put on a filter that allows everything.

    Raises:
        OSError: As for `confine`.
    """
    _install([(_RETURN, 0, 0, _ALLOW)])


def marks(process: int | str) -> int:
    """How many filters a process has, by its number or `self`; 0 if the kernel does not say.

    Raises:
        OSError: There is no such process.
    """
    with open(f"/proc/{process}/status", "rb") as status:
        for line in status:
            if line.startswith(b"Seccomp_filters:"):
                return int(line.split()[1])
    return 0


def _program(pid: int) -> list[_Instruction]:
    machine = platform.machine()
    if machine not in _ARCHITECTURES or sys.byteorder != "little":
        raise OSError(errno.ENOSYS, f"no filter for {machine}")
    column = list(_ARCHITECTURES).index(machine)
    program: list[_Instruction] = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_JUMP_EQUAL, 1, 0, _ARCHITECTURES[machine]),
        _REFUSE,
        (_LOAD, 0, 0, _NUMBER),
        (_JUMP_GREATER_EQUAL, 0, 1, _X32_CALLS),
        _REFUSE,
    ]
    conditions = _conditions(pid)
    for name, numbers in _NUMBERS.items():
        if name == "clone3":  # its flags are in memory; without it the C library uses clone
            body: list[_Instruction] = [(_RETURN, 0, 0, _FAIL_WITH | errno.ENOSYS)]
        elif name in conditions:
            body = [*(step for condition in conditions[name] for step in _refusal_unless(condition)), (_RETURN, 0, 0, _ALLOW)]
        else:
            body = [_REFUSE]
        if numbers[column]:
            program += [(_JUMP_EQUAL, 0, len(body), numbers[column]), *body]
    return [*program, (_RETURN, 0, 0, _ALLOW)]


def _refusal_unless(condition: _Condition) -> list[_Instruction]:
    """Go on behind these instructions if the condition holds, and refuse the call otherwise."""
    load: _Instruction = (_LOAD, 0, 0, _FIRST_ARGUMENT + _ARGUMENT_BYTES * condition.argument)
    steps: list[_Instruction] = [load, (_AND, 0, 0, condition.mask)]
    for left in range(len(condition.values) - 1, -1, -1):  # how many comparisons follow
        value = condition.values[len(condition.values) - 1 - left]
        if condition.is_among:
            steps.append((_JUMP_EQUAL, left + 1, 0, value))
        else:
            steps.append((_JUMP_EQUAL, left, 0 if left else 1, value))
    return [*steps, _REFUSE]


def _install(program: list[_Instruction]) -> None:
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *instruction) for instruction in program))
    header = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(program), ctypes.addressof(code)))
    number = _SECCOMP.get(platform.machine())
    if number is None:
        raise OSError(errno.ENOSYS, f"no filter for {platform.machine()}")
    kernel.system_call(number, _SET_MODE_FILTER, _FILTER_FLAG_SPEC_ALLOW, header)
