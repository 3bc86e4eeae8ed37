"""Odd surroundings: each works, or ends with its documented exit code and one line that says what to do."""

import errno
import fcntl
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from lit_ppo import exit_codes
from lit_ppo.bridge import sweeper
from lit_ppo.checkpoint_io import previous_of, read_checkpoint
from tests.test_cli import SMALL, Run, in_an_empty_directory, run  # noqa: F401

FIT: Final = f"fit {' '.join(SMALL.split())}"
NOBODY: Final = 65534
ROOT: Final = Path(__file__).parents[1]


def refusing(number: int, is_meant: Callable[..., bool] = lambda *arguments: True, call: Any = None) -> Callable[..., Any]:
    """A function that a kernel without it would be; where it is not meant, `call`."""

    def refuse(*arguments: Any, **options: Any) -> Any:
        if is_meant(*arguments):
            raise OSError(number, os.strerror(number))
        return call(*arguments, **options)

    return refuse


def is_seal(descriptor: int, command: int, *rest: Any) -> bool:
    return command == fcntl.F_ADD_SEALS


# What a kernel, a container or a file system refuses: module, name, substitute, exit code, message.
REFUSED: Final[dict[str, tuple[Any, str, Any, int, str]]] = {
    "no hard links (FAT, FUSE)": (os, "link", refusing(errno.EPERM), exit_codes.DONE, ""),
    "no locks (NFS without lockd)": (
        fcntl,
        "flock",
        refusing(errno.ENOLCK),
        exit_codes.CHECKPOINT,
        r"checkpoint\.dirpath=/.*/runs/CartPole-v1/1: cannot be locked: No locks available \(errno 37\); use a directory .*",
    ),
    "no memfd (old containers)": (
        os,
        "memfd_create",
        refusing(errno.ENOSYS),
        exit_codes.USAGE,
        r"data\.bridge=process: this system refuses memfd_create: Function not implemented; .*data\.bridge=inprocess.*",
    ),
    "no seals (gVisor)": (
        fcntl,
        "fcntl",
        refusing(errno.EINVAL, is_seal, fcntl.fcntl),
        exit_codes.USAGE,
        r"data\.bridge=process: this system refuses F_ADD_SEALS: Invalid argument; .*data\.bridge=inprocess.*",
    ),
    "no pidfd (old Docker)": (
        os,
        "pidfd_open",
        refusing(errno.EPERM),
        exit_codes.USAGE,
        r"data\.bridge=process: this system refuses pidfd_open: Operation not permitted; .*data\.bridge=inprocess.*",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_a_system_refuses(what: str, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    module, name, substitute, code, message = REFUSED[what]
    sweeper.run_directory()
    monkeypatch.setattr(module, name, substitute)
    ended = run(f"{FIT} --trainer.logger=false --checkpoint.every_n_updates=1")
    assert (ended.code, ended.err) == (code, ended.err if message else "")
    assert re.fullmatch(f"lit_ppo: error: {message}\n" if message else "", ended.err), ended.err
    if code == exit_codes.DONE:
        last = Path("runs/CartPole-v1/1/last.ckpt")
        assert read_checkpoint(last)["RolloutDataModule"]["update"] == 2
        assert read_checkpoint(previous_of(last))["RolloutDataModule"]["update"] == 1
        assert not list(last.parent.glob("*.tmp")) and not list(last.parent.glob(".*.tmp"))


# A directory that cannot be made, for anybody: below a file, and in a file system that is not for files.
IMPOSSIBLE: Final = {
    "--runs_dir={}": (exit_codes.CHECKPOINT, r"{}/CartPole-v1: cannot be written: .*"),
    "--checkpoint.dirpath={}": (exit_codes.CHECKPOINT, r"(/.*/)?{}: cannot be written: .*"),
    "--curve.path={}/curve.json": (exit_codes.CHECKPOINT, r"curve\.path={}/curve\.json: cannot be written: .*"),
    "--curve.link={}/curve.json": (exit_codes.CHECKPOINT, r"(/.*/)?{}/curve\.json: cannot be written: .*"),
    "--trainer.logger.save_dir={}": (exit_codes.CHECKPOINT, r"trainer\.logger\.save_dir={}: cannot be written: .*"),
    "--trainer.default_root_dir={}": (exit_codes.CHECKPOINT, r"{}/runs/CartPole-v1: cannot be written: .*"),
    "--config={}/x.yaml": (exit_codes.USAGE, r".*{}/x\.yaml.*"),
    "--ckpt_path={}/x.ckpt": (exit_codes.CHECKPOINT, r"ckpt_path={}/x\.ckpt: expected a checkpoint .*found none"),
    "--data.worker_cwd={}": (exit_codes.USAGE, r"data\.worker_cwd='{}': expected a file or directory that exists"),
    "--data.report_dir={}": (exit_codes.DONE, ""),  # nothing is written there as long as there is no fault
}


@pytest.mark.parametrize("option", IMPOSSIBLE)
@pytest.mark.parametrize("directory", ["file/x", "/proc/x"])
def test_directory_that_cannot_be_made(option: str, directory: str, run: Run) -> None:  # noqa: F811
    Path("file").touch()
    code, message = IMPOSSIBLE[option]
    ended = run(f"{FIT} {option.replace('{}', directory)}")
    assert ended.code == code, ended.err
    assert re.fullmatch(f"lit_ppo: error: {message.replace('{}', directory)}\n" if message else "", ended.err), ended.err


@pytest.mark.parametrize("directory", ["missing", "file", "/proc"])
def test_temporary_directory_that_cannot_be_written(directory: str, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    Path("file").touch()
    monkeypatch.setenv("TMPDIR", directory)
    ended = run(f"{FIT} --trainer.logger=false")
    assert ended.code == exit_codes.USAGE
    assert re.fullmatch(r"lit_ppo: error: TMPDIR: expected a directory that can be written: [^\n]*\n", ended.err), ended.err


def test_report_that_cannot_be_written_does_not_hide_the_fault(
    run: Run,  # noqa: F811
    caplog: pytest.LogCaptureFixture,
) -> None:
    Path("file").touch()
    ended = run(f"{FIT} --data.env_id=tests.fault_envs:NaN-v0 --data.report_dir=file/x --trainer.logger=false")
    assert ended.code == exit_codes.ENVIRONMENT
    assert "file/x: the report cannot be written: [Errno 20] Not a directory: 'file/x'" in caplog.messages
    assert re.search(r"^lit_ppo: error: obs\[0, 1\]: expected a finite value, got nan \(", ended.err, re.M), ended.err


# -- in a process of its own


def in_python(code: str, line: str, **options: Any) -> "subprocess.CompletedProcess[str]":
    """Run `lit_ppo` in a fresh interpreter, after some code."""
    run_it = f"sys.argv = ['lit_ppo', *{line.split()!r}]\nrunpy.run_module('lit_ppo', run_name='__main__')"
    program = f"{code}\nimport runpy, sys\n{run_it}"
    command = [sys.executable, "-c", program]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


@pytest.mark.parametrize("system", ["darwin", "win32"])
def test_another_system_is_told_so_before_the_heavy_imports(system: str) -> None:
    code = f"""
import atexit, sys
sys.platform = {system!r}
atexit.register(lambda: print({{'torch', 'lightning', 'numpy', 'gymnasium'}} & set(sys.modules)))
"""
    ended = in_python(code, "fit")
    assert (ended.returncode, ended.stdout) == (exit_codes.USAGE, "set()\n")
    assert re.fullmatch(
        f"lit_ppo: error: this system is {system}: expected Linux, [^\n]*; use a Linux container, [^\n]*\n", ended.stderr
    )
    assert in_python(code, "presets").returncode == exit_codes.DONE


def test_error_is_told_on_standard_output_if_standard_error_is_closed() -> None:
    command = f"{sys.executable} -m lit_ppo nothing 2>&-"
    ended = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert ended.returncode == exit_codes.USAGE
    assert re.fullmatch(r"lit_ppo: error: nothing: expected one of [^\n]*\n", ended.stdout), ended.stdout


def test_reader_that_goes_away_ends_the_command_with_one_line_and_exit_code_5() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "lit_ppo", "--help"]
    ended = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    expected = "lit_ppo: error: standard output: cannot be written: Broken pipe (errno 32)\n"
    assert (ended.returncode, ended.stderr) == (exit_codes.CHECKPOINT, expected)


def in_odd_surroundings(surroundings: dict[str, Any], line: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "tests.odd_surroundings", json.dumps(surroundings), *line.split()]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() != "x86_64", reason="the filter knows the system calls of x86_64")
@pytest.mark.parametrize(
    ("call", "number", "code"),
    [("flock", 73, 5), ("memfd_create", 319, 2), ("pidfd_open", 434, 2), ("link", 86, 0), ("linkat", 265, 0)],
)
def test_kernel_that_really_refuses_a_call(call: str, number: int, code: int) -> None:
    ended = in_odd_surroundings({"refuses": [number]}, f"{FIT} --checkpoint.every_n_updates=1")
    lines = ended.stderr.splitlines()
    assert ended.returncode == code, ended.stderr
    assert [line.startswith("lit_ppo: error: ") for line in lines] == [True] * (code != 0)
    assert code != exit_codes.USAGE or f"this system refuses {call}" in lines[0]


@pytest.fixture
def reachable() -> Iterator[Path]:
    """A directory that other users can reach, which pytest's own are not."""
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        Path(directory).chmod(0o755)
        yield Path(directory)


@pytest.mark.slow
@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("", r"runs/CartPole-v1: cannot be written: Permission denied .*"),
        ("--runs_dir=open --curve.link=null", ""),
        ("--runs_dir=open", r".*data/rl/ppo_cartpole_trainlog\.json: cannot be written: Permission denied .*"),
        ("--runs_dir=open --curve.link=null --curve.path=x.json", r"curve\.path=x\.json: cannot be written: .*"),
        ("--runs_dir=open --curve.link=null --trainer.logger.save_dir=logs", r"trainer\.logger\.save_dir=logs: cannot be .*"),
    ],
)
def test_directory_that_an_ordinary_user_may_not_write(
    option: str, message: str, reachable: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(reachable)
    Path("open").mkdir()
    Path("open").chmod(0o777)
    ended = in_odd_surroundings({"user": NOBODY}, f"{FIT} {option}")
    assert ended.returncode == (exit_codes.CHECKPOINT if message else exit_codes.DONE), ended.stderr
    assert re.fullmatch(f"lit_ppo: error: {message}\n" if message else "", ended.stderr), ended.stderr


@pytest.mark.slow
@pytest.mark.skipif(os.getuid() != 0, reason="only root can mount")
@pytest.mark.parametrize(
    ("full", "option", "message"),
    [
        ("logs", "--trainer.logger.save_dir=logs", r"trainer\.logger\.save_dir=logs: cannot be written: .*No space left.*"),
        ("runs", "", r"[^\n]*runs/CartPole-v1[^\n]*: cannot be [^\n]*No space left.*"),
        ("tmp", "", "TMPDIR: expected a directory that can be written: .*No space left.*"),
    ],
)
def test_directory_that_is_full(full: str, option: str, message: str) -> None:
    Path(full).mkdir()
    surroundings = {"full": full, "temporary": str(Path("tmp").resolve()) if full == "tmp" else None}
    ended = in_odd_surroundings(surroundings, f"{FIT} {option}")
    assert ended.returncode in (exit_codes.CHECKPOINT, exit_codes.USAGE), ended.stderr
    assert re.fullmatch(f"lit_ppo: error: {message}\n", ended.stderr), ended.stderr
