"""The mathematics of PPO: one equation, one pure function.

T is the horizon (steps of one rollout), N the number of environments, B the size of a batch. Everything here runs without
Lightning, without an environment and on any device.

A batch may hold rows that are not transitions. Their weight is 0, that of all others 1, and every mean is over the rows with
weight 1. Without weights all rows count.
"""

from typing import NamedTuple

import torch
from torch import Tensor


def generalized_advantages(
    rewards: Tensor,
    values: Tensor,
    next_values: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    valid: Tensor,
    gamma: float,
    gae_lambda: float,
) -> Tensor:
    """Generalized advantage estimates of one rollout.

    delta_t = r_t + gamma * (1 - terminated_t) * V(next_obs_t) - V(obs_t)
    A_t = delta_t + gamma * lambda * (1 - terminated_t) * (1 - truncated_t) * A_{t+1},  A_T = 0

    A time limit is not an ending: a truncated step keeps its bootstrap, and only the trace is cut. A row that is not a
    transition (not valid) has advantage 0 and cuts the trace as a truncation would.

    Args:
        rewards: Shape (T, N).
        values: V(obs_t), shape (T, N).
        next_values: V of the true successor of each step, shape (T, N).
        terminated: Shape (T, N), bool.
        truncated: Shape (T, N), bool.
        valid: Shape (T, N), bool.
        gamma: Discount factor.
        gae_lambda: Weight of longer returns.

    Returns:
        Advantages, shape (T, N).

    Source: Schulman et al. 2016, https://arxiv.org/abs/1506.02438, equations 11 to 16.
    """
    shapes = {rewards.shape, values.shape, next_values.shape, terminated.shape, truncated.shape, valid.shape}
    if len(shapes) != 1 or rewards.dim() != 2:
        raise ValueError(f"expected six tensors of one shape (T, N), got {[tuple(shape) for shape in shapes]}")
    deltas = (rewards + gamma * next_values * ~terminated - values) * valid
    # a number times a bool is float32, even if the rewards are float64
    decays = gamma * gae_lambda * (~(terminated | truncated) & valid).to(deltas.dtype)
    advantages = torch.empty_like(deltas)
    later = torch.zeros_like(deltas[0])
    for delta, decay, advantage in zip(
        reversed(deltas.unbind()), reversed(decays.unbind()), reversed(advantages.unbind()), strict=True
    ):
        later = torch.addcmul(delta, decay, later, out=advantage)
    return advantages


def weighted_mean(values: Tensor, weights: Tensor | None = None) -> Tensor:
    """sum(w * x) / sum(w), and 0 if all weights are 0.

    Args:
        values: Shape (B,).
        weights: Zeros and ones, shape (B,); None for ones. With ones alone the result is that of `mean`, bit for bit.
    """
    if weights is None:
        return values.mean()
    return (values * weights).sum() / weights.sum().clamp(min=1)


def normalize(advantages: Tensor, weights: Tensor | None = None) -> Tensor:
    """Advantages scaled to mean 0 and standard deviation 1; a single advantage becomes 0.

    Args:
        advantages: Shape (B,).
        weights: As in `weighted_mean`.
    """
    if weights is None:
        std, mean = torch.std_mean(advantages, correction=min(1, advantages.numel() - 1))
        return (advantages - mean) / (std + 1e-8)
    errors = (advantages - weighted_mean(advantages, weights)) * weights
    std = (errors.square().sum() / (weights.sum() - 1).clamp(min=1)).sqrt()
    return errors / (std + 1e-8)


def clipped_surrogate_loss(
    log_ratio: Tensor, advantages: Tensor, clip_epsilon: float | Tensor, weights: Tensor | None = None
) -> Tensor:
    """PPO's policy loss: -mean(min(r * A, clip(r, 1 - epsilon, 1 + epsilon) * A)), where r = exp(log_ratio).

    Args:
        log_ratio: log pi_new(a|s) - log pi_old(a|s), shape (B,), nats.
        advantages: Shape (B,).
        clip_epsilon: Clip range, epsilon: moving the ratio further than this from 1 gains nothing. A number or a scalar tensor.
        weights: As in `weighted_mean`.

    Source: Schulman et al. 2017, https://arxiv.org/abs/1707.06347, equation 7.
    """
    _require_same_vectors(log_ratio, advantages)
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1 - clip_epsilon, 1 + clip_epsilon)  # type: ignore[arg-type]  # both are numbers, or both tensors
    return -weighted_mean(torch.minimum(ratio * advantages, clipped * advantages), weights)


def value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, value_clip: float | None, weights: Tensor | None = None
) -> Tensor:
    """Half the mean squared error of the critic, optionally of the worse of the clipped and the unclipped prediction.

    0.5 * mean((V - R)^2), or with clipping 0.5 * mean(max((V - R)^2, (V_old + clip(V - V_old, -c, c) - R)^2))

    Args:
        values: Shape (B,).
        old_values: Outputs of the critic before the update, shape (B,).
        returns: Shape (B,).
        value_clip: c, in units of return; None for no clipping.
        weights: As in `weighted_mean`.
    """
    _require_same_vectors(values, old_values, returns)
    errors = (values - returns).square()
    if value_clip is not None:
        clipped = old_values + (values - old_values).clamp(-value_clip, value_clip)
        errors = torch.maximum(errors, (clipped - returns).square())
    return 0.5 * weighted_mean(errors, weights)


class PPOLoss(NamedTuple):
    """The parts of the loss, scalars."""

    total: Tensor
    policy: Tensor
    value: Tensor
    entropy: Tensor


def ppo_loss(
    log_ratio: Tensor,
    advantages: Tensor,
    entropies: Tensor,
    values: Tensor,
    old_values: Tensor,
    returns: Tensor,
    *,
    clip_epsilon: float | Tensor,
    value_clip: float | None,
    value_coefficient: float,
    entropy_coefficient: float,
    weights: Tensor | None = None,
) -> PPOLoss:
    """L = L_policy + c_v * L_value - c_e * mean entropy.

    Args:
        log_ratio: Shape (B,), nats.
        advantages: Normalised or not, shape (B,).
        entropies: Of the policy at each observation, shape (B,), nats.
        values: Of the critic now, shape (B,).
        old_values: Of the critic that acted, shape (B,).
        returns: Targets of the values, shape (B,).
        clip_epsilon: As in `clipped_surrogate_loss`.
        value_clip: As in `value_loss`.
        value_coefficient: c_v.
        entropy_coefficient: c_e.
        weights: As in `weighted_mean`.

    Source: Schulman et al. 2017, https://arxiv.org/abs/1707.06347, equation 9.
    """
    policy = clipped_surrogate_loss(log_ratio, advantages, clip_epsilon, weights)
    value = value_loss(values, old_values, returns, value_clip, weights)
    entropy = weighted_mean(entropies, weights)
    total = policy + value_coefficient * value
    if entropy_coefficient:  # a bonus of 0 would still cost a backward pass
        total = total - entropy_coefficient * entropy
    return PPOLoss(total, policy, value, entropy)


def approximate_kl(log_ratio: Tensor, weights: Tensor | None = None) -> Tensor:
    """Low-variance, non-negative estimate of KL(old || new): mean(r - 1 - log r).

    Args:
        log_ratio: log pi_new(a|s) - log pi_old(a|s), shape (B,), nats.
        weights: As in `weighted_mean`.

    Returns:
        Scalar, nats.

    Source: http://joschu.net/blog/kl-approx.html, estimator k3.
    """
    # expm1: an update begins near 0, where exp() - 1 would be nothing but rounding error of either sign
    return weighted_mean(log_ratio.expm1() - log_ratio, weights)


def clip_fraction(log_ratio: Tensor, clip_epsilon: float, weights: Tensor | None = None) -> Tensor:
    """Share of samples whose ratio lies outside [1 - epsilon, 1 + epsilon].

    Args:
        log_ratio: Shape (B,), nats.
        clip_epsilon: As in `clipped_surrogate_loss`.
        weights: As in `weighted_mean`.
    """
    return weighted_mean(((log_ratio.exp() - 1).abs() > clip_epsilon).to(log_ratio.dtype), weights)


def linear_decay(start: float, env_steps: int, decay_steps: int | None) -> float:
    """Linear decay from `start` to 0 over `decay_steps` env steps; constant if that is None."""
    return start if decay_steps is None else start * max(0.0, 1.0 - env_steps / decay_steps)


def _require_same_vectors(*tensors: Tensor) -> None:
    """(B,) against (B, 1) would broadcast to (B, B) without an error."""
    shapes = {tensor.shape for tensor in tensors}
    if len(shapes) != 1 or len(tensors[0].shape) != 1:
        raise ValueError(f"expected tensors of one shape (B,), got {[tuple(tensor.shape) for tensor in tensors]}")
