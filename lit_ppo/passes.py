"""The passes of an update: K times through one rollout in permuted minibatches, with an optimizer step for each.

A minibatch has as many sequences of one shard as of every other, drawn from a permutation of that shard's. Each rank computes
the gradients of its own shards' parts; what is taken over a whole minibatch, the normalisation of advantages and the sum of
gradients, every rank computes of the same numbers.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from lit_ppo import functional, seeding
from lit_ppo.errors import NonFiniteUpdate
from lit_ppo.optimization import needs_closure
from lit_ppo.ppo_settings import PPOSettings
from lit_ppo.ranks import Ranks
from lit_ppo.rollout import Batch
from lit_ppo.shards import Shards
from lit_ppo.update import MinibatchResult, SummedGradients

Step = Callable[[Callable[[], Tensor] | None], None]  # a step of the optimizer; its argument computes the loss again


class Columns(NamedTuple):
    """What every rank knows of all rows of a rollout, R = T * N: those of the first shard, then those of the second, ..."""

    advantages: Tensor  # (R,) not normalised
    old_values: Tensor  # (R,)
    returns: Tensor  # (R,)
    weights: Tensor | None  # (R,) as in `Batch`

    @property
    def num_valid(self) -> int:
        """Number of rows that are transitions."""
        return len(self.advantages) if self.weights is None else int(self.weights.sum())


def columns_of(batches: Sequence[Batch], ranks: Ranks) -> Columns:
    """The columns of all ranks.

    Args:
        batches: Those of this rank's shards.
        ranks: Of the run.
    """
    own = [torch.cat([getattr(batch, name) for batch in batches]) for name in ("advantages", "old_values", "returns")]
    weights = [batch.weights for batch in batches if batch.weights is not None]
    rows = torch.stack([*own, torch.cat(weights)] if weights else own, dim=1)
    columns = ranks.gather(rows).unbind(1)
    advantages, old_values, returns = (column.contiguous() for column in columns[:3])
    return Columns(advantages, old_values, returns, columns[3].contiguous() if weights else None)


class LearntMinibatch(NamedTuple):
    """A minibatch after its optimizer step."""

    result: MinibatchResult
    num_valid: Tensor | None  # its transitions, of all shards; None: all rows are
    weights: tuple[Tensor | None, ...]  # of the rows of each of this rank's shards


class PassEnd(NamedTuple):
    """How far the policy has moved in a pass, over all shards."""

    kl: float  # approximate, between the policy that acted and the one that learns; nats
    clip_fraction: float


class Learnt(NamedTuple):
    """What an update has learnt from a rollout."""

    minibatches: list[LearntMinibatch]  # of all passes
    end: PassEnd | None  # of the last pass; None if no row of the rollout is a transition


class Passes:
    """Learns from one rollout after the other.

    Args:
        settings: Number of passes, sizes, and the limit of the KL divergence.
        gradients: Computes the gradients of a minibatch.
        optimizer: Of the parameters.
        step: Makes a step of the optimizer.
        shards, ranks: Of the run.
    """

    def __init__(
        self,
        settings: PPOSettings,
        gradients: SummedGradients,
        optimizer: Optimizer,
        step: Step,
        shards: Shards,
        ranks: Ranks,
    ) -> None:
        self._settings, self.gradients, self._optimizer, self._step = settings, gradients, optimizer, step
        self._needs_closure, self._shards, self._ranks = needs_closure(optimizer), shards, ranks

    def run(self, batches: Sequence[Batch], columns: Columns, update: int, clip_epsilon: float) -> Learnt:
        """K passes, or fewer if the policy has moved further than allowed.

        Args:
            batches: The rollout of each of this rank's shards.
            columns: Of all shards.
            update: Number of the update, which decides the minibatches.
            clip_epsilon: Clip range of this update.

        Raises:
            NonFiniteUpdate: As in `_learn`.
        """
        settings = self._settings
        if settings.normalize_advantages == "rollout":
            columns = columns._replace(advantages=functional.normalize(columns.advantages, columns.weights))
        permutations = seeding.generator(settings.seed, "minibatches", update)
        learnt, end = [], None
        for number in range(settings.update_epochs):
            one_pass = []
            for indexes in self._minibatches(batches[0].num_sequences, columns, permutations):
                minibatch = self._minibatch(batches, columns, indexes)
                if minibatch is not None:
                    one_pass.append(self._learn(*minibatch, update, clip_epsilon))
            learnt += one_pass
            if one_pass and (settings.target_kl is not None or number == settings.update_epochs - 1):
                end = self._end_of(one_pass, columns, clip_epsilon)
                if settings.target_kl is not None and end.kl > settings.target_kl:
                    break
        return Learnt(learnt, end)

    def _minibatches(self, num_sequences: int, columns: Columns, permutations: torch.Generator) -> Iterator[tuple[Tensor, ...]]:
        """Which sequences of each shard are in the minibatches of a pass: for each shard, shape (I,), int64."""
        device, num_minibatches = columns.advantages.device, math.ceil(len(columns.advantages) / self._settings.minibatch_size)
        orders = [
            torch.randperm(num_sequences, generator=permutations).to(device).tensor_split(num_minibatches)
            for _ in range(self._shards.num_shards)
        ]
        return zip(*orders, strict=True)

    def _minibatch(
        self, batches: Sequence[Batch], columns: Columns, indexes: Sequence[Tensor]
    ) -> tuple[list[Batch], list[float | Tensor], Tensor | None] | None:
        """The parts of this rank's shards, their shares, and the number of transitions in all parts; None if there are none.

        Args:
            batches: The rollout of each of this rank's shards.
            columns: Of all shards.
            indexes: Of the sequences of each shard.
        """
        shards, num_sequences = self._shards, batches[0].num_sequences
        everywhere = indexes[0]
        if shards.num_shards > 1:
            everywhere = torch.cat([index + shard * num_sequences for shard, index in enumerate(indexes)])
        length = len(batches[0].actions) // num_sequences

        def select(column: Tensor) -> Tensor:
            return column.view(-1, length).index_select(0, everywhere).flatten()

        weights = None if columns.weights is None else select(columns.weights)
        if weights is not None and not weights.any():
            return None  # nothing to learn from, and Adam would step by its momentum
        advantages = select(columns.advantages)
        if self._settings.normalize_advantages == "minibatch":
            advantages = functional.normalize(advantages, weights)
        of_shards = advantages.view(shards.num_shards, -1)
        parts = [batch.sequences(indexes[shard], of_shards[shard]) for shard, batch in zip(shards.own, batches, strict=True)]
        if weights is None:
            return parts, [1 / shards.num_shards] * len(parts), None
        if shards.num_shards == 1:
            return parts, [1.0], weights.sum()
        counts = weights.view(shards.num_shards, -1).sum(1)
        num_valid = counts.sum()
        return parts, [counts[shard] / num_valid for shard in shards.own], num_valid

    def _learn(
        self,
        parts: Sequence[Batch],
        shares: Sequence[float | Tensor],
        num_valid: Tensor | None,
        update: int,
        clip_epsilon: float,
    ) -> LearntMinibatch:
        """One optimizer step.

        Raises:
            NonFiniteUpdate: The loss or a gradient is NaN or infinite; the parameters were not changed. Or an optimizer that
                takes several looks at the loss has made them so.
        """
        result = self.gradients(parts, shares, clip_epsilon)
        if not math.isfinite((result.loss.total + result.gradient_norm).item()):
            raise NonFiniteUpdate(
                f"update {update}: the loss is {result.loss.total.item()} and the norm of its gradients "
                f"{result.gradient_norm.item()}; the parameters are those of the last good step. "
                "Try a smaller model.learning_rate or scale the rewards"
            )
        learnt = LearntMinibatch(result, num_valid, tuple(part.weights for part in parts))
        if not self._needs_closure:
            self._step(None)
            return learnt
        known = [result]  # the loss where the parameters are now, whose gradients are in place
        self._step(lambda: (known.pop() if known else self.gradients(parts, shares, clip_epsilon)).loss.total)
        groups = self._optimizer.param_groups
        if not all(parameter.isfinite().all() for group in groups for parameter in group["params"]):
            raise NonFiniteUpdate(
                f"update {update}: the step of {type(self._optimizer).__name__} made a parameter NaN or infinite. "
                "Continue from a checkpoint, with a smaller rate or scaled rewards"
            )
        return learnt

    def _end_of(self, one_pass: Sequence[LearntMinibatch], columns: Columns, clip_epsilon: float) -> PassEnd:
        """How far the policy has moved in a pass: the mean of each shard, and the mean of these."""
        own = []
        for number in range(len(self._shards.own)):
            log_ratios = torch.cat([minibatch.result.log_ratios[number] for minibatch in one_pass])
            rows = [minibatch.weights[number] for minibatch in one_pass]
            weights = None if columns.weights is None else torch.cat([row for row in rows if row is not None])
            kl = functional.approximate_kl(log_ratios, weights)
            own.append(torch.stack([kl, functional.clip_fraction(log_ratios, clip_epsilon, weights)]))
        of_shards = self._ranks.gather(torch.stack(own)).tolist()
        counts = [1.0] * len(of_shards)
        if columns.weights is not None:
            counts = columns.weights.view(self._shards.num_shards, -1).sum(1).tolist()
        means = (
            sum(value * count for value, count in zip(values, counts, strict=True)) / sum(counts)
            for values in zip(*of_shards, strict=True)
        )
        return PassEnd(*means)
