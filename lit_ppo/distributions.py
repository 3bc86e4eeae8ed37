"""Distributions of actions, as functions of the policy's outputs: one frozen dataclass for each kind of action space.

`torch.distributions` objects are built and validated in every call. At the sizes of control tasks that costs as much as the
networks themselves.

The policy counts its choices from 0 and learns from the number that it drew; `to_env` makes of it what the environment takes.
B is the size of a batch, D the number of components of an action. Noise is drawn ahead, for a whole rollout at a time.
"""

import math
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  the usual name

from lit_ppo.spaces import Leaf

ActionBounds = Literal["clip", "refuse"]

_HALF_LOG_TWO_PI: Final = 0.5 * math.log(2 * math.pi)


class Distribution(Protocol):
    """What every distribution of actions can do; all of it is pure."""

    @property
    def num_outputs(self) -> int:
        """How many numbers describe the distribution in one state."""

    @property
    def action_shape(self) -> tuple[int, ...]:
        """Shape of one action."""

    @property
    def action_dtype(self) -> torch.dtype:
        """Dtype of the actions that the policy learns from: int64 or float32."""

    def draw_noise(self, num_steps: int, num_envs: int, generator: torch.Generator) -> Tensor:
        """Noise for `sample`, shape (T, N, ...), on the generator's device."""

    def sample(self, outputs: Tensor, noise: Tensor) -> Tensor:
        """Actions, shape (B, *action_shape), from outputs of shape (B, num_outputs) and one step's noise."""

    def mode(self, outputs: Tensor) -> Tensor:
        """The most probable actions, shape (B, *action_shape)."""

    def log_probs_and_entropies(self, outputs: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """log pi(a|s) and the policy's entropy, both of shape (B,), nats: sums over the components of an action."""

    def to_env(self, actions: NDArray[Any]) -> NDArray[Any]:
        """The environment's own actions, shape (B, *action_shape), in the dtype of the action leaf."""


@dataclass(frozen=True)
class Categorical:
    """One of A actions, from A logits.

    Attributes:
        num_outputs: Number of actions, A.
        start: The environment's number of the first one.
    """

    num_outputs: int
    start: int
    action_shape = ()
    action_dtype = torch.int64

    def draw_noise(self, num_steps: int, num_envs: int, generator: torch.Generator) -> Tensor:
        return gumbel_noise((num_steps, num_envs, self.num_outputs), generator)

    def sample(self, outputs: Tensor, noise: Tensor) -> Tensor:
        """Samples of softmax(logits): the argmax of logits + Gumbel noise.

        Source: Maddison et al. 2014, https://arxiv.org/abs/1411.0030, section 2.
        """
        return (outputs + noise).argmax(dim=-1)

    def mode(self, outputs: Tensor) -> Tensor:
        return outputs.argmax(dim=-1)

    def log_probs_and_entropies(self, outputs: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        log_probs = outputs.log_softmax(dim=-1)
        entropies = -(log_probs.exp() * log_probs).sum(dim=-1)
        return log_probs.gather(-1, actions.unsqueeze(-1)).squeeze(-1), entropies

    def to_env(self, actions: NDArray[Any]) -> NDArray[Any]:
        return actions + self.start if self.start else actions


@dataclass(frozen=True, eq=False)
class MultiCategorical:
    """D independent choices, from the logits of each, side by side.

    Attributes:
        parts: The choices, in C order.
        low: The environment's number of each first one, shape `action_shape`, in the dtype of the action leaf.
    """

    parts: tuple[Categorical, ...]
    low: NDArray[Any]
    action_dtype = torch.int64

    @property
    def action_shape(self) -> tuple[int, ...]:
        return self.low.shape

    @property
    def num_outputs(self) -> int:
        return sum(part.num_outputs for part in self.parts)

    def draw_noise(self, num_steps: int, num_envs: int, generator: torch.Generator) -> Tensor:
        return gumbel_noise((num_steps, num_envs, self.num_outputs), generator)

    def sample(self, outputs: Tensor, noise: Tensor) -> Tensor:
        return self.mode(outputs + noise)  # the same as for each choice alone

    def mode(self, outputs: Tensor) -> Tensor:
        chosen = [part.mode(logits) for part, logits in zip(self.parts, self._split(outputs), strict=True)]
        return torch.stack(chosen, dim=-1).view(outputs.shape[0], *self.action_shape)

    def log_probs_and_entropies(self, outputs: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        chosen = actions.flatten(1).unbind(-1)  # (B, *action_shape) -> D times (B,)
        both = [
            part.log_probs_and_entropies(logits, choices)
            for part, logits, choices in zip(self.parts, self._split(outputs), chosen, strict=True)
        ]
        return torch.stack([one for one, _ in both]).sum(dim=0), torch.stack([one for _, one in both]).sum(dim=0)

    def to_env(self, actions: NDArray[Any]) -> NDArray[Any]:
        numbers: NDArray[Any] = actions.astype(self.low.dtype) + self.low
        return numbers

    def _split(self, outputs: Tensor) -> tuple[Tensor, ...]:
        return torch.split(outputs, [part.num_outputs for part in self.parts], dim=-1)


@dataclass(frozen=True)
class Bernoulli:
    """D independent zeros and ones, from the logit of each one.

    Attributes:
        action_shape: Shape of one action.
        dtype: Name of the action leaf's dtype.
    """

    action_shape: tuple[int, ...]
    dtype: str
    action_dtype = torch.int64

    @property
    def num_outputs(self) -> int:
        return math.prod(self.action_shape)

    def draw_noise(self, num_steps: int, num_envs: int, generator: torch.Generator) -> Tensor:
        """Standard logistic noise."""
        shape = (num_steps, num_envs, self.num_outputs)
        return torch.rand(shape, device=generator.device, generator=generator).logit_()

    def sample(self, outputs: Tensor, noise: Tensor) -> Tensor:
        return self.mode(outputs + noise)  # P(noise > -logit) = sigmoid(logit)

    def mode(self, outputs: Tensor) -> Tensor:
        return (outputs > 0).to(self.action_dtype).view(outputs.shape[0], *self.action_shape)

    def log_probs_and_entropies(self, outputs: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        ones = actions.reshape(outputs.shape).to(outputs.dtype)
        log_probs = -F.binary_cross_entropy_with_logits(outputs, ones, reduction="none")
        entropies = F.binary_cross_entropy_with_logits(outputs, outputs.sigmoid(), reduction="none")
        return log_probs.sum(dim=-1), entropies.sum(dim=-1)

    def to_env(self, actions: NDArray[Any]) -> NDArray[Any]:
        return actions.astype(self.dtype)


@dataclass(frozen=True, eq=False)
class Gaussian:
    """D independent normal numbers, from D means and D logarithms of standard deviations, side by side.

    Attributes:
        low, high: Bounds of the environment's action, shape `action_shape`, in the dtype of the action leaf.
        bounds: `clip` clips actions to the bounds for the environment; `refuse` leaves them for the contract to refuse.
    """

    low: NDArray[Any]
    high: NDArray[Any]
    bounds: ActionBounds
    action_dtype = torch.float32

    @property
    def action_shape(self) -> tuple[int, ...]:
        return self.low.shape

    @property
    def num_outputs(self) -> int:
        return 2 * self.low.size

    def draw_noise(self, num_steps: int, num_envs: int, generator: torch.Generator) -> Tensor:
        return torch.randn((num_steps, num_envs, self.low.size), device=generator.device, generator=generator)

    def sample(self, outputs: Tensor, noise: Tensor) -> Tensor:
        means, log_stds = outputs.chunk(2, dim=-1)
        return torch.addcmul(means, log_stds.exp(), noise).view(outputs.shape[0], *self.action_shape)

    def mode(self, outputs: Tensor) -> Tensor:
        means, _ = outputs.chunk(2, dim=-1)
        return means.reshape(outputs.shape[0], *self.action_shape)

    def log_probs_and_entropies(self, outputs: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """-0.5 * ((a - mean) / std)^2 - log(std) - log(2 pi) / 2, and 1/2 + log(2 pi) / 2 + log(std), summed."""
        means, log_stds = outputs.chunk(2, dim=-1)
        errors = (actions.reshape(means.shape) - means) * (-log_stds).exp()
        size = means.shape[-1]  # not that of `low`: torch.compile cannot guard an array of numpy's
        log_probs = -size * _HALF_LOG_TWO_PI - torch.addcmul(log_stds, errors, errors, value=0.5).sum(dim=-1)
        return log_probs, log_stds.sum(dim=-1) + size * (0.5 + _HALF_LOG_TWO_PI)

    def to_env(self, actions: NDArray[Any]) -> NDArray[Any]:
        if self.low.dtype.kind != "f":
            actions = np.rint(actions)
        if self.bounds == "clip":
            actions = np.clip(actions, self.low, self.high)
        return actions.astype(self.low.dtype)


def gumbel_noise(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Standard Gumbel noise, drawn on the generator's device: -log(E) with E exponential."""
    return torch.empty(shape, device=generator.device).exponential_(generator=generator).log_().neg_()


def for_action(leaf: Leaf, bounds: ActionBounds = "clip") -> Distribution:
    """The distribution for an action space.

    Args:
        leaf: The action.
        bounds: As in `Gaussian`.
    """
    if leaf.kind == "discrete":
        return Categorical(leaf.choices[0], int(leaf.bounds()[0]))
    low, high = (bound.astype(leaf.dtype) for bound in leaf.bounds())
    if leaf.kind == "multi_discrete":
        return MultiCategorical(tuple(Categorical(choices, 0) for choices in leaf.choices), low)
    if leaf.kind == "multi_binary":
        return Bernoulli(leaf.shape, leaf.dtype)
    return Gaussian(low, high, bounds)
