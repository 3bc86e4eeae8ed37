"""From environments to a batch: collect T steps of N environments, then estimate advantages and flatten.

While the environments step, only the actor runs, on N observations at a time, with noise drawn ahead for the whole rollout.
When the rollout is complete, the critic and the log-probabilities follow in one batched pass. A policy with memory carries its
state from step to step, and from rollout to rollout; in the batched pass it runs again through sequences of L steps, from the
states that it had at their beginnings.

An observation is a mapping from the path of a leaf to an array or tensor, each in its own dtype.

The run's datamodule collects, its LightningModule learns. Each knows the other only as one of the two protocols below.
"""

from collections.abc import Sequence
from typing import Any, Final, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lit_ppo import functional
from lit_ppo.bridge.client import EnvBridge
from lit_ppo.networks import Observation
from lit_ppo.policy import Policy, PolicyOutputs
from lit_ppo.ranks import Ranks
from lit_ppo.seeding import SeedOrigin
from lit_ppo.shards import Shards
from lit_ppo.spaces import EnvSpec, Leaves

# What one pass of a network without gradients may read: a rollout of images would need many times its own memory.
_BYTES_OF_A_PASS: Final = 1 << 26
DEVICES_WITHOUT_FLOAT64: Final = ("mps",)


class Outcomes(NamedTuple):
    """What T steps of all environments of a run brought; every rank knows those of all."""

    rewards: Tensor  # (T, N) float64
    terminated: Tensor  # (T, N) bool
    truncated: Tensor  # (T, N) bool
    valid: Tensor  # (T, N) bool
    begins: Tensor  # (N,) bool

    @property
    def ends(self) -> Tensor:
        """Where an episode ended or a row is no transition, shape (T, N), bool."""
        return self.terminated | self.truncated | ~self.valid


class Rollout(NamedTuple):
    """T steps of N environments: the batch that Lightning moves to the device and hands to `training_step`.

    With several ranks, N are those of one rank.

    Every rollout has memory of its own, so one that is kept does not change when the next is collected.
    """

    obs: dict[str, Tensor]  # (T + 1, N, *leaf.shape); the last row is where the next rollout begins
    actions: Tensor  # (T, N, *action_shape) as the policy drew them
    rewards: Tensor  # (T, N) float64
    terminated: Tensor  # (T, N) bool
    truncated: Tensor  # (T, N) bool
    valid: Tensor  # (T, N) bool; False: this row is not a transition
    final_steps: Tensor  # (K,) int64; t * N + env of every step that ended an episode
    final_obs: dict[str, Tensor]  # (K, *leaf.shape); the true successors of those steps, which `obs` does not have
    begins: Tensor  # (N,) bool; whether an episode begins with the first observation
    states: Tensor | None  # (T / L + 1, N, state_size) at the beginning of each sequence and at the end; None without memory
    update: int  # number of the update that learns from this rollout, from 0
    env_steps: int  # transitions collected in the run before this rollout
    everywhere: Outcomes | None = None  # of all ranks; None if this rank has all environments

    @property
    def outcomes(self) -> Outcomes:
        """Those of all environments of the run."""
        if self.everywhere is not None:
            return self.everywhere
        return Outcomes(self.rewards, self.terminated, self.truncated, self.valid, self.begins)

    def part(self, envs: slice) -> "Rollout":
        """The rollout of some neighbouring environments, in memory of its own: aligned alike on every rank.

        Args:
            envs: Their rows, start and stop.
        """
        num_envs, width = self.rewards.shape[1], envs.stop - envs.start
        steps, rows = self.final_steps // num_envs, self.final_steps % num_envs
        is_in = (rows >= envs.start) & (rows < envs.stop)

        def own(column: Tensor) -> Tensor:
            return column[:, envs].clone(memory_format=torch.contiguous_format)

        return self._replace(
            obs={path: own(leaf) for path, leaf in self.obs.items()},
            actions=own(self.actions),
            rewards=own(self.rewards),
            terminated=own(self.terminated),
            truncated=own(self.truncated),
            valid=own(self.valid),
            final_steps=(steps * width + rows - envs.start)[is_in],
            final_obs={path: leaf[is_in] for path, leaf in self.final_obs.items()},
            begins=self.begins[envs].clone(),
            states=None if self.states is None else own(self.states),
            everywhere=None,
        )


class Batch(NamedTuple):
    """The rows of one rollout, flattened: R = T * N, as S sequences of L steps, one sequence after the other.

    A minibatch is a batch with fewer sequences. Without memory every row is a sequence.
    """

    obs: dict[str, Tensor]  # (R, *leaf.shape)
    actions: Tensor  # (R, *action_shape)
    old_log_probs: Tensor  # (R,) nats, of the policy that acted
    old_values: Tensor  # (R,)
    advantages: Tensor  # (R,)
    returns: Tensor  # (R,) advantages (not normalised) + old_values
    weights: Tensor | None = None  # (R,) 1 for a transition, 0 for a row that is none; None: all rows are transitions
    begins: Tensor | None = None  # (R,) bool; whether an episode begins with this row; None without memory
    state: Tensor | None = None  # (S, state_size) at the beginning of each sequence; None without memory

    @property
    def num_sequences(self) -> int:
        """S."""
        return len(self.actions if self.state is None else self.state)

    def sequences(self, index: Tensor, advantages: Tensor | None = None) -> "Batch":
        """Some sequences.

        Args:
            index: Which, in which order, shape (I,), int64.
            advantages: Of their rows, shape (I * L,); None for this batch's own.
        """
        length = len(self.actions) // self.num_sequences

        def select(column: Tensor) -> Tensor:
            if length == 1:
                return column.index_select(0, index)
            return column.view(-1, length, *column.shape[1:]).index_select(0, index).flatten(0, 1)

        return Batch(
            obs={path: select(leaf) for path, leaf in self.obs.items()},
            actions=select(self.actions),
            old_log_probs=select(self.old_log_probs),
            old_values=select(self.old_values),
            advantages=select(self.advantages) if advantages is None else advantages,
            returns=select(self.returns),
            weights=None if self.weights is None else select(self.weights),
            begins=None if self.begins is None else select(self.begins),
            state=None if self.state is None else self.state.index_select(0, index),
        )


@runtime_checkable
class Learner(Protocol):
    """What a datamodule needs of the run's LightningModule."""

    spec: EnvSpec  # of the environment that the policy is for
    seed_origin: SeedOrigin

    @property
    def run_seed(self) -> int:
        """Seed of the weights and of the minibatches."""

    def take_seed(self, seed: int) -> None:
        """Use another seed, which was typed for the data, unless the weights are no fresh draw any more."""

    @property
    def policy(self) -> Policy:
        """The policy that acts in the environments."""

    @property
    def device(self) -> torch.device:
        """Where the policy's parameters are."""

    @property
    def learnt_update(self) -> int | None:
        """`Rollout.update` of the newest rollout that this run has learnt from; None before the first."""


@runtime_checkable
class RolloutSource(Protocol):
    """What a LightningModule needs of the run's datamodule."""

    horizon: int
    num_envs: int  # of all ranks
    metrics: dict[str, float]  # diagnostics of the newest rollout
    env_steps: int  # transitions collected in the run so far
    update: int  # rollouts collected in the run so far
    shards: Shards  # fixed once fit has started
    ranks: Ranks

    @property
    def has_invalid_rows(self) -> bool:
        """Whether a rollout may contain rows that are not transitions."""

    @property
    def can_continue(self) -> bool:
        """True if its state in a checkpoint includes the environments of a run."""


class EndedEpisodes(NamedTuple):
    """Undiscounted returns and lengths of the episodes that ended in a rollout, in order of time."""

    returns: list[float]
    lengths: list[int]


class Standpoint(NamedTuple):
    """Where a policy stands in N environments."""

    obs: Leaves  # by path, (N, *leaf.shape), to act on next
    begins: NDArray[np.bool_]  # (N,) whether an episode begins with that observation
    state: Tensor | None  # (N, state_size) of the policy; None without memory


def standpoint_after(rollout: Rollout) -> Standpoint:
    """Where the policy stands after a rollout."""
    begins = (rollout.terminated[-1] | rollout.truncated[-1] | ~rollout.valid[-1]).numpy()
    # copies: views would keep the whole rollout in memory
    obs = {path: leaf[-1].numpy().copy() for path, leaf in rollout.obs.items()}
    return Standpoint(obs, begins, None if rollout.states is None else rollout.states[-1].clone())


def collect_rollout(
    bridge: EnvBridge,
    start: Standpoint,
    policy: Policy,
    noise: Tensor,
    *,
    update: int,
    env_steps: int,
    parts: Sequence[slice] = (),
) -> Rollout:
    """Act for T steps.

    Args:
        bridge: The environments, after `reset`.
        start: Where the policy stands in them.
        policy: Who acts.
        noise: Of `Policy.draw_noise`, on the policy's device, shape (T, N, ...).
        update, env_steps: As in `Rollout`.
        parts: The environments that are acted for together, those of one shard; empty for all.
    """
    horizon, num_envs = steps = noise.shape[:2]
    obs, state = start.obs, start.state
    distribution, device, length = policy.distribution, noise.device, policy.sequence_length
    # not in inference mode: a layer could not save such a tensor for its backward pass
    rows = {path: np.empty((horizon + 1, *now.shape), policy.seen_as(path, now.dtype)) for path, now in obs.items()}
    stored = {path: torch.from_numpy(leaf_rows) for path, leaf_rows in rows.items()}  # the same memory, seen by torch
    actions = torch.empty(*steps, *distribution.action_shape, dtype=distribution.action_dtype)
    action_rows, rewards = actions.numpy(), np.empty(steps)
    terminated, truncated, valid = np.zeros(steps, np.bool_), np.zeros(steps, np.bool_), np.ones(steps, np.bool_)
    final_steps = [np.empty(0, np.int64)]
    final_obs = {path: [np.empty((0, *leaf_rows.shape[2:]), leaf_rows.dtype)] for path, leaf_rows in rows.items()}
    for path, leaf_rows in rows.items():
        leaf_rows[0] = obs[path]
    # rows made once: indexing a tensor costs as much as adding two
    leaves_of_steps = zip(*(leaf[:-1].unbind() for leaf in stored.values()), strict=True)
    obs_of_steps = [dict(zip(stored, leaves, strict=True)) for leaves in leaves_of_steps]
    begins, is_on_host = None if state is None else torch.from_numpy(start.begins).to(device), device.type == "cpu"
    states = [state]
    with torch.inference_mode():
        for t, (obs_now, noise_now) in enumerate(zip(obs_of_steps, noise.unbind(), strict=True)):
            seen = obs_now if is_on_host else {path: leaf.to(device) for path, leaf in obs_now.items()}
            drawn, state = _act(policy, seen, state, begins, noise_now, parts)
            chosen = drawn.cpu().numpy()
            step = bridge.step(distribution.to_env(chosen))
            action_rows[t], rewards[t] = chosen, step.rewards
            for path, leaf_rows in rows.items():
                leaf_rows[t + 1] = step.obs[path]
            if not step.all_valid:
                valid[t] = step.valid
            if step.any_ended:
                terminated[t], truncated[t] = step.terminated, step.truncated
                ended = np.flatnonzero(step.terminated | step.truncated)
                final_steps.append(t * num_envs + ended)
                for path, finals in final_obs.items():
                    finals.append(step.final_obs[path][ended].astype(finals[0].dtype))
            if state is not None:
                begins = torch.from_numpy(step.terminated | step.truncated | ~step.valid).to(device)
                if (t + 1) % length == 0:
                    states.append(state)
    return Rollout(
        stored,
        actions,
        torch.from_numpy(rewards),
        torch.from_numpy(terminated),
        torch.from_numpy(truncated),
        torch.from_numpy(valid),
        torch.from_numpy(np.concatenate(final_steps)),
        {path: torch.from_numpy(np.concatenate(finals)) for path, finals in final_obs.items()},
        torch.from_numpy(start.begins.copy()),
        None if state is None else torch.stack([kept for kept in states if kept is not None]),
        update,
        env_steps,
    )


def _act(
    policy: Policy, obs: Observation, state: Tensor | None, begins: Tensor | None, noise: Tensor, parts: Sequence[slice]
) -> tuple[Tensor, Tensor | None]:
    """What `Policy.act` makes of all rows, one part after the other, each in memory of its own as in `Rollout.part`."""
    if not parts:
        return policy.act(obs, state, begins, noise)
    drawn, states = [], []
    for rows in parts:
        seen = {path: leaf[rows].clone() for path, leaf in obs.items()}
        remembered, begin = (None if column is None else column[rows].clone() for column in (state, begins))
        actions, after = policy.act(seen, remembered, begin, noise[rows].clone())
        drawn.append(actions)
        states += [] if after is None else [after]
    return torch.cat(drawn), torch.cat(states) if states else None


def begins_of(rollout: Rollout) -> Tensor:
    """Whether an episode begins with an observation, shape (T + 1, N), bool: after an ending, and after an invalid row."""
    return torch.cat([rollout.begins.unsqueeze(0), rollout.terminated | rollout.truncated | ~rollout.valid])


def make_batch(rollout: Rollout, policy: Policy, *, gamma: float, gae_lambda: float, weighted: bool) -> Batch:
    """Values, advantages and log-probabilities of a rollout, flattened.

    Args:
        rollout: On the policy's device; its rewards are what the critic learns from, in the precision of the networks.
        policy: Who acted.
        gamma, gae_lambda: As in `functional.generalized_advantages`.
        weighted: Whether rows may be no transitions, so that all have weights.
    """
    length, begins_at, rewards = policy.sequence_length, begins_of(rollout), rollout.rewards.to(policy.dtype)
    obs = {path: _by_sequence(leaf[:-1], length) for path, leaf in rollout.obs.items()}
    actions, state, begins = _by_sequence(rollout.actions, length), None, None
    if rollout.states is not None:
        state, begins = rollout.states[:-1].flatten(0, 1), _by_sequence(begins_at[:-1], length)
    with torch.inference_mode():
        if state is None:
            outputs, values, next_values = _without_memory(rollout, policy)
        else:
            outputs, values, next_values = _with_memory(rollout, policy, obs, state, begins_at)
        advantages = functional.generalized_advantages(
            rewards, values, next_values, rollout.terminated, rollout.truncated, rollout.valid, gamma, gae_lambda
        )
        log_probs, _ = policy.distribution.log_probs_and_entropies(outputs, actions)
        values, advantages = _by_sequence(values, length), _by_sequence(advantages, length)
        returns = advantages + values
    # clones, because tensors made in inference mode may not be saved for a backward pass
    return Batch(
        obs=obs,
        actions=actions,
        old_log_probs=log_probs.clone(),
        old_values=values.clone(),
        advantages=advantages.clone(),
        returns=returns.clone(),
        weights=_by_sequence(rollout.valid, length).to(rewards.dtype) if weighted else None,
        begins=begins,
        state=state,
    )


def _without_memory(rollout: Rollout, policy: Policy) -> tuple[Tensor, Tensor, Tensor]:
    """The actor's outputs, shape (T * N, ...), values and values of the true successors, shape (T, N)."""
    horizon, num_envs = rollout.rewards.shape
    # the observations after the rollout go through the same pass
    outputs, all_values, _ = _in_passes(policy, {path: leaf.flatten(0, 1) for path, leaf in rollout.obs.items()}, None, None)
    all_values = all_values.view(horizon + 1, num_envs)
    next_values = all_values[1:].clone()
    if len(rollout.final_steps):
        next_values.view(-1)[rollout.final_steps] = _in_passes(policy, rollout.final_obs, None, None).values
    return outputs[: horizon * num_envs], all_values[:-1], next_values


def _with_memory(
    rollout: Rollout, policy: Policy, obs: dict[str, Tensor], state: Tensor, begins_at: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The same, through sequences; a successor is seen with what the policy remembers after the step.

    Args:
        rollout, policy: As in `make_batch`.
        obs: By sequence, shape (T * N, *leaf.shape).
        state: At the beginning of each sequence, shape (S, state_size).
        begins_at: Of `begins_of`.
    """
    assert rollout.states is not None
    (horizon, num_envs), length, final_steps = rollout.rewards.shape, policy.sequence_length, rollout.final_steps
    outputs, values, states = _in_passes(policy, obs, state, _by_sequence(begins_at[:-1], length))
    assert states is not None
    values, states = (_by_step(rows, horizon, num_envs, length) for rows in (values, states))
    last_obs = {path: leaf[-1] for path, leaf in rollout.obs.items()}
    last_values = policy(last_obs, rollout.states[-1], begins_at[-1]).values
    next_values = torch.cat([values[1:], last_values.unsqueeze(0)])
    if len(final_steps):
        final_states, none_begins = states.flatten(0, 1)[final_steps], torch.zeros_like(final_steps, dtype=torch.bool)
        next_values.view(-1)[final_steps] = _in_passes(policy, rollout.final_obs, final_states, none_begins).values
    return outputs, values, next_values


def _by_sequence(rows: Tensor, length: int) -> Tensor:
    """(T, N, ...) to (T * N, ...): sequences of `length` steps of one environment, one after the other."""
    if length == 1:
        return rows.flatten(0, 1)
    num_envs, shape = rows.shape[1], rows.shape[2:]
    return rows.view(-1, length, num_envs, *shape).transpose(1, 2).flatten(0, 2)


def _by_step(rows: Tensor, horizon: int, num_envs: int, length: int) -> Tensor:
    """(T * N, ...) to (T, N, ...): back from `_by_sequence`."""
    return rows.view(-1, num_envs, length, *rows.shape[1:]).transpose(1, 2).reshape(horizon, num_envs, *rows.shape[1:])


def _in_passes(policy: Policy, obs: dict[str, Tensor], state: Tensor | None, begins: Tensor | None) -> PolicyOutputs:
    """What a policy makes of many sequences, computed for as many at a time as memory allows."""
    num_rows = len(next(iter(obs.values())))
    num_sequences = num_rows if state is None else len(state)
    outputs: PolicyOutputs
    length = num_rows // num_sequences
    sequence_bytes = length * sum(leaf[0].numel() * leaf.element_size() for leaf in obs.values())
    size = max(1, _BYTES_OF_A_PASS // sequence_bytes)
    if size >= num_sequences:
        outputs = policy(obs, state, begins)
        return outputs
    parts: list[PolicyOutputs] = []
    for begin in range(0, num_sequences, size):
        rows, sequences = slice(begin * length, (begin + size) * length), slice(begin, begin + size)
        part = {path: leaf[rows] for path, leaf in obs.items()}
        parts.append(policy(part, None if state is None else state[sequences], None if begins is None else begins[rows]))
    states = [part.states for part in parts if part.states is not None]
    return PolicyOutputs(
        torch.cat([part.outputs for part in parts]),
        torch.cat([part.values for part in parts]),
        torch.cat(states) if states else None,
    )


class EpisodeStatistics:
    """Returns and lengths of episodes that may span several rollouts.

    Args:
        num_envs: N.
    """

    def __init__(self, num_envs: int) -> None:
        self._returns, self._lengths = [0.0] * num_envs, [0] * num_envs

    def update(self, rollout: Outcomes) -> EndedEpisodes:
        """Count a rollout; returns the episodes that ended in it."""
        rewards, valid = rollout.rewards.double().numpy(), rollout.valid.numpy()
        boundaries = rollout.terminated.numpy() | rollout.truncated.numpy() | ~valid
        ended: list[tuple[int, int, float, int]] = []
        horizon, num_envs = valid.shape
        for env in range(num_envs):
            begin = 0
            for step in np.flatnonzero(boundaries[:, env]).tolist():
                if valid[step, env]:
                    total = self._returns[env] + float(rewards[begin : step + 1, env].sum())
                    ended.append((step, env, total, self._lengths[env] + step + 1 - begin))
                # a row that is not a transition follows an ending or an abandoned episode, whose return is unknown
                begin, self._returns[env], self._lengths[env] = step + 1, 0.0, 0
            self._returns[env] += float(rewards[begin:, env].sum())
            self._lengths[env] += horizon - begin
        ended.sort()
        return EndedEpisodes([total for _, _, total, _ in ended], [length for _, _, _, length in ended])

    def begin(self, envs: Sequence[int]) -> None:
        """Forget the unfinished episodes of these environments: others have begun there."""
        for env in envs:
            self._returns[env], self._lengths[env] = 0.0, 0

    def state_dict(self) -> dict[str, Sequence[float]]:
        """Returns and lengths so far of the unfinished episodes."""
        return {"returns": list(self._returns), "lengths": list(self._lengths)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        self._returns, self._lengths = list(state["returns"]), list(state["lengths"])
