"""`make tour`: plays what a user does, command by command, and says what is seen and whether it is as it should be.

Each YAML file beside this one is a part of the tour; its steps run one after the other in an empty directory;
`$REPOSITORY` is the checkout. A step has

- `shows`: what it is about, in words;
- `run`: a command line, or `python`: a program;
- `sees`: regular expressions that the output must have; `never`: those that it must not;
- `code`: the exit code, 0 if not given;
- `terminal: true`: the output is a terminal of 80 columns, and no bar is wider;
- `needs`: packages without which it is left out.

`python -m tests.tour after_training` plays one part.
"""

import fcntl
import importlib.util
import os
import pty
import re
import struct
import subprocess
import sys
import tempfile
import termios
from collections.abc import Mapping
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import yaml

from tests.patience import patient

HERE, ROOT, COLUMNS, DEADLINE_S = Path(__file__).parent, Path(__file__).parents[2], 80, 600.0
_KEYS = {"shows", "run", "python", "sees", "never", "code", "terminal", "needs"}


class Played(NamedTuple):
    """How a command ended, and what it printed, both streams together."""

    code: int
    output: str


def main() -> int:
    """Play the parts that are named, or all of them; the number of steps that were not as they should be."""
    names = sys.argv[1:] or sorted(path.stem for path in HERE.glob("*.yaml"))
    failed = 0
    for name in names:
        part = yaml.safe_load((HERE / f"{name}.yaml").read_text(encoding="utf-8"))
        print(f"\n{part['title']}", flush=True)
        with tempfile.TemporaryDirectory() as directory:
            failed += sum(not is_as_it_should_be(step, Path(directory)) for step in part["steps"])
    print(f"\n{failed} steps failed" if failed else "\nall as it should be")
    return failed


def is_as_it_should_be(step: Mapping[str, Any], directory: Path) -> bool:
    """Play a step in a directory, and print what is seen."""
    assert set(step) <= _KEYS, f"{set(step) - _KEYS}: expected keys of {_KEYS}"
    if missing := [package for package in step.get("needs", []) if importlib.util.find_spec(package) is None]:
        print(f"  left out  {step['shows']} (pip install {' '.join(missing)})", flush=True)
        return True
    if "python" in step:
        (directory / "step.py").write_text(step["python"], encoding="utf-8")
    command = step.get("run", "python step.py")
    start = perf_counter()
    played = (on_a_terminal if step.get("terminal") else without_a_terminal)(command, directory)
    faults = list(faults_of(step, played))
    print(f"  {'NOT OK' if faults else 'ok':9} {step['shows']} ({perf_counter() - start:.0f} s)\n            $ {command}")
    found = [re.search(f"(?m){pattern}.*", played.output) for pattern in step.get("sees", [])]
    seen = [re.split(r"[\r\n]", match[0].strip())[0][:110] for match in found if match]
    for line in [*seen, *faults, *(played.output.splitlines()[-15:] if faults else [])]:
        print(f"            {line}")
    sys.stdout.flush()
    return not faults


def faults_of(step: Mapping[str, Any], played: Played) -> list[str]:
    """What is not as it should be, in words."""
    expected = step.get("code", 0)
    faults = [f"expected exit code {expected}, got {played.code}"] * (played.code != expected)
    faults += [f"expected {text!r}" for text in step.get("sees", []) if not re.search(f"(?m){text}", played.output)]
    faults += [f"expected no {text!r}" for text in [*step.get("never", []), "Traceback"] if re.search(text, played.output)]
    bars = [line for line in re.split(r"[\r\n]+", played.output) if re.search(r"\|.*\|.*\d\d:\d\d", line)]
    if step.get("terminal"):
        faults += [f"expected at most {COLUMNS} columns, got {line!r}" for line in bars if len(line) > COLUMNS][:1]
    return faults


def environment() -> dict[str, str]:
    """That of a user who has activated the virtual environment."""
    of_python = Path(sys.executable).parent
    return os.environ | {
        "PATH": f"{of_python}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "REPOSITORY": str(ROOT),
        "TERM": "xterm",
    }


def without_a_terminal(command: str, directory: Path) -> Played:
    """Run a command with its output into a pipe."""
    settings: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "errors": "replace"}
    ended = subprocess.run(within_the_deadline(command), cwd=directory, env=environment(), check=False, **settings)
    return Played(ended.returncode, ended.stdout)


def within_the_deadline(command: str) -> list[str]:
    """The command, which ends with exit code 124 if it takes too long."""
    return ["timeout", str(patient(DEADLINE_S)), "bash", "-c", command]


def on_a_terminal(command: str, directory: Path) -> Played:
    """Run a command on a pseudo-terminal; the output is without control sequences."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, COLUMNS, 0, 0))
    with subprocess.Popen(
        within_the_deadline(command),
        cwd=directory,
        env=environment(),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    ) as process:
        os.close(theirs)
        output = b""
        try:
            while data := os.read(ours, 65536):
                output += data
        except OSError:  # the terminal is closed when the last process has ended
            pass
    os.close(ours)
    return Played(process.returncode, re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", output.decode(errors="replace")))


if __name__ == "__main__":
    sys.exit(bool(main()))
