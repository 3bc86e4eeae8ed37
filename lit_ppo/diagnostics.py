"""What an update has done, as numbers."""

from collections.abc import Sequence

import torch
from torchmetrics.functional import explained_variance

from lit_ppo import functional
from lit_ppo.passes import LearntMinibatch, log_ratios
from lit_ppo.rollout import Batch


def num_valid(batch: Batch) -> int:
    """Number of rows that are transitions."""
    return len(batch.actions) if batch.weights is None else int(batch.weights.sum())


def measured(batch: Batch, passes: Sequence[Sequence[LearntMinibatch]], clip_epsilon: float) -> dict[str, float]:
    """The diagnostics of an update: means over its minibatches; KL and clip fraction are those of its last pass.

    Args:
        batch: The rows that the update learnt from.
        passes: What each pass did.
        clip_epsilon: Clip range of the update.
    """
    learnt = [minibatch for one_pass in passes for minibatch in one_pass]
    metrics = {"optimizer/steps": float(len(learnt))}
    if not learnt:  # no row of the rollout is a transition
        return metrics
    columns = torch.stack([part for result, _ in learnt for part in (*result.loss, result.gradient_norm)])
    columns = columns.view(len(learnt), -1)
    if batch.weights is None:
        means = columns.mean(dim=0)
        old_values, returns = batch.old_values, batch.returns
    else:
        counts = torch.stack([weights.sum() for _, weights in learnt if weights is not None]).unsqueeze(-1)
        means = (columns * counts).sum(dim=0) / counts.sum()
        old_values, returns = (column[batch.weights > 0] for column in (batch.old_values, batch.returns))
    total, policy, value, entropy, gradient_norm = means.tolist()
    log_ratio, weights = log_ratios(passes[-1])
    return metrics | {
        "loss/total": total,
        "loss/policy": policy,
        "loss/value": value,
        "policy/entropy": entropy,
        "policy/approx_kl": float(functional.approximate_kl(log_ratio, weights)),
        "policy/clip_fraction": float(functional.clip_fraction(log_ratio, clip_epsilon, weights)),
        "critic/explained_variance": float(torch.as_tensor(explained_variance(old_values, returns))),
        "optimizer/gradient_norm": gradient_norm,
    }
