"""The categorical distribution of actions, as functions of the policy's logits.

`torch.distributions` objects are built and validated in every call. At the sizes of control tasks that costs as much as the
networks themselves.
"""

import torch
from torch import Tensor


def gumbel_noise(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Standard Gumbel noise, drawn on the generator's device: -log(E) with E exponential."""
    return torch.empty(shape, device=generator.device).exponential_(generator=generator).log_().neg_()


def sample(logits: Tensor, noise: Tensor) -> Tensor:
    """Samples of softmax(logits): the argmax of logits + Gumbel noise.

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
