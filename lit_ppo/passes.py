"""The passes of an update: K times through one rollout in permuted minibatches, with an optimizer step for each."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from lit_ppo import functional, seeding
from lit_ppo.errors import NonFiniteUpdate
from lit_ppo.optimization import needs_closure
from lit_ppo.ppo_settings import PPOSettings
from lit_ppo.rollout import Batch
from lit_ppo.update import CompiledGradients, EagerGradients, MinibatchResult

Step = Callable[[Callable[[], Tensor] | None], None]  # a step of the optimizer; its argument computes the loss again


class LearntMinibatch(NamedTuple):
    """A minibatch after its optimizer step."""

    result: MinibatchResult
    weights: Tensor | None  # of its rows, (R,)


class Passes:
    """Learns from one rollout after the other.

    Args:
        settings: Number of passes, sizes, and the limit of the KL divergence.
        gradients: Computes the gradients of a minibatch.
        optimizer: Of the parameters.
        step: Makes a step of the optimizer.
    """

    def __init__(
        self,
        settings: PPOSettings,
        gradients: EagerGradients | CompiledGradients,
        optimizer: Optimizer,
        step: Step,
    ) -> None:
        self._settings, self._gradients, self._optimizer, self._step = settings, gradients, optimizer, step
        self._needs_closure = needs_closure(optimizer)

    def run(self, batch: Batch, update: int, clip_epsilon: float) -> list[list[LearntMinibatch]]:
        """K passes, or fewer if the policy has moved further than allowed; what each of them learnt.

        Args:
            batch: The rollout.
            update: Its number, which decides the minibatches.
            clip_epsilon: Clip range of this update.

        Raises:
            NonFiniteUpdate: As in `_learn`.
        """
        settings = self._settings
        if settings.normalize_advantages == "rollout":
            batch = batch._replace(advantages=functional.normalize(batch.advantages, batch.weights))
        num_minibatches = math.ceil(len(batch.actions) / settings.minibatch_size)
        permutations = seeding.generator(settings.seed, "minibatches", update)
        passes: list[list[LearntMinibatch]] = []
        for _ in range(settings.update_epochs):
            order = torch.randperm(batch.num_sequences, generator=permutations).to(batch.actions.device)
            passes.append([])
            for index in order.tensor_split(num_minibatches):
                minibatch = batch.sequences(index)
                if minibatch.weights is not None and not minibatch.weights.any():
                    continue  # nothing to learn from, and Adam would step by its momentum
                result = self._learn(minibatch, update, clip_epsilon)
                passes[-1].append(LearntMinibatch(result, minibatch.weights))
            if settings.target_kl is not None and passes[-1] and kl_of(passes[-1]) > settings.target_kl:
                break
        return passes

    def _learn(self, minibatch: Batch, update: int, clip_epsilon: float) -> MinibatchResult:
        """One optimizer step.

        Raises:
            NonFiniteUpdate: The loss or a gradient is NaN or infinite; the parameters were not changed. Or an optimizer that
                takes several looks at the loss has made them so.
        """
        result = self._gradients(minibatch, clip_epsilon)
        if not math.isfinite((result.loss.total + result.gradient_norm).item()):
            raise NonFiniteUpdate(
                f"update {update}: the loss is {result.loss.total.item()} and the norm of its gradients "
                f"{result.gradient_norm.item()}; the parameters are those of the last good step. "
                "Try a smaller model.learning_rate or scale the rewards"
            )
        if not self._needs_closure:
            self._step(None)
            return result
        known = [result]  # the loss where the parameters are now, whose gradients are in place
        self._step(lambda: (known.pop() if known else self._gradients(minibatch, clip_epsilon)).loss.total)
        groups = self._optimizer.param_groups
        if not all(parameter.isfinite().all() for group in groups for parameter in group["params"]):
            raise NonFiniteUpdate(
                f"update {update}: the step of {type(self._optimizer).__name__} made a parameter NaN or infinite. "
                "Continue from a checkpoint, with a smaller rate or scaled rewards"
            )
        return result


def kl_of(learnt: Sequence[LearntMinibatch]) -> float:
    """Approximate KL divergence between the policy that acted and the one that learns, over a pass; nats."""
    return float(functional.approximate_kl(*log_ratios(learnt)))


def log_ratios(learnt: Sequence[LearntMinibatch]) -> tuple[Tensor, Tensor | None]:
    """Log-ratios of a pass, and the weights of their rows."""
    weights = [minibatch.weights for minibatch in learnt if minibatch.weights is not None]
    return torch.cat([minibatch.result.log_ratio for minibatch in learnt]), torch.cat(weights) if weights else None
