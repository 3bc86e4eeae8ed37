"""`python -m tests.versions`: the dependencies of which the package index has a newer release than the tests run with."""

import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[1]


def newest_release(package: str) -> str | None:
    """Version of the newest release that the index offers; None if it cannot be asked."""
    command = [sys.executable, "-m", "pip", "index", "versions", package]
    said = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    found = re.match(r"\S+ \((\S+)\)", said)
    return found[1] if found else None


def lines(newest: Callable[[str], str | None] = newest_release) -> Iterator[str]:
    """A line for each dependency that is newer there than in constraints.txt, or one line that says why there is none."""
    pinned = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    tested = dict(line.split("==") for line in pinned)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    newer = 0
    for requirement in map(Requirement, project["dependencies"]):
        name = requirement.name
        if (release := newest(name)) is None:
            yield f"{name}: the package index cannot be asked; is this machine offline?"
            return
        if Version(release) > Version(tested[name]):
            newer += 1
            admits = "admits" if requirement.specifier.contains(release) else "does not admit"
            yield f"{name} {release} is out: tested with {tested[name]}; pyproject.toml {admits} it ({requirement.specifier})"
    if not newer:
        yield "the tests run with the newest releases"


if __name__ == "__main__":
    for line in lines():
        print(line, flush=True)
