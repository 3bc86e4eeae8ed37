"""Diagnostics of an update: those of the rows that are transitions, whatever the others hold."""

import pytest
import torch

from lit_ppo.diagnostics import measured, num_valid
from lit_ppo.functional import PPOLoss
from lit_ppo.passes import LearntMinibatch, kl_of
from lit_ppo.rollout import Batch
from lit_ppo.update import MinibatchResult


def batch(num_rows: int, weights: torch.Tensor | None) -> Batch:
    draws = torch.Generator().manual_seed(1)
    old_values, returns = torch.randn(2, num_rows, generator=draws)
    zeros = torch.zeros(num_rows)
    return Batch({"": zeros}, zeros, zeros, old_values, zeros, returns, weights)


def learnt(loss: float, log_ratio: list[float], weights: list[float] | None) -> LearntMinibatch:
    parts = PPOLoss(*(torch.tensor(loss * k) for k in (1, 2, 3, 4)))
    result = MinibatchResult(parts, torch.tensor(log_ratio), torch.tensor(5 * loss))
    return LearntMinibatch(result, None if weights is None else torch.tensor(weights))


def test_means_over_minibatches_count_their_transitions() -> None:
    """A loss of 1 over 3 transitions and one of 9 over 1: (3 * 1 + 1 * 9) / 4 = 3; with equal weights (1 + 9) / 2 = 5."""
    rows = torch.tensor([1.0, 1, 1, 0, 0, 1])
    passes = [[learnt(1.0, [0.0, 0, 0], [1.0, 1, 1]), learnt(9.0, [0.0, 0, 0], [0.0, 0, 1])]]
    metrics = measured(batch(6, rows), passes, 0.2)
    assert (metrics["loss/total"], metrics["loss/policy"], metrics["loss/value"], metrics["policy/entropy"]) == (3, 6, 9, 12)
    assert (metrics["optimizer/gradient_norm"], metrics["optimizer/steps"]) == (15, 2)
    unweighted = [[learnt(1.0, [0.0] * 3, None), learnt(9.0, [0.0] * 3, None)]]
    assert measured(batch(6, None), unweighted, 0.2)["loss/total"] == 5


def test_kl_clip_fraction_and_explained_variance_are_those_of_the_transitions_of_the_last_pass() -> None:
    rows = torch.tensor([1.0, 0, 1, 1, 0, 1])
    first = [learnt(1.0, [9.0] * 6, rows.tolist())]
    last = [learnt(1.0, [0.1, 8.0, -0.5], [1.0, 0, 1]), learnt(1.0, [0.3, -8.0, 0.0], [1.0, 0, 1])]
    whole = batch(6, rows)
    metrics = measured(whole, [first, last], 0.2)
    kept = rows > 0
    dropped = whole._replace(old_values=whole.old_values[kept], returns=whole.returns[kept], weights=None, actions=rows[kept])
    alone = measured(dropped, [[learnt(1.0, [0.1, -0.5], None), learnt(1.0, [0.3, 0.0], None)]], 0.2)
    for name in ("policy/approx_kl", "policy/clip_fraction", "critic/explained_variance"):
        assert metrics[name] == pytest.approx(alone[name], rel=1e-6), name
    assert metrics["policy/clip_fraction"] == 0.5  # |exp(-0.5) - 1| = 0.39 and exp(0.3) - 1 = 0.35
    assert kl_of(last) == pytest.approx(metrics["policy/approx_kl"])
    assert num_valid(whole) == 4 == num_valid(dropped)


def test_update_without_a_transition_has_no_steps_and_no_losses() -> None:
    assert measured(batch(4, torch.zeros(4)), [[], []], 0.2) == {"optimizer/steps": 0}
