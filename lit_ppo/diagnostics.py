"""What an update has done, as numbers."""

import torch
from torchmetrics.functional import explained_variance

from lit_ppo.passes import Columns, Learnt


def measured(columns: Columns, learnt: Learnt) -> dict[str, float]:
    """The diagnostics of an update: means over its minibatches; KL and clip fraction are those of its last pass.

    Args:
        columns: Of the rows that the update learnt from.
        learnt: What it learnt.
    """
    minibatches = learnt.minibatches
    metrics = {"optimizer/steps": float(len(minibatches))}
    if learnt.end is None:  # no row of the rollout is a transition
        return metrics
    parts = torch.stack([part for result, _, _ in minibatches for part in (*result.loss, result.gradient_norm)])
    parts = parts.view(len(minibatches), -1)
    if columns.weights is None:
        means = parts.mean(dim=0)
        old_values, returns = columns.old_values, columns.returns
    else:
        counts = torch.stack([count for _, count, _ in minibatches if count is not None]).unsqueeze(-1)
        means = (parts * counts).sum(dim=0) / counts.sum()
        old_values, returns = (column[columns.weights > 0] for column in (columns.old_values, columns.returns))
    total, policy, value, entropy, gradient_norm = means.tolist()
    return metrics | {
        "loss/total": total,
        "loss/policy": policy,
        "loss/value": value,
        "policy/entropy": entropy,
        "policy/approx_kl": learnt.end.kl,
        "policy/clip_fraction": learnt.end.clip_fraction,
        "critic/explained_variance": float(torch.as_tensor(explained_variance(old_values, returns))),
        "optimizer/gradient_norm": gradient_norm,
    }
