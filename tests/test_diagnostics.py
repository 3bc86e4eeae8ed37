"""Diagnostics of an update: those of the rows that are transitions, whatever the others hold."""

import pytest
import torch

from lit_ppo.diagnostics import measured
from lit_ppo.functional import PPOLoss
from lit_ppo.passes import Columns, Learnt, LearntMinibatch, PassEnd
from lit_ppo.update import MinibatchResult

END = PassEnd(0.25, 0.5)


def columns(num_rows: int, weights: torch.Tensor | None) -> Columns:
    old_values, returns = torch.randn(2, num_rows, generator=torch.Generator().manual_seed(1))
    return Columns(torch.zeros(num_rows), old_values, returns, weights)


def learnt(loss: float, num_valid: float | None) -> LearntMinibatch:
    parts = PPOLoss(*(torch.tensor(loss * k) for k in (1, 2, 3, 4)))
    count = None if num_valid is None else torch.tensor(num_valid)
    return LearntMinibatch(MinibatchResult(parts, (), torch.tensor(5 * loss)), count, ())


def test_means_over_minibatches_count_their_transitions() -> None:
    """A loss of 1 over 3 transitions and one of 9 over 1: (3 * 1 + 1 * 9) / 4 = 3; with equal weights (1 + 9) / 2 = 5."""
    rows = torch.tensor([1.0, 1, 1, 0, 0, 1])
    metrics = measured(columns(6, rows), Learnt([learnt(1.0, 3.0), learnt(9.0, 1.0)], END))
    assert (metrics["loss/total"], metrics["loss/policy"], metrics["loss/value"], metrics["policy/entropy"]) == (3, 6, 9, 12)
    assert (metrics["optimizer/gradient_norm"], metrics["optimizer/steps"]) == (15, 2)
    assert (metrics["policy/approx_kl"], metrics["policy/clip_fraction"]) == (0.25, 0.5)
    unweighted = Learnt([learnt(1.0, None), learnt(9.0, None)], END)
    assert measured(columns(6, None), unweighted)["loss/total"] == 5


def test_explained_variance_is_that_of_the_transitions() -> None:
    whole = columns(6, torch.tensor([1.0, 0, 1, 1, 0, 1]))
    assert whole.weights is not None
    kept = whole.weights > 0
    dropped = whole._replace(old_values=whole.old_values[kept], returns=whole.returns[kept], weights=None)
    one, other = measured(whole, Learnt([learnt(1.0, 4.0)], END)), measured(dropped, Learnt([learnt(1.0, None)], END))
    assert one["critic/explained_variance"] == pytest.approx(other["critic/explained_variance"], rel=1e-6)
    assert whole.num_valid == 4


def test_update_without_a_transition_has_no_steps_and_no_losses() -> None:
    assert measured(columns(4, torch.zeros(4)), Learnt([], None)) == {"optimizer/steps": 0}
