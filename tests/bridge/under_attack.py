"""A trainer whose environment is hostile: `python -m tests.bridge.under_attack SETTINGS` prints what its attacks achieve.

SETTINGS is JSON: `area`: a directory of its own; `level`; `user`: user number to become, null for none; `refuses`: system calls
that the kernel is made to refuse. A secret, which the attacker is not told, lies everywhere it looks.
"""

import ctypes
import errno
import json
import os
import pty
import resource
import secrets
import signal
import socket
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

from lit_ppo.bridge import kernel, system_calls
from lit_ppo.bridge.process import WorkerProcess
from lit_ppo.errors import ConfigError

_SLEEP_SIGNALS = {name: signal.SIGRTMIN + 1 + k for k, name in enumerate(("kill", "queue", "pidfd", "owner", "extended_owner"))}
_PRIVATE, _RECURSIVE, _BIND, _MOVE = 1 << 18, 1 << 14, 4096, 8192
_LOAD_NUMBER, _ALLOW = (0x20, 0, 0, 0), (0x06, 0, 0, 0x7FFF0000)  # of a filter of system calls


def become(settings: dict[str, Any]) -> None:
    """Be the user that is asked for, on a kernel that allows what is asked for, and begin again."""
    if os.getuid() == 0:
        os.setpriority(os.PRIO_PROCESS, 0, 0)  # a priority that can be lowered
    if settings["user"] is not None:
        _let_everybody_reach(Path(sys.base_prefix))
    for number in settings["refuses"]:
        if os.getuid() != 0:
            kernel.prctl(kernel.NO_NEW_PRIVILEGES, 1)
        refuse = [(0x15, 0, 1, number), (0x06, 0, 0, 0x00050000 | errno.EPERM)]
        system_calls._install([_LOAD_NUMBER, *refuse, _ALLOW])
    if settings["user"] is not None:
        os.setgroups([])
        os.setgid(settings["user"])
        os.setuid(settings["user"])
    # in a new program, since a change of user makes this one's memory not dumpable
    os.environ["SECRET"] = secret = secrets.token_hex(8)
    os.execv(sys.executable, [sys.executable, "-m", "tests.bridge.under_attack", json.dumps(settings), secret])


def _let_everybody_reach(directory: Path) -> None:
    """Make the interpreter readable for other users, in a mount namespace of this process alone."""
    closed = [parent for parent in [*reversed(directory.parents), directory] if not parent.stat().st_mode & 0o001]
    if not closed:
        return
    kernel.unshare(0x00020000)
    kernel.mount(None, "/", None, _PRIVATE | _RECURSIVE)
    aside = tempfile.mkdtemp()
    kernel.mount(str(directory), aside, None, _BIND | _RECURSIVE)
    kernel.mount("tmpfs", str(closed[0]), "tmpfs", 0)
    directory.mkdir(parents=True, exist_ok=True)
    kernel.mount(aside, str(directory), None, _MOVE)
    os.rmdir(aside)


def attacked(settings: dict[str, Any]) -> dict[str, Any]:
    """Let the environment try everything; what each attack has achieved, and which layers were on."""
    area, secret = Path(settings["area"]), os.environ["SECRET"]
    home, work, modules = area / "home", area / "work", area / "modules"
    (home / ".token").write_text(secret)
    sys.path.append(str(modules))
    for name in ("written", "truncated", "mode", "time", "removed", "renamed", "attribute"):
        (work / name).write_text("as it was")
    (work / "runs" / "CartPole-v1" / "1").mkdir(parents=True)
    for name in (".env", "read", "runs/CartPole-v1/1/last.ckpt"):
        (work / name).write_text(secret)
    attributes = {"user.secret": home / ".token", "user.kept": work / "attribute"}
    with suppress(OSError):  # the file system may have none
        for name, path in attributes.items():
            os.setxattr(path, name, secret.encode())
    (work / "mode").chmod(0o600)
    (area / "mount").mkdir()
    received: list[int] = []

    def count(number: int, frame: FrameType | None) -> None:
        received.append(number)

    for number in _SLEEP_SIGNALS.values():
        signal.signal(number, count)
    memory = {name: ctypes.create_string_buffer(secret.encode()) for name in ("address", "written_by_proc", "written_by_call")}
    descriptor = os.memfd_create("secret")
    os.write(descriptor, secret.encode())
    libc = ctypes.CDLL(None)
    libc.shmat.restype = ctypes.c_void_p
    segment = libc.shmget(0, 4096, 0o1600)
    ctypes.memmove(libc.shmat(segment, None, 0), secret.encode(), len(secret))
    libc.shmctl(segment, 0, None)  # IPC_RMID: it goes with the last process that has it
    shared = Path(f"/dev/shm/{secrets.token_hex(8)}")
    main_end, terminal = pty.openpty()
    listeners = {
        "connect_by_tcp": socket.create_server(("127.0.0.1", 0)),
        "connect_by_unix_socket": socket.socket(socket.AF_UNIX, socket.SOCK_STREAM),
        "connect_by_abstract_socket": socket.socket(socket.AF_UNIX, socket.SOCK_STREAM),
        "send_from_one_of_a_pair": socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM),
        "send_by_udp": socket.socket(socket.AF_INET, socket.SOCK_DGRAM),
    }
    listeners["send_by_udp"].bind(("127.0.0.1", 0))
    abstract = secrets.token_hex(8)
    listeners["connect_by_unix_socket"].bind(str(area / "socket"))
    listeners["connect_by_abstract_socket"].bind(b"\0" + abstract.encode())
    listeners["send_from_one_of_a_pair"].bind(str(area / "datagrams"))
    for listener in listeners.values():
        listener.setblocking(False)
        if listener.type == socket.SOCK_STREAM:
            listener.listen()
    kept = _attributes(work)
    worker = WorkerProcess(confinement={"level": settings["level"]})
    private = Path(worker._child._directory.path, str(worker.guard_pid))
    before = _treatment()
    reply = worker.ask(
        "make",
        60.0,
        env_id="tests.bridge.attacks:Attacker-v0",
        env_kwargs={
            "trainer": os.getpid(),
            "guard": worker.guard_pid,
            "length": len(secret),
            **{name: ctypes.addressof(buffer) for name, buffer in memory.items()},
            "descriptor": descriptor,
            "segment": segment,
            "home": str(home),
            "work": str(work),
            "modules": str(modules),
            "temporary": str(area),
            "shared": str(shared),
            "terminal": os.ttyname(terminal),
            "port": listeners["connect_by_tcp"].getsockname()[1],
            "udp_port": listeners["send_by_udp"].getsockname()[1],
            "socket": str(area / "socket"),
            "abstract": abstract,
            "datagrams": str(area / "datagrams"),
        },
    )
    outcomes: dict[str, str] = json.loads((private / "cwd" / "outcomes.json").read_text())
    signal.sigtimedwait([], 0)  # let handlers run
    achieved = {name: outcome.startswith("done: ") and outcome != "done: False" for name, outcome in outcomes.items()}
    for name in outcomes:
        if name.startswith("read_") and name not in ("read_memory_of_the_guard", "read_the_key_ring"):
            achieved[name] = secret in outcomes[name]
    after = _treatment()
    achieved |= {
        **{attack: after[attack] != before[attack] for attack in before},
        **{f"signal_by_{name}": number in received for name, number in _SLEEP_SIGNALS.items()},
        **{f"write_memory_{name}": memory[f"written_{name}"][0] == b"!" for name in ("by_proc", "by_call")},
        "plant_a_module_in_the_working_directory": (work / "torch.py").exists(),
        "plant_a_module_on_the_import_path": (modules / "numpy.py").exists(),
        "plant_a_file_at_home": (home / ".profile").exists(),
        "plant_a_link_at_home": (home / "link").is_symlink(),
        "write_a_file_of_the_trainer": (work / "written").read_text() != "as it was",
        "truncate_a_file_of_the_trainer": (work / "truncated").read_text() != "as it was",
        "change_the_mode_of_a_file_of_the_trainer": (work / "mode").stat().st_mode & 0o777 != 0o600,
        "change_the_time_of_a_file_of_the_trainer": (work / "time").stat().st_mtime == 7,
        "remove_a_file_of_the_trainer": not (work / "removed").exists(),
        "rename_a_file_of_the_trainer": not (work / "renamed").exists(),
        "change_an_extended_attribute_of_a_file_of_the_trainer": "user.planted" in _attributes(work),
        "remove_an_extended_attribute_of_a_file_of_the_trainer": _attributes(work) & kept != kept,
        "write_into_the_temporary_directory": (area / "written").exists(),
        "write_into_shared_memory": shared.exists(),
        **{name: _has_arrived(listener) for name, listener in listeners.items()},
    }
    worker.kill()
    achieved["leave_directories_that_are_hard_to_remove"] = private.exists()
    libc.umount2(str(area / "mount").encode(), 2)
    shared.unlink(missing_ok=True)
    os.close(main_end)
    return {"achieved": achieved, "outcomes": outcomes, "layers": reply["sandbox"]}


def _attributes(work: Path) -> set[str]:
    """Extended attributes of a file of the trainer; none if the file system has none."""
    try:
        return set(os.listxattr(work / "attribute"))
    except OSError:
        return set()


def _treatment() -> dict[str, Any]:
    """How the kernel treats this process, by the attack that would change it."""
    return {
        "lower_a_limit_of_the_trainer": resource.getrlimit(resource.RLIMIT_NOFILE),
        "lower_the_priority_of_the_trainer": os.getpriority(os.PRIO_PROCESS, 0),
        "schedule_the_trainer_as_a_batch_job": os.sched_getscheduler(0),
        "lower_the_disk_priority_of_the_trainer": ctypes.CDLL(None).syscall(252, 1, 0),  # ioprio_get
        "offer_the_trainer_to_the_killer_for_want_of_memory": Path("/proc/self/oom_score_adj").read_bytes(),
    }


def _has_arrived(listener: socket.socket) -> bool:
    try:
        if listener.type == socket.SOCK_DGRAM:
            return listener.recv(10) == b"hello"
        listener.accept()[0].close()
    except BlockingIOError:
        return False
    return True


def main() -> None:
    settings = json.loads(sys.argv[1])
    if "SECRET" not in os.environ:
        become(settings)
    try:
        print(json.dumps(attacked(settings)))
    except ConfigError as error:
        print(json.dumps({"refused": str(error)}))


if __name__ == "__main__":
    main()
