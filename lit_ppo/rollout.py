"""From environments to a batch: collect T steps of N environments, then estimate advantages and flatten.

While the environments step, only the actor runs, on N observations at a time, with noise drawn ahead for the whole rollout.
When the rollout is complete, the critic and the log-probabilities follow in one batched pass each.

The run's datamodule collects, its LightningModule learns. Each knows the other only as one of the two protocols below.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lit_ppo import distributions, functional
from lit_ppo.bridge.client import EnvBridge

Policy = Callable[[Tensor], Tensor]  # observations (B, *obs_shape) -> logits (B, A)
ValueFunction = Callable[[Tensor], Tensor]  # observations (B, *obs_shape) -> values (B,)


class Rollout(NamedTuple):
    """T steps of N environments: the batch that Lightning moves to the device and hands to `training_step`.

    Every rollout has memory of its own, so one that is kept does not change when the next is collected.
    """

    obs: Tensor  # (T + 1, N, *obs_shape) float32; the last row is where the next rollout begins
    actions: Tensor  # (T, N) int64
    rewards: Tensor  # (T, N) float32
    terminated: Tensor  # (T, N) bool
    truncated: Tensor  # (T, N) bool
    valid: Tensor  # (T, N) bool; False: this row is not a transition
    final_steps: Tensor  # (K,) int64; t * N + env of every step that ended an episode
    final_obs: Tensor  # (K, *obs_shape) float32; the true successors of those steps, which `obs` does not have
    update: int  # number of the update that learns from this rollout, from 0
    env_steps: int  # transitions collected in the run before this rollout


class Batch(NamedTuple):
    """The transitions of one rollout, flattened; B <= T * N, because rows that are not transitions are dropped.

    A minibatch is a batch with fewer rows.
    """

    obs: Tensor  # (B, *obs_shape)
    actions: Tensor  # (B,) int64
    old_log_probs: Tensor  # (B,) nats, of the policy that acted
    old_values: Tensor  # (B,)
    advantages: Tensor  # (B,)
    returns: Tensor  # (B,) advantages (not normalised) + old_values


class Learner(Protocol):
    """What a datamodule needs of the run's LightningModule."""

    @property
    def actor(self) -> Policy:
        """The policy that acts in the environments."""

    @property
    def device(self) -> torch.device:
        """Where the actor's parameters are."""

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


def collect_rollout(
    bridge: EnvBridge, obs: NDArray[Any], policy: Policy, noise: Tensor, *, update: int, env_steps: int
) -> Rollout:
    """Act for T steps.

    Args:
        bridge: The environments, after `reset`.
        obs: Their current observations, shape (N, *obs_shape).
        policy: The actor.
        noise: Standard Gumbel noise on the policy's device, shape (T, N, A).
        update, env_steps: As in `Rollout`.
    """
    horizon, num_envs, _ = noise.shape
    steps = (horizon, num_envs)
    # not in inference mode: a layer could not save such a tensor for its backward pass
    stored_obs = torch.empty(horizon + 1, *obs.shape, dtype=torch.float32)
    obs_rows = stored_obs.numpy()  # the same memory, seen by numpy
    actions, rewards = np.empty(steps, np.int64), np.empty(steps, np.float32)
    terminated, truncated, valid = (np.empty(steps, np.bool_) for _ in range(3))
    final_steps, final_obs = [np.empty(0, np.int64)], [np.empty((0, *obs.shape[1:]), np.float32)]
    obs_rows[0] = obs
    with torch.inference_mode():
        # rows made once: indexing a tensor costs as much as adding two
        for t, (obs_now, noise_now) in enumerate(zip(stored_obs[:-1].unbind(), noise.unbind(), strict=True)):
            chosen = distributions.sample(policy(obs_now.to(noise.device)), noise_now).cpu().numpy()
            step = bridge.step(chosen)
            actions[t], rewards[t], valid[t] = chosen, step.rewards, step.valid
            terminated[t], truncated[t] = step.terminated, step.truncated
            obs_rows[t + 1] = step.obs
            if step.any_ended:
                ended = np.flatnonzero(step.terminated | step.truncated)
                final_steps.append(t * num_envs + ended)
                final_obs.append(step.next_obs[ended].astype(np.float32))
    return Rollout(
        stored_obs,
        torch.from_numpy(actions),
        torch.from_numpy(rewards),
        torch.from_numpy(terminated),
        torch.from_numpy(truncated),
        torch.from_numpy(valid),
        torch.from_numpy(np.concatenate(final_steps)),
        torch.from_numpy(np.concatenate(final_obs)),
        update,
        env_steps,
    )


def make_batch(rollout: Rollout, policy: Policy, value_function: ValueFunction, *, gamma: float, gae_lambda: float) -> Batch:
    """Values, advantages and log-probabilities of a rollout, flattened.

    Args:
        rollout: On the networks' device.
        policy: The actor that acted.
        value_function: The critic.
        gamma, gae_lambda: As in `functional.generalized_advantages`.
    """
    obs, actions = rollout.obs[:-1].flatten(0, 1), rollout.actions.flatten()  # (T, N) -> (B,)
    with torch.inference_mode():
        all_values = value_function(rollout.obs.flatten(0, 1)).view(rollout.obs.shape[:2])  # (T + 1, N)
        next_values = all_values[1:].clone()
        if len(rollout.final_steps):
            next_values.view(-1)[rollout.final_steps] = value_function(rollout.final_obs)
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
        log_probs, _ = distributions.log_probs_and_entropies(policy(obs), actions)
        values = all_values[:-1].flatten()
        returns = advantages + values
        all_valid = bool(rollout.valid.all())
    # clones, because tensors made in inference mode may not be saved for a backward pass
    batch = Batch(obs, actions, *(column.clone() for column in (log_probs, values, advantages, returns)))
    if all_valid:
        return batch
    valid = rollout.valid.flatten()
    return Batch(*(column[valid] for column in batch))  # rows that are not transitions never reach the loss


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
