"""Freed memory stays with the process: no page of it has to be asked for again."""

import ctypes
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="the C library is not glibc")

_FAULTS = """
import resource
{prepare}
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
size = 8 << 20
kept = b"x" * size  # at first the memory has to come from somewhere
del kept
before = faults()
for _ in range(20):
    b"x" * size
print((faults() - before) * resource.getpagesize() // size)
"""


def pages_asked_for(prepare: str) -> int:
    """How often in 20 times, eight megabytes had to be asked for again."""
    run = subprocess.run([sys.executable, "-c", _FAULTS.format(prepare=prepare)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return int(run.stdout)


def test_freed_memory_is_used_again() -> None:
    assert pages_asked_for("from lit_ppo import allocator; assert allocator.keep_freed_memory()") <= 1
    # glibc's own rules, written down, so that what a later release does by itself does not hide here
    assert pages_asked_for("import ctypes; ctypes.CDLL(None).mallopt(-3, 128 << 10)") >= 19


def test_training_commands_keep_freed_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    from lit_ppo import __main__ as program
    from lit_ppo import cli

    called: list[str] = []
    monkeypatch.setattr(program.standard_streams, "prepare", lambda: None)
    monkeypatch.setattr(program.interrupts, "install", lambda: None)
    monkeypatch.setattr(program.interrupts, "advise", lambda text: None)
    monkeypatch.setattr(program.allocator, "keep_freed_memory", lambda: called.append("kept"))
    monkeypatch.setattr(program, "start_workers", lambda command: None)
    monkeypatch.setattr(cli, "main", lambda: called.append("ran"))
    for command in ("fit", "replay"):
        monkeypatch.setattr(sys, "argv", ["lit_ppo", command])
        program.main()
    assert called == ["kept", "ran", "ran"]
