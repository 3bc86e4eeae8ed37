"""What a hostile environment may try, as functions, and an environment that tries all of them when it is made.

Imported in the worker as `tests.bridge.attacks:Attacker-v0`. Each attack returns evidence, or raises OSError if it is refused.
What it does to the trainer, the trainer sees for itself (`under_attack`). None does lasting harm.
"""

import ctypes
import errno
import fcntl
import json
import os
import signal
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import gymnasium
import numpy as np

ATTACKS: Final[dict[str, Callable[[dict[str, Any]], object]]] = {}
_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
# x86_64; the tests are skipped elsewhere
_CALLS: Final = {
    "accept": 43,
    "bind": 49,
    "listen": 50,
    "clone": 56,
    "inotify_add_watch": 254,
    "kcmp": 312,
    "ptrace": 101,
    "rt_sigqueueinfo": 129,
    "sched_setscheduler": 144,
    "mount": 165,
    "keyctl": 250,
    "ioprio_set": 251,
    "unshare": 272,
    "perf_event_open": 298,
    "prlimit64": 302,
    "name_to_handle_at": 303,
    "setns": 308,
    "process_vm_readv": 310,
    "process_vm_writev": 311,
    "accept4": 288,
    "bpf": 321,
    "userfaultfd": 323,
    "pidfd_send_signal": 424,
    "io_uring_setup": 425,
    "clone3": 435,
    "pidfd_getfd": 438,
}
_NEW_USERS: Final = 0x10000000  # CLONE_NEWUSER


def attack(function: Callable[[dict[str, Any]], object]) -> Callable[[dict[str, Any]], object]:
    """Put a function into the table, by its name."""
    ATTACKS[function.__name__] = function
    return function


def call(name: str, *arguments: Any) -> int:
    passed = [ctypes.c_long(argument) if isinstance(argument, int) else argument for argument in arguments]
    result: int = _libc.syscall(ctypes.c_long(_CALLS[name]), *passed)
    if result == -1:
        raise OSError(ctypes.get_errno(), name)
    return result


def _in_a_child(function: Callable[[], object]) -> bool:
    """Do something in a process of its own, which ends at once."""
    child = os.fork()
    if child == 0:
        try:
            function()
        except OSError as error:
            os._exit(error.errno or 255)
        os._exit(0)
    number = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if number:
        raise OSError(number, os.strerror(number))
    return True


# -- the trainer's memory, environment and descriptors


@attack
def read_memory_by_proc(target: dict[str, Any]) -> object:
    with open(f"/proc/{target['trainer']}/mem", "rb", buffering=0) as memory:
        memory.seek(target["address"])
        return memory.read(target["length"]).decode()


@attack
def write_memory_by_proc(target: dict[str, Any]) -> object:
    with open(f"/proc/{target['trainer']}/mem", "r+b", buffering=0) as memory:
        memory.seek(target["written_by_proc"])
        return memory.write(b"!")


def _vectors(target: dict[str, Any], address: str, length: int) -> tuple[Any, ...]:
    local = ctypes.create_string_buffer(length)
    mine = ctypes.create_string_buffer(struct.pack("PL", ctypes.addressof(local), length))
    theirs = ctypes.create_string_buffer(struct.pack("PL", target[address], length))
    return local, mine, theirs


@attack
def read_memory_by_call(target: dict[str, Any]) -> object:
    local, mine, theirs = _vectors(target, "address", target["length"])
    call("process_vm_readv", target["trainer"], mine, 1, theirs, 1, 0)
    return local.value.decode()


@attack
def write_memory_by_call(target: dict[str, Any]) -> object:
    local, mine, theirs = _vectors(target, "written_by_call", 1)
    local[0] = b"!"
    return call("process_vm_writev", target["trainer"], mine, 1, theirs, 1, 0)


@attack
def trace_the_trainer(target: dict[str, Any]) -> object:
    return _in_a_child(lambda: call("ptrace", 0x4206, target["trainer"], 0, 0))  # PTRACE_SEIZE, until the child ends


@attack
def read_environment_by_proc(target: dict[str, Any]) -> object:
    return Path(f"/proc/{target['trainer']}/environ").read_bytes().decode()


@attack
def read_descriptor_by_proc(target: dict[str, Any]) -> object:
    return Path(f"/proc/{target['trainer']}/fd/{target['descriptor']}").read_text()


@attack
def read_descriptor_by_call(target: dict[str, Any]) -> object:
    pidfd = os.pidfd_open(target["trainer"])
    return os.pread(call("pidfd_getfd", pidfd, target["descriptor"], 0), 100, 0).decode()


@attack
def read_memory_of_the_guard(target: dict[str, Any]) -> object:
    with open(f"/proc/{target['guard']}/mem", "rb"):
        return True


@attack
def read_command_line_of_the_trainer(target: dict[str, Any]) -> object:
    return Path(f"/proc/{target['trainer']}/cmdline").read_text()


@attack
def read_shared_segment(target: dict[str, Any]) -> object:
    _libc.shmat.restype = ctypes.c_void_p
    address = _libc.shmat(target["segment"], None, 0)
    if address in (None, ctypes.c_void_p(-1).value):
        raise OSError(ctypes.get_errno(), "shmat")
    return ctypes.string_at(address, target["length"]).decode()


@attack
def compare_descriptors_with_the_trainer(target: dict[str, Any]) -> object:
    return call("kcmp", os.getpid(), target["trainer"], 0, 0, target["descriptor"]) >= 0


# -- signals; the trainer counts them


@attack
def signal_by_kill(target: dict[str, Any]) -> object:
    return os.kill(target["trainer"], signal.SIGRTMIN + 1) is None


@attack
def signal_by_queue(target: dict[str, Any]) -> object:
    information = ctypes.create_string_buffer(struct.pack("iii", signal.SIGRTMIN + 2, 0, -1), 128)
    return call("rt_sigqueueinfo", target["trainer"], signal.SIGRTMIN + 2, information) == 0


@attack
def signal_by_pidfd(target: dict[str, Any]) -> object:
    pidfd = os.pidfd_open(target["trainer"])
    return call("pidfd_send_signal", pidfd, signal.SIGRTMIN + 3, None, 0) == 0


def _own_a_pipe(target: dict[str, Any], number: int, own: Callable[[int], object]) -> bool:
    """Let the kernel send a signal to the trainer when a pipe of ours becomes readable."""
    read, write = os.pipe()
    own(read)
    fcntl.fcntl(read, 10, number)  # F_SETSIG
    fcntl.fcntl(read, fcntl.F_SETFL, fcntl.fcntl(read, fcntl.F_GETFL) | os.O_ASYNC)
    os.write(write, b"!")
    return True


@attack
def signal_by_owner(target: dict[str, Any]) -> object:
    return _own_a_pipe(target, signal.SIGRTMIN + 4, lambda pipe: fcntl.fcntl(pipe, fcntl.F_SETOWN, target["trainer"]))


@attack
def signal_by_extended_owner(target: dict[str, Any]) -> object:
    owner = struct.pack("ii", 1, target["trainer"])  # F_OWNER_PID
    return _own_a_pipe(target, signal.SIGRTMIN + 5, lambda pipe: fcntl.fcntl(pipe, 15, owner))


@attack
def signal_the_guard(target: dict[str, Any]) -> object:
    return os.kill(target["guard"], 0) is None


# -- what else a process may do to others of its user


@attack
def lower_a_limit_of_the_trainer(target: dict[str, Any]) -> object:
    return call("prlimit64", target["trainer"], 7, ctypes.create_string_buffer(struct.pack("QQ", 321, 321)), None) == 0


@attack
def lower_the_priority_of_the_trainer(target: dict[str, Any]) -> object:
    return os.setpriority(os.PRIO_PROCESS, target["trainer"], os.getpriority(os.PRIO_PROCESS, target["trainer"]) + 1) is None


@attack
def schedule_the_trainer_as_a_batch_job(target: dict[str, Any]) -> object:
    return call("sched_setscheduler", target["trainer"], 3, ctypes.create_string_buffer(4)) == 0


@attack
def lower_the_disk_priority_of_the_trainer(target: dict[str, Any]) -> object:
    return call("ioprio_set", 1, target["trainer"], 3 << 13) == 0


@attack
def offer_the_trainer_to_the_killer_for_want_of_memory(target: dict[str, Any]) -> object:
    return Path(f"/proc/{target['trainer']}/oom_score_adj").write_text("777")


# -- files


@attack
def read_a_file_at_home(target: dict[str, Any]) -> object:
    return Path(target["home"], ".token").read_text()


@attack
def list_the_home_directory(target: dict[str, Any]) -> object:
    return ".token" in os.listdir(target["home"])


@attack
def watch_the_home_directory(target: dict[str, Any]) -> object:
    return call("inotify_add_watch", _libc.inotify_init(), target["home"].encode(), 0x100) >= 0  # IN_CREATE, with the name


@attack
def see_that_a_file_exists(target: dict[str, Any]) -> object:
    return os.path.exists(f"{target['home']}/.token")


@attack
def read_a_hidden_file_of_the_working_directory(target: dict[str, Any]) -> object:
    return Path(target["work"], ".env").read_text()


@attack
def read_a_file_of_the_working_directory(target: dict[str, Any]) -> object:
    return Path(target["work"], "read").read_text()


@attack
def read_a_checkpoint_of_a_run(target: dict[str, Any]) -> object:
    return Path(target["work"], "runs", "CartPole-v1", "1", "last.ckpt").read_text()


@attack
def list_the_working_directory(target: dict[str, Any]) -> object:
    return ".env" in os.listdir(target["work"])


@attack
def read_an_extended_attribute_of_a_file_at_home(target: dict[str, Any]) -> object:
    return os.getxattr(f"{target['home']}/.token", "user.secret").decode()


@attack
def list_extended_attributes_of_a_file_at_home(target: dict[str, Any]) -> object:
    return "user.secret" in os.listxattr(f"{target['home']}/.token")


@attack
def change_an_extended_attribute_of_a_file_of_the_trainer(target: dict[str, Any]) -> object:
    return os.setxattr(f"{target['work']}/attribute", "user.planted", b"!") is None


@attack
def remove_an_extended_attribute_of_a_file_of_the_trainer(target: dict[str, Any]) -> object:
    return os.removexattr(f"{target['work']}/attribute", "user.kept") is None


@attack
def plant_a_module_in_the_working_directory(target: dict[str, Any]) -> object:
    return Path(target["work"], "torch.py").write_text("planted")


@attack
def plant_a_module_on_the_import_path(target: dict[str, Any]) -> object:
    return Path(target["modules"], "numpy.py").write_text("planted")


@attack
def plant_a_file_at_home(target: dict[str, Any]) -> object:
    return Path(target["home"], ".profile").write_text("planted")


@attack
def plant_a_link_at_home(target: dict[str, Any]) -> object:
    return os.symlink("/", f"{target['home']}/link") is None


@attack
def write_a_file_of_the_trainer(target: dict[str, Any]) -> object:
    return Path(target["work"], "written").write_text("!")


@attack
def truncate_a_file_of_the_trainer(target: dict[str, Any]) -> object:
    return os.truncate(f"{target['work']}/truncated", 0) is None


@attack
def change_the_mode_of_a_file_of_the_trainer(target: dict[str, Any]) -> object:
    return os.chmod(f"{target['work']}/mode", 0o777) is None


@attack
def change_the_time_of_a_file_of_the_trainer(target: dict[str, Any]) -> object:
    return os.utime(f"{target['work']}/time", (7, 7)) is None


@attack
def remove_a_file_of_the_trainer(target: dict[str, Any]) -> object:
    return os.unlink(f"{target['work']}/removed") is None


@attack
def rename_a_file_of_the_trainer(target: dict[str, Any]) -> object:
    return os.rename(f"{target['work']}/renamed", f"{target['work']}/renamed by the worker") is None


@attack
def write_into_the_temporary_directory(target: dict[str, Any]) -> object:
    return Path(target["temporary"], "written").write_text("!")


@attack
def write_into_shared_memory(target: dict[str, Any]) -> object:
    return Path(target["shared"]).write_text("!")


@attack
def open_the_terminal(target: dict[str, Any]) -> object:
    return os.close(os.open(target["terminal"], os.O_RDWR | os.O_NOCTTY)) is None


@attack
def leave_directories_that_are_hard_to_remove(target: dict[str, Any]) -> object:
    """Closed to their owner, with a link to what is not theirs."""
    os.mkdir("unreadable", 0o300)
    os.mkdir("unreadable/closed", 0)
    Path("unreadable/file").touch()
    os.symlink(target["home"], "unreadable/link")
    return os.path.lexists("unreadable/link")


# -- sockets


def _says_hello(kind: int, family: int, address: Any) -> bool:
    with socket.socket(family, kind) as sender:
        sender.connect(address)
        return sender.send(b"hello") == 5


@attack
def connect_by_tcp(target: dict[str, Any]) -> object:
    return _says_hello(socket.SOCK_STREAM, socket.AF_INET, ("127.0.0.1", target["port"]))


@attack
def connect_by_unix_socket(target: dict[str, Any]) -> object:
    return _says_hello(socket.SOCK_STREAM, socket.AF_UNIX, target["socket"])


@attack
def connect_by_abstract_socket(target: dict[str, Any]) -> object:
    return _says_hello(socket.SOCK_STREAM, socket.AF_UNIX, b"\0" + target["abstract"].encode())


@attack
def send_from_one_of_a_pair(target: dict[str, Any]) -> object:
    one, _ = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    return one.sendto(b"hello", target["datagrams"]) == 5


@attack
def send_by_udp(target: dict[str, Any]) -> object:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        return sender.sendto(b"hello", ("127.0.0.1", target["udp_port"])) == 5


def _reaches_the_kernel(name: str, *arguments: Any) -> bool:
    """Whether a call on one of a pair, which is no listener, is refused for that and not by a filter."""
    one, _ = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        call(name, one.fileno(), *arguments)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    return True


@attack
def take_an_abstract_name(target: dict[str, Any]) -> object:
    """One that another program of the user may want."""
    return _reaches_the_kernel("bind", struct.pack("H13s", socket.AF_UNIX, b"\0lit_ppo taken"), 15)


@attack
def listen_for_others(target: dict[str, Any]) -> object:
    return _reaches_the_kernel("listen", 1)


@attack
def accept_what_arrives(target: dict[str, Any]) -> object:
    return _reaches_the_kernel("accept", None, None)


@attack
def accept_what_arrives_by_the_newer_call(target: dict[str, Any]) -> object:
    return _reaches_the_kernel("accept4", None, None, 0)


@attack
def make_a_ring(target: dict[str, Any]) -> object:
    return call("io_uring_setup", 1, ctypes.create_string_buffer(120)) >= 0


# -- namespaces, mounts, parts of the kernel


@attack
def enter_a_user_namespace(target: dict[str, Any]) -> object:
    return _in_a_child(lambda: call("unshare", _NEW_USERS))


@attack
def start_a_process_in_a_user_namespace(target: dict[str, Any]) -> object:
    child = call("clone", _NEW_USERS | signal.SIGCHLD, 0, 0, 0, 0)
    if child == 0:
        os._exit(0)
    return os.waitpid(child, 0)[0] == child


@attack
def start_a_process_in_a_user_namespace_by_the_newer_call(target: dict[str, Any]) -> object:
    arguments = ctypes.create_string_buffer(struct.pack("QQQQQQQQ", _NEW_USERS, 0, 0, 0, signal.SIGCHLD, 0, 0, 0))
    child = call("clone3", arguments, 64)
    if child == 0:
        os._exit(0)
    return os.waitpid(child, 0)[0] == child


@attack
def enter_a_namespace_of_the_trainer(target: dict[str, Any]) -> object:
    return call("setns", os.open(f"/proc/{target['trainer']}/ns/uts", os.O_RDONLY), 0) == 0


@attack
def mount_something(target: dict[str, Any]) -> object:
    names = [name.encode() for name in ("tmpfs", f"{target['temporary']}/mount", "tmpfs")]
    return call("mount", *names, 0, None) == 0


@attack
def read_the_key_ring(target: dict[str, Any]) -> object:
    return call("keyctl", 0, -3, 1) != 0  # KEYCTL_GET_KEYRING_ID of the session


@attack
def load_a_program_into_the_kernel(target: dict[str, Any]) -> object:
    return call("bpf", 0, ctypes.create_string_buffer(struct.pack("IIIII", 2, 4, 4, 1, 0), 120), 120) >= 0  # an array map


@attack
def watch_events_of_the_processor(target: dict[str, Any]) -> object:
    attributes = ctypes.create_string_buffer(struct.pack("IIQ", 1, 112, 0), 112)  # PERF_TYPE_SOFTWARE, of the whole system
    return call("perf_event_open", attributes, target["trainer"], -1, -1, 0) >= 0


@attack
def handle_faults_of_memory(target: dict[str, Any]) -> object:
    return call("userfaultfd", 1) >= 0  # UFFD_USER_MODE_ONLY


@attack
def name_a_file_by_its_handle(target: dict[str, Any]) -> object:
    handle, mount = ctypes.create_string_buffer(struct.pack("Ii", 128, 0), 136), ctypes.create_string_buffer(4)
    return call("name_to_handle_at", -100, target["home"].encode(), handle, mount, 0) == 0


@attack
def gain_privileges(target: dict[str, Any]) -> object:
    return "NoNewPrivs:\t0" in Path("/proc/self/status").read_text()


class Attacker(gymnasium.Env[Any, Any]):
    """Tries every attack when it is made, and writes what came of each into its working directory."""

    observation_space = gymnasium.spaces.Box(-1, 1, (1,))
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, **target: Any) -> None:
        outcomes: dict[str, str] = {}
        for name, function in ATTACKS.items():
            try:
                outcomes[name] = f"done: {function(target)}"
            except OSError as error:
                outcomes[name] = errno.errorcode.get(error.errno or 0, repr(error))
        Path("outcomes.json").write_text(json.dumps(outcomes))

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return np.zeros(1, np.float32), {}


gymnasium.register("Attacker-v0", Attacker)
