"""One seed of each quick row of the evidence (`benchmarks/learning`): a command line that learns what its row demands."""

import pytest

from benchmarks.learning.rows import QUICK_SEED, ROWS, Row
from benchmarks.learning.runs import run_lit_ppo

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.mark.parametrize("row", [row for row in ROWS if row.is_quick], ids=lambda row: row.name)
def test_best_checkpoint_reaches_the_target_of_its_row(row: Row) -> None:
    run = run_lit_ppo(row, QUICK_SEED)
    assert row.is_met(run["best"]["mean"]), f"{run['best']} is not {row.target}"
