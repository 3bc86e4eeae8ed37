"""From environments to a batch: collect T steps of N environments, then estimate advantages and flatten.

While the environments step, only the actor runs, on N observations at a time, with noise drawn ahead for the whole rollout.
When the rollout is complete, the critic and the log-probabilities follow in one batched pass each.

An observation is a mapping from the path of a leaf to an array or tensor, each in its own dtype.

The run's datamodule collects, its LightningModule learns. Each knows the other only as one of the two protocols below.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from lit_ppo import functional
from lit_ppo.bridge.client import EnvBridge
from lit_ppo.networks import Observation, seen_as
from lit_ppo.policy import Policy
from lit_ppo.spaces import Leaves

# What one pass of a network without gradients may read: a rollout of images would need many times its own memory.
_BYTES_OF_A_PASS: Final = 1 << 26


class Rollout(NamedTuple):
    """T steps of N environments: the batch that Lightning moves to the device and hands to `training_step`.

    Every rollout has memory of its own, so one that is kept does not change when the next is collected.
    """

    obs: dict[str, Tensor]  # (T + 1, N, *leaf.shape); the last row is where the next rollout begins
    actions: Tensor  # (T, N, *action_shape) as the policy drew them
    rewards: Tensor  # (T, N) float32
    terminated: Tensor  # (T, N) bool
    truncated: Tensor  # (T, N) bool
    valid: Tensor  # (T, N) bool; False: this row is not a transition
    final_steps: Tensor  # (K,) int64; t * N + env of every step that ended an episode
    final_obs: dict[str, Tensor]  # (K, *leaf.shape); the true successors of those steps, which `obs` does not have
    update: int  # number of the update that learns from this rollout, from 0
    env_steps: int  # transitions collected in the run before this rollout


class Batch(NamedTuple):
    """The transitions of one rollout, flattened; B <= T * N, because rows that are not transitions are dropped.

    A minibatch is a batch with fewer rows.
    """

    obs: dict[str, Tensor]  # (B, *leaf.shape)
    actions: Tensor  # (B, *action_shape)
    old_log_probs: Tensor  # (B,) nats, of the policy that acted
    old_values: Tensor  # (B,)
    advantages: Tensor  # (B,)
    returns: Tensor  # (B,) advantages (not normalised) + old_values

    def rows(self, index: Tensor) -> "Batch":
        """The transitions at `index`, shape (I,), int64, in that order."""
        obs = {path: leaf.index_select(0, index) for path, leaf in self.obs.items()}
        return Batch(obs, *(column.index_select(0, index) for column in self[1:]))


class Learner(Protocol):
    """What a datamodule needs of the run's LightningModule."""

    @property
    def policy(self) -> Policy:
        """The policy that acts in the environments."""

    @property
    def device(self) -> torch.device:
        """Where the policy's parameters are."""

    @property
    def learnt_update(self) -> int | None:
        """`Rollout.update` of the newest rollout that this run has learnt from; None before the first."""


class RolloutSource(Protocol):
    """What a LightningModule needs of the run's datamodule."""

    horizon: int
    num_envs: int
    metrics: dict[str, float]  # diagnostics of the newest rollout
    env_steps: int  # transitions collected in the run so far

    @property
    def has_invalid_rows(self) -> bool:
        """Whether a rollout may contain rows that are not transitions."""


class EndedEpisodes(NamedTuple):
    """Undiscounted returns and lengths of the episodes that ended in a rollout, in order of time."""

    returns: list[float]
    lengths: list[int]


def collect_rollout(bridge: EnvBridge, obs: Leaves, policy: Policy, noise: Tensor, *, update: int, env_steps: int) -> Rollout:
    """Act for T steps.

    Args:
        bridge: The environments, after `reset`.
        obs: Their current observations, shape (N, *leaf.shape) each.
        policy: Who acts.
        noise: From the policy's distribution, on the policy's device, shape (T, N, ...).
        update, env_steps: As in `Rollout`.
    """
    horizon, num_envs = steps = noise.shape[:2]
    actor, distribution, device = policy.actor, policy.distribution, noise.device
    # not in inference mode: a layer could not save such a tensor for its backward pass
    rows = {path: np.empty((horizon + 1, *now.shape), seen_as(now.dtype, policy.dtype)) for path, now in obs.items()}
    stored = {path: torch.from_numpy(leaf_rows) for path, leaf_rows in rows.items()}  # the same memory, seen by torch
    actions = torch.empty(*steps, *distribution.action_shape, dtype=distribution.action_dtype)
    action_rows, rewards = actions.numpy(), np.empty(steps, np.float32)
    terminated, truncated, valid = np.zeros(steps, np.bool_), np.zeros(steps, np.bool_), np.ones(steps, np.bool_)
    final_steps = [np.empty(0, np.int64)]
    final_obs = {path: [np.empty((0, *leaf_rows.shape[2:]), leaf_rows.dtype)] for path, leaf_rows in rows.items()}
    for path, leaf_rows in rows.items():
        leaf_rows[0] = obs[path]
    # rows made once: indexing a tensor costs as much as adding two
    leaves_of_steps = zip(*(leaf[:-1].unbind() for leaf in stored.values()), strict=True)
    obs_of_steps = [dict(zip(stored, leaves, strict=True)) for leaves in leaves_of_steps]
    with torch.inference_mode():
        for t, (obs_now, noise_now) in enumerate(zip(obs_of_steps, noise.unbind(), strict=True)):
            seen = {path: leaf.to(device) for path, leaf in obs_now.items()}
            chosen = distribution.sample(actor(seen), noise_now).cpu().numpy()
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
    return Rollout(
        stored,
        actions,
        torch.from_numpy(rewards),
        torch.from_numpy(terminated),
        torch.from_numpy(truncated),
        torch.from_numpy(valid),
        torch.from_numpy(np.concatenate(final_steps)),
        {path: torch.from_numpy(np.concatenate(finals)) for path, finals in final_obs.items()},
        update,
        env_steps,
    )


def make_batch(rollout: Rollout, policy: Policy, *, gamma: float, gae_lambda: float) -> Batch:
    """Values, advantages and log-probabilities of a rollout, flattened.

    Args:
        rollout: On the policy's device.
        policy: Who acted.
        gamma, gae_lambda: As in `functional.generalized_advantages`.
    """
    obs = {path: leaf[:-1].flatten(0, 1) for path, leaf in rollout.obs.items()}  # (T, N, ...) -> (B, ...)
    actions = rollout.actions.flatten(0, 1)
    horizon, num_envs = rollout.rewards.shape
    with torch.inference_mode():
        all_obs = {path: leaf.flatten(0, 1) for path, leaf in rollout.obs.items()}
        all_values = _in_passes(policy.critic, all_obs).view(horizon + 1, num_envs)
        next_values = all_values[1:].clone()
        if len(rollout.final_steps):
            next_values.view(-1)[rollout.final_steps] = _in_passes(policy.critic, rollout.final_obs)
        advantages = functional.generalized_advantages(
            rollout.rewards,
            all_values[:-1],
            next_values,
            rollout.terminated,
            rollout.truncated,
            rollout.valid,
            gamma,
            gae_lambda,
        ).flatten()
        log_probs, _ = policy.distribution.log_probs_and_entropies(_in_passes(policy.actor, obs), actions)
        values = all_values[:-1].flatten()
        returns = advantages + values
        all_valid = bool(rollout.valid.all())
    # clones, because tensors made in inference mode may not be saved for a backward pass
    batch = Batch(obs, actions, *(column.clone() for column in (log_probs, values, advantages, returns)))
    # rows that are not transitions never reach the loss
    return batch if all_valid else batch.rows(rollout.valid.flatten().nonzero().squeeze(-1))


def _in_passes(network: Callable[[Observation], Tensor], obs: dict[str, Tensor]) -> Tensor:
    """A network's outputs for many observations, computed for as many at a time as memory allows."""
    num_rows = len(next(iter(obs.values())))
    row_bytes = sum(leaf[0].numel() * leaf.element_size() for leaf in obs.values())
    passes = range(0, num_rows, max(1, _BYTES_OF_A_PASS // row_bytes))
    return torch.cat([network(part) for part in _parts(obs, passes)]) if len(passes) > 1 else network(obs)


def _parts(obs: dict[str, Tensor], begins: range) -> Iterator[dict[str, Tensor]]:
    for begin in begins:
        yield {path: leaf[begin : begin + begins.step] for path, leaf in obs.items()}


class EpisodeStatistics:
    """Returns and lengths of episodes that may span several rollouts.

    Args:
        num_envs: N.
    """

    def __init__(self, num_envs: int) -> None:
        self._returns, self._lengths = [0.0] * num_envs, [0] * num_envs

    def update(self, rollout: Rollout) -> EndedEpisodes:
        """Count a rollout; returns the episodes that ended in it."""
        rewards, valid = rollout.rewards.numpy().astype(np.float64), rollout.valid.numpy()
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

    def state_dict(self) -> dict[str, Sequence[float]]:
        """Returns and lengths so far of the unfinished episodes."""
        return {"returns": list(self._returns), "lengths": list(self._lengths)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        self._returns, self._lengths = list(state["returns"]), list(state["lengths"])
