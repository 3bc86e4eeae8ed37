"""Action distributions: for each kind of action space, what the policy's outputs mean.

Functions on raw network outputs rather than `torch.distributions` objects: those validate and build on every call, which costs
as much as the networks themselves at the sizes of control tasks.
"""

import torch
from torch import Tensor


def gumbel_noise(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Standard Gumbel noise, drawn on the generator's device: -log(E) with E exponential."""
    return torch.empty(shape, device=generator.device).exponential_(generator=generator).log_().neg_()


def sample(logits: Tensor, noise: Tensor) -> Tensor:
    """Actions drawn from softmax(logits): the largest of logits + Gumbel noise.

    Args:
        logits: Shape (..., A).
        noise: Standard Gumbel, shape (..., A).

    Returns:
        Actions, shape (...), int64.

    Source: Maddison et al. 2014, https://arxiv.org/abs/1411.0030, section 2.
    """
    return (logits + noise).argmax(dim=-1)


def mode(logits: Tensor) -> Tensor:
    """The most probable actions, shape (...), from logits of shape (..., A)."""
    return logits.argmax(dim=-1)


def log_probs_and_entropies(logits: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
    """log pi(a|s) and the policy's entropy, both of shape (B,), nats.

    Args:
        logits: Shape (B, A).
        actions: Shape (B,), int64.
    """
    log_probs = logits.log_softmax(dim=-1)
    entropies = -(log_probs.exp() * log_probs).sum(dim=-1)
    return log_probs.gather(-1, actions.unsqueeze(-1)).squeeze(-1), entropies
