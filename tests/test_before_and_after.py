"""The comparison of two checkouts: what it computes from results and sources. Its runs are not part of the tests."""

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.before_and_after import equal, speed, structure
from benchmarks.before_and_after.checkout import Checkout, RunFailed


def outcome() -> dict[str, Any]:
    return {
        "curve": {"steps": [0, 256], "avg_return": [9.5, 20.0]},
        "state_dict": {"weight": torch.tensor([1.0, -2.0, 3.0])},
        "optimizer_states": [{"state": {0: {"step": torch.tensor(4.0)}}, "param_groups": [{"lr": 0.003}]}],
    }


# -- equal


def test_equal_outcomes_have_no_difference() -> None:
    assert equal.first_difference(outcome(), outcome()) is None


def test_one_different_bit_of_a_parameter_is_found() -> None:
    before, after = outcome(), outcome()
    after["state_dict"]["weight"].view(torch.int32)[1] ^= 1
    difference = equal.first_difference(before, after)
    # the last bit of -2.0 is worth 2^-22
    assert difference == f".state_dict.weight: 1 of 3 values differ, by up to {2**-22:.3g}"


def test_sign_of_zero_is_a_difference_and_equal_nans_are_none() -> None:
    assert equal.first_difference(torch.tensor(0.0), torch.tensor(-0.0)) is not None
    assert equal.first_difference(torch.tensor(math.nan), torch.tensor(math.nan)) is None


def test_tensors_of_another_dtype_or_shape_differ() -> None:
    ones = torch.ones(4)
    assert equal.first_difference(ones, ones.double(), "w") == "w: dtype torch.float32 before, torch.float64 after"
    assert equal.first_difference(ones, torch.ones(2, 2), "w") == "w: shape torch.Size([4]) before, torch.Size([2, 2]) after"


@pytest.mark.parametrize(("missing", "side"), [(0, "before"), (1, "after")])
def test_missing_key_is_named_with_its_side(missing: int, side: str) -> None:
    both = (outcome(), outcome())
    del both[missing]["optimizer_states"][0]["state"][0]["step"]
    assert equal.first_difference(*both) == f".optimizer_states[0].state.0.step: missing {side}"


def test_first_of_several_differences_is_named() -> None:
    before, after = outcome(), outcome()
    after["curve"]["avg_return"][1] = 21.0
    after["state_dict"]["weight"][0] = 7.0
    assert equal.first_difference(before, after) == ".curve.avg_return[1]: 20.0 before, 21.0 after"
    after["curve"]["avg_return"].append(3.0)
    assert equal.first_difference(before, after) == ".curve.avg_return: length 2 before, 3 after"


def test_table_has_every_allowed_combination_and_four_kills() -> None:
    cases = equal.all_cases()
    plain = {(case.vectorization, case.num_workers, case.num_envs, case.evaluates) for case in cases if case.kill is None}
    # 2 vectorizations x 2 settings of evaluation x (1, 8, 64 environments in 1 worker; 8, 64 in 2)
    assert len(plain) == 2 * 2 * (3 + 2)
    assert not any(workers == 2 and envs == 1 for _, workers, envs, _ in plain)
    assert [case.kill for case in cases if case.kill] == ["worker", "worker", "trainer", "trainer"]
    assert len({case.name for case in cases}) == len(cases)


def test_run_that_left_no_curve_has_no_outcome(tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match=r"no curve\.json"):
        equal.outcome(tmp_path)


@pytest.mark.parametrize(
    ("after", "result", "cells"),
    [
        (9.5, 0, "equal"),
        (9.25, 1, "different  .curve.avg_return[0]: 9.5 before, 9.25 after"),
        (None, 1, "failed  after: exit status 2"),
    ],
)
def test_exit_status_is_0_only_if_every_case_is_equal(
    after: float | None, result: int, cells: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def play(case: equal.Case, checkout: Checkout, directory: Path) -> dict[str, Any]:
        value = after if checkout.side == "after" and case.num_envs == 64 else 9.5
        if value is None:
            raise RunFailed("after: exit status 2")
        return {"curve": {"avg_return": [value]}}

    monkeypatch.setattr(equal, "play", play)
    monkeypatch.setattr(equal, "save", lambda *arguments: None)
    sides = Checkout("before", Path("old")), Checkout("after", Path("new"))
    assert equal.main(*sides, "native, 2 worker(s)") == result
    rows = capsys.readouterr().out.splitlines()
    assert next(row for row in rows if "64 env(s), evaluation off" in row).endswith(cells)
    assert equal.main(*sides, "no such case") == 1


def test_leaf_processes_are_grandchildren_and_not_their_parents() -> None:
    child = "import subprocess, sys; p = subprocess.Popen(['cat']); print(p.pid, flush=True); p.wait()"
    with subprocess.Popen([sys.executable, "-c", child], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None and parent.stdin is not None
        grandchild = int(parent.stdout.readline())
        found = equal.leaf_processes(parent.pid), equal.leaf_processes(os.getpid())
        parent.stdin.close()  # ends `cat`, and with it the parent
        parent.wait()
    assert found[0] == [grandchild]
    assert grandchild in found[1] and parent.pid not in found[1]


def test_package_of_another_checkout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match="before: expected an interpreter"):
        Checkout("before", tmp_path).verify(tmp_path)
    interpreter = tmp_path / "old" / ".venv" / "bin" / "python"
    interpreter.parent.mkdir(parents=True)
    interpreter.write_text("#!/bin/sh\necho /elsewhere/lit_ppo/__init__.py\n")
    interpreter.chmod(0o755)
    with pytest.raises(RunFailed, match="got /elsewhere/lit_ppo"):
        Checkout("before", tmp_path / "old").verify(tmp_path)


# -- speed


def test_interval_of_a_median_has_the_quantiles_of_the_exact_bootstrap() -> None:
    # 7 draws from 1..7: the median is at most k if at least 4 are, P = sum over i >= 4 of C(7, i) (k/7)^i (1 - k/7)^(7 - i)
    at_most = {k: sum(math.comb(7, i) * (k / 7) ** i * (1 - k / 7) ** (7 - i) for i in range(4, 8)) for k in range(1, 8)}
    exact = tuple(min(k for k in at_most if at_most[k] >= quantile) for quantile in (0.025, 0.975))
    assert exact == (2, 6)
    assert speed.median_interval([1, 2, 3, 4, 5, 6, 7]) == exact


def test_interval_of_equal_ratios_is_that_ratio_and_the_same_every_time() -> None:
    assert speed.median_interval([1.25] * 5) == (1.25, 1.25)
    assert speed.median_interval([0.8, 1.0, 1.1, 1.3]) == speed.median_interval([0.8, 1.0, 1.1, 1.3])


def test_ratio_above_one_means_that_after_is_faster() -> None:
    assert speed.speed_ratios([100.0, 100.0], [200.0, 50.0], is_rate=True) == [2.0, 0.5]
    assert speed.speed_ratios([4.0, 4.0], [2.0, 8.0], is_rate=False) == [2.0, 0.5]


def test_windows_of_update_times_begin_at_the_steps_under_way() -> None:
    seconds = [0.01] * 20 + [0.02] * 60 + [0.05] * 20
    # 80 updates lie between the first and the last window, in three parts of 26 2/3; update 0 is not among the values
    assert speed.window_medians(seconds, 64) == {64: 0.01, 64 * 28: 0.02, 64 * 54: 0.02, 64 * 81: 0.05}


# -- structure

SOURCE = '''
@final
class Box(Base):
    """Five lines of head."""

    def __init__(self, size):
        self.size, self.rest = size, {}
        self.count: int = 0
        self.rest[size] = self.count
        other.name = size

    async def wait(self):
        self.later = 1

    class Inner:
        pass


def free():
    pass
'''


def test_classes_are_counted_with_decorators_methods_and_attributes_of_init() -> None:
    # from `@final` to `pass` are 15 lines; `self.rest[...]`, `other.name` and `later` are no new attributes of __init__
    assert structure.classes_of(SOURCE) == [
        structure.ClassSize("Box", lines=15, methods=2, attributes=3),
        structure.ClassSize("Inner", lines=2, methods=0, attributes=0),
    ]


def test_imports_are_those_of_the_package_and_not_for_type_checking() -> None:
    source = """
from typing import TYPE_CHECKING
import torch
from p import a, version
from p.sub.b import thing
if TYPE_CHECKING:
    from p import typed
def late():
    import p.late
"""
    modules = ["p", "p.a", "p.sub", "p.sub.b", "p.typed", "p.late", "p.me"]
    assert structure.imported_modules(source, "p.me", modules) == {"p.a", "p.sub.b", "p.late"}


def test_cycles_are_found_through_other_files() -> None:
    imports = {"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": set(), "e": {"a"}}
    assert structure.cycles(imports) == [["a", "b", "c"]]
    assert structure.cycles({"a": {"b"}, "b": set()}) == []
