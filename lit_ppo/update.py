"""The PPO loss of a minibatch and its gradients, eager or as one compiled program, summed over shards and clipped."""

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from lit_ppo import functional
from lit_ppo.compat_torch import clip_gradients
from lit_ppo.distributions import Distribution
from lit_ppo.errors import ConfigError
from lit_ppo.policy import Policy
from lit_ppo.ppo_settings import PPOSettings
from lit_ppo.rollout import Batch
from lit_ppo.spaces import Leaf


class PartResult(NamedTuple):
    """Loss and diagnostics of a shard's part of a minibatch; detached."""

    loss: functional.PPOLoss  # as if the part were the whole
    log_ratio: Tensor  # (R,) log pi_new(a|s) - log pi_old(a|s), nats; 0 for rows that are not transitions


class MinibatchResult(NamedTuple):
    """Loss and diagnostics of one minibatch; detached."""

    loss: functional.PPOLoss
    log_ratios: tuple[Tensor, ...]  # those of `PartResult`, for each of this rank's shards
    gradient_norm: Tensor  # of all gradients together, before clipping; scalar


class Predictions(NamedTuple):
    """What the policy says now of the rows of a minibatch: the first argument of a loss."""

    log_ratio: Tensor  # (R,) log pi_new(a|s) - log pi_old(a|s), nats; 0 for rows that are not transitions
    entropies: Tensor  # (R,) nats
    values: Tensor  # (R,)
    outputs: Tensor  # (R, num_outputs) of the actor


class LossSettings(NamedTuple):
    """Settings of the loss: the third argument of a loss."""

    clip_epsilon: float | Tensor  # decayed; a scalar tensor in a compiled program
    value_clip: float | None
    value_coefficient: float
    entropy_coefficient: float


Loss = Callable[[Predictions, Batch, LossSettings], functional.PPOLoss]


def ppo_loss(predictions: Predictions, minibatch: Batch, settings: LossSettings) -> functional.PPOLoss:
    """PPO's own loss; `model.loss` puts another function of the same kind in its place.

    Args:
        predictions: What the policy says now.
        minibatch: The rows; their advantages are normalised already, as `model.normalize_advantages` says.
        settings: Clip ranges and coefficients.
    """
    return functional.ppo_loss(
        predictions.log_ratio,
        minibatch.advantages,
        predictions.entropies,
        predictions.values,
        minibatch.old_values,
        minibatch.returns,
        clip_epsilon=settings.clip_epsilon,
        value_clip=settings.value_clip,
        value_coefficient=settings.value_coefficient,
        entropy_coefficient=settings.entropy_coefficient,
        weights=minibatch.weights,
    )


def minibatch_loss(
    outputs: Tensor,
    values: Tensor,
    minibatch: Batch,
    clip_epsilon: float | Tensor,
    distribution: Distribution,
    settings: PPOSettings,
) -> tuple[functional.PPOLoss, Tensor]:
    """The loss of one minibatch, and its log-ratios, shape (R,), nats.

    Args:
        outputs: Of the actor, shape (R, num_outputs).
        values: Outputs of the critic, shape (R,).
        minibatch: The rows.
        clip_epsilon: As in `functional.clipped_surrogate_loss`.
        distribution: What the actor's outputs describe.
        settings: Value clipping, coefficients, and the loss itself.

    Raises:
        ConfigError: The user's loss returns something else than a loss.
    """
    log_probs, entropies = distribution.log_probs_and_entropies(outputs, minibatch.actions)
    log_ratio = log_probs - minibatch.old_log_probs
    if minibatch.weights is not None:
        log_ratio = log_ratio * minibatch.weights  # a ratio far from 1 could be infinite, and 0 * infinity is NaN
    loss_settings = LossSettings(clip_epsilon, settings.value_clip, settings.value_coefficient, settings.entropy_coefficient)
    loss_of: Loss = settings.loss or ppo_loss
    loss = loss_of(Predictions(log_ratio, entropies, values, outputs), minibatch, loss_settings)
    if not isinstance(loss, functional.PPOLoss):
        raise ConfigError(f"model.loss: expected it to return a lit_ppo.functional.PPOLoss, got {type(loss).__name__}")
    return loss, log_ratio


class EagerGradients:
    """Computes the gradients of a shard's part of a minibatch in eager mode and stores them in `parameter.grad`.

    Args:
        policy: Actor and critic.
        settings: Hyperparameters of the loss.
        backward: Runs the backward pass; called with the part's share of the loss.
    """

    def __init__(
        self, policy: Policy, settings: PPOSettings, backward: Callable[[Tensor], Any] = torch.autograd.backward
    ) -> None:
        self._policy, self._settings, self._backward = policy, settings, backward
        self._parameters = list(policy.parameters())

    def __call__(self, part: Batch, share: float | Tensor, clip_epsilon: float) -> PartResult:
        """Replace the gradients by those of `share` times the loss of this part.

        Args:
            part: The rows, their advantages normalised.
            share: What the part's mean counts in that of the minibatch.
            clip_epsilon: As in `minibatch_loss`.
        """
        outputs, values, _ = self._policy(part.obs, part.state, part.begins)
        loss, log_ratio = minibatch_loss(outputs, values, part, clip_epsilon, self._policy.distribution, self._settings)
        for parameter in self._parameters:
            parameter.grad = None
        is_whole = isinstance(share, float) and share == 1  # then a product would only take time
        self._backward(loss.total if is_whole else loss.total * share)
        return PartResult(functional.PPOLoss(*(piece.detach() for piece in loss)), log_ratio.detach())


def part_gradients(
    policy: Policy, settings: PPOSettings, parameters: dict[str, Tensor], part: Batch, share: Tensor, clip_epsilon: Tensor
) -> tuple[PartResult, list[Tensor]]:
    """The same as `EagerGradients` as a pure function: the result, and the gradients in the order of `parameters`.

    Args:
        policy: Its own parameters are used only for names that are not in `parameters`.
        settings: As in `EagerGradients`.
        parameters: The trained parameters by their names in `policy`; gradients are taken with respect to them.
        part: The transitions.
        share, clip_epsilon: Scalars.
    """

    def total_loss(parameters: dict[str, Tensor]) -> tuple[Tensor, tuple[functional.PPOLoss, Tensor]]:
        # tie_weights=True would leave temporary tensors in a layer that both networks share
        arguments = (part.obs, part.state, part.begins)
        outputs, values, _ = torch.func.functional_call(policy, parameters, arguments, tie_weights=False)
        loss, log_ratio = minibatch_loss(outputs, values, part, clip_epsilon, policy.distribution, settings)
        return loss.total * share, (loss, log_ratio)

    by_name, (loss, log_ratio) = torch.func.grad(total_loss, has_aux=True)(parameters)
    return PartResult(loss, log_ratio), list(by_name.values())


def blank_minibatch(observation: Sequence[Leaf], policy: Policy, num_sequences: int, *, weighted: bool) -> Batch:
    """A minibatch of lower bounds and zeros, for what compiles a program for its shapes and dtypes.

    Args:
        observation: Leaves of an observation.
        policy: Who would have acted.
        num_sequences: S.
        weighted: Whether rows have weights.
    """
    num_rows = num_sequences * policy.sequence_length
    obs = {}
    for leaf in observation:
        low = leaf.bounds()[0] if leaf.is_integer else 0.0  # 0 may be no choice of a discrete leaf
        values = np.full((num_rows, *leaf.shape), low, policy.seen_as(leaf.path, np.dtype(leaf.dtype)))
        obs[leaf.path] = torch.from_numpy(values)
    actions = torch.zeros(num_rows, *policy.distribution.action_shape, dtype=policy.distribution.action_dtype)
    state = policy.initial_state(num_sequences)
    # separate tensors: aliased columns would specialise the compiled program
    return Batch(
        obs=obs,
        actions=actions,
        old_log_probs=torch.zeros(num_rows),
        old_values=torch.zeros(num_rows),
        advantages=torch.zeros(num_rows),
        returns=torch.zeros(num_rows),
        weights=torch.ones(num_rows) if weighted else None,
        begins=None if state is None else torch.zeros(num_rows, dtype=torch.bool),
        state=state,
    )


class CompiledGradients:
    """Computes the gradients of a shard's part of a minibatch in one compiled program: networks, loss and backward pass.

    The set of trained parameters is fixed at construction. The first call compiles, and so does the first call with another
    number of transitions. Hooks on parameters and layers are not called.

    Args:
        policy, settings: As in `EagerGradients`.

    Raises:
        ValueError: Two layers share one parameter. (Actor and critic may share a layer.)
    """

    def __init__(self, policy: Policy, settings: PPOSettings) -> None:
        owned = [
            parameter
            for layer in policy.modules()
            for _, parameter in layer.named_parameters(recurse=False, remove_duplicate=False)
        ]
        if len({id(parameter) for parameter in owned}) < len(owned):
            raise ValueError("two layers share one parameter")
        self._parameters = {name: parameter for name, parameter in policy.named_parameters() if parameter.requires_grad}
        self._compiled: Callable[..., tuple[PartResult, list[Tensor]]] = torch.compile(
            partial(part_gradients, policy, settings)
        )
        self._scalars: dict[str, tuple[float, Tensor]] = {}

    @torch.no_grad()
    def __call__(self, part: Batch, share: float | Tensor, clip_epsilon: float) -> PartResult:
        """Replace the gradients by those of this part; arguments as in `EagerGradients`."""
        device = part.actions.device
        scalars = self._scalar("share", share, device), self._scalar("clip_epsilon", clip_epsilon, device)
        result, gradients = self._compiled(self._parameters, part, *scalars)
        for parameter, gradient in zip(self._parameters.values(), gradients, strict=True):
            parameter.grad = gradient
        return result

    def _scalar(self, name: str, value: float | Tensor, device: torch.device) -> Tensor:
        """A number as a tensor: a Python number would become a constant of the program, and each new one compile again."""
        if isinstance(value, Tensor):
            return value
        if name not in self._scalars or self._scalars[name][0] != value:
            self._scalars[name] = value, torch.tensor(value, device=device)
        return self._scalars[name][1]


class SummedGradients:
    """The gradients of a minibatch in `parameter.grad`: those of its parts, added in the order of the shards, then clipped.

    Gradients and losses of all parts travel between the ranks in one flat buffer, between backward pass and clipping.

    Args:
        of_part: Computes the gradients of a part.
        parameters: What has gradients.
        max_grad_norm: Largest norm of all gradients together; None for no limit.
        num_shards: S.
        gather: Joins the rows of all ranks, as `Ranks.gather`; not called for one shard.
    """

    def __init__(
        self,
        of_part: EagerGradients | CompiledGradients,
        parameters: Iterable[nn.Parameter],
        max_grad_norm: float | None,
        num_shards: int = 1,
        gather: Callable[[Tensor], Tensor] = lambda rows: rows,
    ) -> None:
        self.of_part, self._parameters = of_part, list(parameters)
        self._limit = math.inf if max_grad_norm is None else max_grad_norm
        self._num_shards, self._gather = num_shards, gather

    def __call__(self, parts: Sequence[Batch], shares: Sequence[float | Tensor], clip_epsilon: float) -> MinibatchResult:
        """Replace the gradients by those of a minibatch.

        Args:
            parts: The minibatch's rows of each of this rank's shards, their advantages normalised.
            shares: What the mean of each part counts in that of the minibatch.
            clip_epsilon: As in `minibatch_loss`.
        """
        results, rows = [], []
        for part, share in zip(parts, shares, strict=True):
            results.append(self.of_part(part, share, clip_epsilon))
            if self._num_shards > 1:
                rows.append(self._flat(results[-1].loss, share))
        loss = results[0].loss if self._num_shards == 1 else self._sum(torch.stack(rows))
        norm = clip_gradients(self._parameters, self._limit)
        return MinibatchResult(loss, tuple(result.log_ratio for result in results), norm)

    def _trained(self) -> list[nn.Parameter]:
        return [parameter for parameter in self._parameters if parameter.grad is not None]

    def _flat(self, loss: functional.PPOLoss, share: float | Tensor) -> Tensor:
        """Gradients and share of the loss of one part, one after the other."""
        gradients = [parameter.grad.flatten() for parameter in self._trained() if parameter.grad is not None]
        return torch.cat([*gradients, torch.stack(loss) * share])

    def _sum(self, rows: Tensor) -> functional.PPOLoss:
        """Add the rows of all shards, one after the other; store the gradients, return the loss."""
        total, *others = self._gather(rows).unbind()
        for other in others:
            total = total + other
        trained = self._trained()
        *gradients, loss = torch.split(total, [*(parameter.numel() for parameter in trained), len(functional.PPOLoss._fields)])
        for parameter, gradient in zip(trained, gradients, strict=True):
            parameter.grad = gradient.view_as(parameter)
        return functional.PPOLoss(*loss.unbind())
