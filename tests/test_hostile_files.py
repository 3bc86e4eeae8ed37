"""Files and names that others have made, for every command that reads them: one line for each, and the rest is shown."""

import ast
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import lit_ppo
from lit_ppo import errors, exit_codes
from lit_ppo.run_status import Status
from tests.test_cli import Run, in_an_empty_directory, run  # noqa: F401  fixtures
from tests.test_plot import make_run

FORGED: Final = "\nlit_ppo: error: forged\nepisode 1: return 999, 1 steps"
# Characters that steer a terminal, begin a line, turn the direction of text, are no text, or mean something to a reader.
NASTY: Final = (
    "\x1b[2J\r\n\t\b\x00\x07\x7f\x85\x9b\u2028\u2029\u202e\u200b\ufeff\ue000\ud800\udcff\U0001f600$_^{}\\%'\"#:-é中 a"
)
NAMES: Final = (
    st.text(NASTY, min_size=1, max_size=12) | st.just(FORGED) | st.sampled_from(["$x_{", "_hidden", "$", "-", "{run}"])
)
FILE_NAMES: Final = NAMES.map(lambda name: re.sub("[/\x00\ud800]", "", name)).filter(lambda name: name not in ("", ".", ".."))
DEEP: Final = b"[" * 100_000
JSON_SCALARS: Final = (
    st.none()
    | st.booleans()
    | st.floats()
    | st.integers()
    | NAMES
    | st.sampled_from([10**400, -(10**400), 1 << 63, 1e308, -1e308])
)
PLAIN: Final = st.recursive(
    JSON_SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
NUMBERS: Final = st.sampled_from(
    ["inf", "-inf", "nan", "1e999", "9" * 400, "-1", "", "1e308", "-1e308", "0x10", "1_0", "\x00", "3"]
)
BYTES: Final = st.binary(max_size=40) | st.sampled_from(
    [DEEP, b'{"a":' * 100_000, b"9" * 5000, b"\xff\xfe", b"\xef\xbb\xbf{}", b""]
)


def is_clean(text: str) -> bool:
    return all(character.isprintable() for line in text.split("\n") for character in line) and "forged" not in [
        line.partition("forged")[0] + "forged"
        for line in text.split("\n")
        if line.startswith(("lit_ppo: error: forged", "episode 1"))
    ]


@given(st.text() | NAMES)
@settings(deadline=None)
def test_any_text_becomes_one_printable_line(text: str) -> None:
    assert errors.one_line(text).isprintable() and errors.shown(text).isprintable()
    assert is_clean(errors.printable(text).replace("\t", ""))


def test_only_one_function_prints() -> None:
    """`standard_streams.say`, which escapes; `exit_codes.fail` has the line for a closed standard error."""
    found = {
        path.name
        for path in Path(lit_ppo.__file__).parent.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    }
    assert found == {"standard_streams.py", "exit_codes.py"}
