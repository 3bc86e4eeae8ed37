"""The list of environments: complete, and its trial fails where an environment does."""

from collections import Counter
from pathlib import Path

import pytest

from benchmarks.env_list import __main__ as command
from benchmarks.env_list.rows import ROWS, Row
from benchmarks.env_list.trial import trial


def test_list_is_complete_and_every_row_has_a_file_of_its_own() -> None:
    numbers = {
        "classic control": 6,
        "toy text": 6,
        "Box2D": 5,
        "MuJoCo": 11,
        "ALE, pixels": 8,
        "ALE, RAM": 6,
        "MiniGrid, image": 10,
        "MiniGrid, flat": 2,
        "MiniGrid, parts": 2,
        "highway": 10,
    }
    assert Counter(row.family for row in ROWS) == numbers
    assert len({row.name for row in ROWS}) == len(ROWS) == 66
    assert all(len(row.data) <= 1 and len(row.data.get("wrappers", [])) <= 1 for row in ROWS)


def test_table_in_the_docs_is_that_of_the_results() -> None:
    assert command.TABLE.read_text() == command.table()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("env_kwargs", "result"),
    [
        ({}, "ok"),
        ({"fault": "obs nan", "at_step": 2}, "exit code 3: obs[0, 1]: expected a finite value, got nan"),
        ({"drift": True}, "killed worker: "),
    ],
)
def test_trial_passes_what_is_deterministic_and_says_what_went_wrong(env_kwargs: dict[str, object], result: str) -> None:
    found = trial(Row("toys", "tests.fault_envs:Faulty-v0", data={"env_kwargs": env_kwargs} if env_kwargs else {}))
    assert found["result"].startswith(result), found


def test_row_whose_package_is_missing_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "RESULTS", tmp_path)
    result = command._tried(Row("toys", "CartPole-v1", ("absent_package", "absent")))
    assert result["result"] == "absent_package is not installed; run pip install -c constraints.txt -e '.[absent]'"
    assert list(tmp_path.iterdir()) == []
