"""What a hostile environment achieves at each level of the sandbox: as root and as a user, with and without user namespaces.

`attacks` has the attacks, `under_attack` the trainer that they are tried on. Without a sandbox each of them has to succeed, if
the user may do that at all: so a check that could not fail would be found.
"""

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest

from tests.bridge.attacks import ATTACKS

ROOT: Final = Path(__file__).parents[2]
NOBODY: Final = 65534
DEADLINE_S: Final = 60

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="the attacks know the system calls of x86_64")

# Of no user but root's without a sandbox.
FOR_ROOT: Final = {
    "enter_a_namespace_of_the_trainer",
    "mount_something",
    "load_a_program_into_the_kernel",
    "watch_events_of_the_processor",
    "read_memory_of_the_guard",  # which is not dumpable at any level
}
NEVER: Final = {"gain_privileges", "leave_directories_that_are_hard_to_remove"}  # at any level
BY_PTRACE: Final = {name for name in ATTACKS if "memory_by" in name or "_by_proc" in name or "trace" in name}
# What a level does not stop, as the table in docs/sandbox.md says.
REMAINS: Final = {
    "strict": {"read_command_line_of_the_trainer", "see_that_a_file_exists"},
    "isolated": {"see_that_a_file_exists"},
}


# What Landlock alone stops; all else has to be stopped without it as well, since older kernels know less of it.
BY_LANDLOCK: Final = {
    "list_the_home_directory",
    "list_the_working_directory",
    "open_the_terminal",
    "plant_a_file_at_home",
    "plant_a_link_at_home",
    "plant_a_module_in_the_working_directory",
    "plant_a_module_on_the_import_path",
    "read_a_checkpoint_of_a_run",
    "read_a_file_at_home",
    "read_a_file_of_the_working_directory",
    "read_a_hidden_file_of_the_working_directory",
    "remove_a_file_of_the_trainer",
    "rename_a_file_of_the_trainer",
    "write_a_file_of_the_trainer",
    "write_into_shared_memory",
    "write_into_the_temporary_directory",
}


class Setting(NamedTuple):
    """Where the attacks are tried."""

    level: str
    user: int | None  # None for the one that runs the tests
    refuses: tuple[int, ...] = ()  # system calls that the kernel does not have


USERS: Final[tuple[int | None, ...]] = (None, NOBODY) if os.getuid() == 0 else (None,)
UNSHARE, LANDLOCK = 272, 444
OPEN: Final = [Setting("off", user) for user in USERS]
CLOSED: Final = [
    Setting(level, user, refuses)
    for level, refuses in [("strict", ()), ("strict", (UNSHARE,)), ("isolated", ())]
    for user in USERS
]


@cache
def attacked(setting: Setting) -> dict[str, Any]:
    """What came of all attacks there."""
    area = Path(tempfile.mkdtemp(dir="/tmp"))  # not in pytest's directory, which other users cannot reach
    try:
        for directory in (area, *(area / name for name in ("home", "work", "modules", "tmp"))):
            directory.mkdir(exist_ok=True)
            directory.chmod(0o755)
            if setting.user is not None:
                os.chown(directory, setting.user, setting.user)
        environment = {
            "HOME": str(area / "home"),
            "TMPDIR": str(area / "tmp"),
            "PYTHONPATH": str(ROOT),
            "PATH": os.environ["PATH"],
        }
        done = subprocess.run(
            [sys.executable, "-m", "tests.bridge.under_attack", json.dumps({"area": str(area), **setting._asdict()})],
            cwd=area / "work",
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{setting}: {done.stderr}"
        left = os.listdir(area / "tmp")
        assert left == [], f"{setting}: left in TMPDIR: {left}"
        found: dict[str, Any] = json.loads(done.stdout)
        return found
    finally:
        shutil.rmtree(area)


def has_ptrace_scope() -> bool:
    """Whether a security module keeps a process from tracing others than its own children."""
    scope = Path("/proc/sys/kernel/yama/ptrace_scope")
    return scope.exists() and scope.read_text().strip() != "0"


@pytest.mark.parametrize("name", sorted(set(ATTACKS) - NEVER))
def test_attack_succeeds_without_a_sandbox_and_in_none(name: str) -> None:
    for setting in OPEN:
        is_root = os.getuid() == 0 and setting.user is None
        found = attacked(setting)
        if found["outcomes"][name] in ("ENOSYS", "EOPNOTSUPP") or (name in BY_PTRACE and has_ptrace_scope() and not is_root):
            continue  # this kernel does not have it, or allows it to nobody
        assert found["achieved"][name] == (is_root or name not in FOR_ROOT), f"{setting}: {found['outcomes'][name]}"
    for setting in CLOSED:
        found = attacked(setting)
        assert found["achieved"][name] == (name in REMAINS[setting.level]), f"{setting}: {found['outcomes'][name]}"


@pytest.mark.parametrize("name", sorted(NEVER))
def test_attack_is_stopped_without_a_sandbox_too(name: str) -> None:
    for setting in (*OPEN, *CLOSED):
        found = attacked(setting)
        assert found["outcomes"][name].startswith("done: ")  # it was tried
        assert not found["achieved"][name], setting


def test_layers_of_each_level_are_reported() -> None:
    strict = {"no_new_privileges", "capabilities", "landlock", "seccomp"}
    for setting in (*OPEN, *CLOSED):
        expected = {"off": set(), "strict": strict, "isolated": strict | {"namespaces"}}[setting.level]
        assert attacked(setting)["layers"] == dict.fromkeys(expected, "on"), setting


def test_best_effort_goes_without_what_is_missing_and_says_so() -> None:
    found = attacked(Setting("best-effort", USERS[0], (UNSHARE,)))
    layers = found["layers"]
    assert layers.pop("namespaces") == "off (user namespace: Operation not permitted)"
    assert layers == dict.fromkeys(("no_new_privileges", "capabilities", "landlock", "seccomp"), "on")
    assert {name for name, is_achieved in found["achieved"].items() if is_achieved} == REMAINS["strict"]


def test_without_landlock_only_files_are_open() -> None:
    found = attacked(Setting("best-effort", USERS[-1], (UNSHARE, LANDLOCK)))
    assert found["layers"]["landlock"] == "off (Operation not permitted)"
    assert {name for name, is_achieved in found["achieved"].items() if is_achieved} == BY_LANDLOCK | REMAINS["strict"]


@pytest.mark.parametrize(
    ("level", "number", "layer"),
    [
        ("isolated", UNSHARE, r"namespaces is off (user namespace: Operation not permitted)"),
        ("strict", LANDLOCK, "landlock is off (Operation not permitted)"),
        ("strict", 317, "seccomp is off (Operation not permitted)"),
        ("strict", 126, "capabilities is off (Operation not permitted)"),
    ],
)
def test_layer_that_cannot_be_had_ends_the_run_with_its_name(level: str, number: int, layer: str) -> None:
    refused = attacked(Setting(level, USERS[-1], (number,)))["refused"]
    assert refused == f"sandbox={level}: {layer}; data.sandbox=best-effort goes without what this machine lacks"


def test_planted_modules_are_not_imported_at_the_next_start(tmp_path: Path) -> None:
    """As an environment without a sandbox could have left them in the working directory of the trainer."""
    for name in ("torch", "numpy", "gymnasium", "json", "signal", "select", "ctypes", "platform", "argparse"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('planted')\n")
    (tmp_path / "own_env.py").write_text("from gymnasium.envs.classic_control import CartPoleEnv\n")
    done = subprocess.run(
        [sys.executable, "-m", "lit_ppo", "check-env", "own_env:CartPoleEnv", "--steps=1"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "planted" not in done.stdout + done.stderr
    assert "own_env:CartPoleEnv" in done.stdout, done.stderr
