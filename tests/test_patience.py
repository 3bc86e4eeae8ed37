"""Nothing in the tests is a clock: every time limit grows with the load, or is pytest's own, which does."""

import ast
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.patience import patient

WAITS = {"acquire", "communicate", "get", "join", "poll", "result", "select", "wait"}
CLOCKS = {"monotonic", "perf_counter", "time"}


def clocks(source: str) -> Iterator[str]:
    """Calls and comparisons that fail, or go on, after a fixed number of seconds."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Compare):
            is_timed = any(isinstance(part, ast.Call) and name_of(part) in CLOCKS for part in ast.walk(node))
            is_limit = any(isinstance(each, ast.Lt | ast.LtE) for each in node.ops) and is_number(node.comparators[-1])
            if is_timed and is_limit:
                yield f"{node.lineno}: {ast.unparse(node)}"
        elif isinstance(node, ast.Call):
            limits = [keyword.value for keyword in node.keywords if keyword.arg == "timeout"]
            limits += [keyword.value for keyword in node.keywords if keyword.arg == "deadline" and name_of(node) == "settings"]
            limits += node.args[-1:] if name_of(node) in WAITS else []
            if name_of(node) == "sleep" or any(map(is_number, limits)):
                yield f"{node.lineno}: {ast.unparse(node)}"


def name_of(call: ast.Call) -> str:
    return ast.unparse(call.func).rpartition(".")[2]


def is_number(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, int | float) and bool(node.value)


def test_no_test_has_a_clock() -> None:
    files = list(Path(__file__).parent.rglob("*.py"))
    assert len(files) > 80
    found = {f"{path.name}:{clock}" for path in files for clock in clocks(path.read_text(encoding="utf-8"))}
    assert {clock for clock in found if not clock.startswith("test_doorbell.py")} == set()  # there the test turns the clock


@pytest.mark.parametrize(
    "line",
    [
        "subprocess.run(['true'], timeout=100)",
        "process.communicate(timeout=5)",
        "thread.join(10.0)",
        "poll.poll(20_000)",
        "select.select([end], [], [], 20.0)",
        "sleep(0.1)",
        "assert monotonic() - begin < 10",
        "assert 0.3 <= perf_counter() - begin <= 10",
        "settings(deadline=200)",
    ],
)
def test_a_clock_is_found(line: str) -> None:
    assert len(list(clocks(line))) == 1


def test_limits_grow_with_the_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    for load, limit in ((0.0, 10.0), (2.0, 40.0), (20.0, 310.0)):
        monkeypatch.setattr(os, "getloadavg", lambda load=load: (load, 0.0, 0.0))
        assert patient(10.0) == limit


def test_examples_are_the_same_each_time_and_have_no_deadline() -> None:
    if settings.get_current_profile_name() == "lit_ppo":
        assert settings().deadline is None and settings().derandomize and settings().database is None
