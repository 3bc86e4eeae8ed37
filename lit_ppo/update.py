"""The PPO loss of a minibatch and its clipped gradients, eager or as one compiled program."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lit_ppo import functional
from lit_ppo.compat_torch import clip_gradients
from lit_ppo.distributions import Distribution
from lit_ppo.errors import ConfigError
from lit_ppo.networks import seen_as
from lit_ppo.policy import Policy
from lit_ppo.ppo_settings import PPOSettings
from lit_ppo.rollout import Batch
from lit_ppo.spaces import Leaf


class MinibatchResult(NamedTuple):
    """Loss and diagnostics of one minibatch; detached."""

    loss: functional.PPOLoss
    log_ratio: Tensor  # (R,) log pi_new(a|s) - log pi_old(a|s), nats; 0 for rows that are not transitions
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
        settings: Normalisation, value clipping, coefficients, and the loss itself.

    Raises:
        ConfigError: The user's loss returns something else than a loss.
    """
    log_probs, entropies = distribution.log_probs_and_entropies(outputs, minibatch.actions)
    log_ratio = log_probs - minibatch.old_log_probs
    if minibatch.weights is not None:
        log_ratio = log_ratio * minibatch.weights  # a ratio far from 1 could be infinite, and 0 * infinity is NaN
    if settings.normalize_advantages == "minibatch":
        minibatch = minibatch._replace(advantages=functional.normalize(minibatch.advantages, minibatch.weights))
    loss_settings = LossSettings(clip_epsilon, settings.value_clip, settings.value_coefficient, settings.entropy_coefficient)
    loss_of: Loss = settings.loss or ppo_loss
    loss = loss_of(Predictions(log_ratio, entropies, values, outputs), minibatch, loss_settings)
    if not isinstance(loss, functional.PPOLoss):
        raise ConfigError(f"model.loss: expected it to return a lit_ppo.functional.PPOLoss, got {type(loss).__name__}")
    return loss, log_ratio


class EagerGradients:
    """Computes the gradients of a minibatch in eager mode and stores them in `parameter.grad`.

    Args:
        policy: Actor and critic.
        settings: Hyperparameters of the loss, and the largest gradient norm.
        backward: Runs the backward pass; called with the loss.
    """

    def __init__(
        self, policy: Policy, settings: PPOSettings, backward: Callable[[Tensor], Any] = torch.autograd.backward
    ) -> None:
        self._policy, self._settings, self._backward = policy, settings, backward
        self._parameters = list(policy.parameters())
        self._limit = math.inf if settings.max_grad_norm is None else settings.max_grad_norm

    def __call__(self, minibatch: Batch, clip_epsilon: float) -> MinibatchResult:
        """Replace the gradients by those of this minibatch, clipped; arguments as in `minibatch_loss`."""
        outputs, values, _ = self._policy(minibatch.obs, minibatch.state, minibatch.begins)
        loss, log_ratio = minibatch_loss(outputs, values, minibatch, clip_epsilon, self._policy.distribution, self._settings)
        for parameter in self._parameters:
            parameter.grad = None
        self._backward(loss.total)
        norm = clip_gradients(self._parameters, self._limit)
        return MinibatchResult(functional.PPOLoss(*(part.detach() for part in loss)), log_ratio.detach(), norm)


def clipped_gradients(
    policy: Policy, settings: PPOSettings, parameters: dict[str, Tensor], minibatch: Batch, clip_epsilon: Tensor
) -> tuple[MinibatchResult, list[Tensor]]:
    """The same as `EagerGradients` as a pure function: the result, and the gradients in the order of `parameters`.

    Args:
        policy: Its own parameters are used only for names that are not in `parameters`.
        settings: As in `EagerGradients`.
        parameters: The trained parameters by their names in `policy`; gradients are taken with respect to them.
        minibatch: The transitions.
        clip_epsilon: A scalar.
    """

    def total_loss(parameters: dict[str, Tensor]) -> tuple[Tensor, tuple[functional.PPOLoss, Tensor]]:
        # tie_weights=True would leave temporary tensors in a layer that both networks share
        arguments = (minibatch.obs, minibatch.state, minibatch.begins)
        outputs, values, _ = torch.func.functional_call(policy, parameters, arguments, tie_weights=False)
        loss, log_ratio = minibatch_loss(outputs, values, minibatch, clip_epsilon, policy.distribution, settings)
        return loss.total, (loss, log_ratio)

    by_name, (loss, log_ratio) = torch.func.grad(total_loss, has_aux=True)(parameters)
    gradients = list(by_name.values())
    norm = torch.nn.utils.get_total_norm(gradients)
    if settings.max_grad_norm is None:
        return MinibatchResult(loss, log_ratio, norm), gradients
    scale = (settings.max_grad_norm / (norm + 1e-6)).clamp(max=1.0)  # as in `torch.nn.utils.clip_grad_norm_`
    return MinibatchResult(loss, log_ratio, norm), [gradient * scale for gradient in gradients]


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
        values = np.full((num_rows, *leaf.shape), low, seen_as(np.dtype(leaf.dtype), policy.dtype))
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
    """Computes the gradients of a minibatch in one compiled program: networks, loss, backward pass and clipping.

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
        self._compiled: Callable[..., tuple[MinibatchResult, list[Tensor]]] = torch.compile(
            partial(clipped_gradients, policy, settings)
        )
        self._clip_epsilon: tuple[float, Tensor] | None = None

    @torch.no_grad()
    def __call__(self, minibatch: Batch, clip_epsilon: float) -> MinibatchResult:
        """Replace the gradients by those of this minibatch, clipped; arguments as in `minibatch_loss`."""
        # a Python number would become a constant of the program, so each new value would compile again
        if self._clip_epsilon is None or self._clip_epsilon[0] != clip_epsilon:
            self._clip_epsilon = clip_epsilon, torch.tensor(clip_epsilon, device=minibatch.actions.device)
        result, gradients = self._compiled(self._parameters, minibatch, self._clip_epsilon[1])
        for parameter, gradient in zip(self._parameters.values(), gradients, strict=True):
            parameter.grad = gradient
        return result
