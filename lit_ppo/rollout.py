"""From environments to a batch: collect T steps of N environments, then estimate advantages and flatten.

While the environments step, only the actor runs, on N observations at a time, with noise that was drawn ahead; the critic and
the log-probabilities follow in one batched pass each once the rollout is complete.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lit_ppo import distributions, functional
from lit_ppo.bridge.client import EnvBridge

Policy = Callable[[Tensor], Tensor]  # observations (B, *obs_shape) -> logits (B, A)
ValueFunction = Callable[[Tensor], Tensor]  # observations (B, *obs_shape) -> values (B,)


class Batch(NamedTuple):
    """What one update learns from: B = T * N transitions, less those that are none."""

    obs: Tensor  # (B, *obs_shape)
    actions: Tensor  # (B,) int64
    old_log_probs: Tensor  # (B,) nats, of the policy that acted
    old_values: Tensor  # (B,)
    advantages: Tensor  # (B,) not normalised
    returns: Tensor  # (B,) advantages + old_values
    update: int  # number of this update, from 0
    env_steps: int  # transitions collected in the run before this batch


class EndedEpisodes(NamedTuple):
    """Undiscounted returns and lengths of the episodes that ended in a rollout, in order of time."""

    returns: list[float]
    lengths: list[int]


@dataclass
class Rollout:
    """T steps of N environments; the storage is made once and filled again for every rollout.

    Args:
        horizon: T.
        num_envs: N.
        obs_shape: Shape of one observation.
    """

    horizon: int
    num_envs: int
    obs_shape: tuple[int, ...]
    obs: Tensor = field(init=False)  # (T + 1, N, *obs_shape) float32; the last row is where the next rollout begins
    actions: Tensor = field(init=False)  # (T, N) int64
    rewards: Tensor = field(init=False)  # (T, N) float32
    terminated: Tensor = field(init=False)  # (T, N) bool
    truncated: Tensor = field(init=False)  # (T, N) bool
    valid: Tensor = field(init=False)  # (T, N) bool
    # true successors where they are not the next row of `obs`: step, environments (K,), observations (K, *obs_shape)
    final_obs: list[tuple[int, NDArray[np.int64], NDArray[Any]]] = field(init=False)

    def __post_init__(self) -> None:
        steps = (self.horizon, self.num_envs)
        self.obs = torch.zeros(self.horizon + 1, self.num_envs, *self.obs_shape)
        self.actions = torch.zeros(steps, dtype=torch.int64)
        self.rewards = torch.zeros(steps)
        self.terminated, self.truncated = torch.zeros(steps, dtype=torch.bool), torch.zeros(steps, dtype=torch.bool)
        self.valid = torch.ones(steps, dtype=torch.bool)
        self.final_obs = []


@torch.inference_mode()
def collect_rollout(rollout: Rollout, bridge: EnvBridge, obs: NDArray[Any], policy: Policy, noise: Tensor) -> NDArray[Any]:
    """Act for T steps and store what happens.

    Args:
        rollout: Storage, filled anew.
        bridge: The environments, after `reset`.
        obs: What to act on first, shape (N, *obs_shape).
        policy: The actor.
        noise: Standard Gumbel noise on the policy's device, shape (T, N, A).

    Returns:
        The observations to act on next, shape (N, *obs_shape).
    """
    device = noise.device
    stored_obs, stored_rewards = rollout.obs.numpy(), rollout.rewards.numpy()  # the same memory, seen by numpy
    stored_terminated, stored_truncated = rollout.terminated.numpy(), rollout.truncated.numpy()
    stored_valid, stored_actions = rollout.valid.numpy(), rollout.actions.numpy()
    rollout.final_obs = []
    stored_obs[0] = obs
    # rows made once: indexing a tensor costs as much as adding two
    for t, (obs_now, noise_now) in enumerate(zip(rollout.obs[:-1].unbind(), noise.unbind(), strict=True)):
        logits = policy(obs_now.to(device))
        actions = distributions.sample(logits, noise_now).cpu().numpy()
        step = bridge.step(actions)
        stored_actions[t], stored_rewards[t], stored_valid[t] = actions, step.rewards, step.valid
        stored_terminated[t], stored_truncated[t] = step.terminated, step.truncated
        stored_obs[t + 1] = step.obs
        if step.any_ended:
            ended = np.flatnonzero(step.terminated | step.truncated)
            rollout.final_obs.append((t, ended, step.next_obs[ended]))
    return step.obs.copy()


@torch.inference_mode()
def make_batch(
    rollout: Rollout,
    policy: Policy,
    value_function: ValueFunction,
    *,
    gamma: float,
    gae_lambda: float,
    device: torch.device,
    update: int,
    env_steps: int,
) -> Batch:
    """Values, advantages and log-probabilities of a rollout, flattened.

    Args:
        rollout: As `collect_rollout` left it.
        policy: The actor that acted.
        value_function: The critic.
        gamma, gae_lambda: As in `functional.generalized_advantages`.
        device: Where the networks are, and the batch is to be.
        update, env_steps: As in `Batch`.
    """
    horizon, num_envs = rollout.horizon, rollout.num_envs
    obs = rollout.obs.to(device)
    values = value_function(obs.flatten(0, 1)).view(horizon + 1, num_envs)
    next_values = values[1:].clone()
    if rollout.final_obs:
        rows = np.concatenate([step * num_envs + envs for step, envs, _ in rollout.final_obs])
        final_obs = torch.from_numpy(np.concatenate([obs for _, _, obs in rollout.final_obs]).astype(np.float32))
        next_values.view(-1)[torch.from_numpy(rows).to(device)] = value_function(final_obs.to(device))
    valid = rollout.valid.to(device)
    advantages = functional.generalized_advantages(
        rollout.rewards.to(device),
        values[:-1],
        next_values,
        rollout.terminated.to(device),
        rollout.truncated.to(device),
        valid,
        gamma,
        gae_lambda,
    )
    flat_obs, actions = obs[:-1].flatten(0, 1), rollout.actions.to(device).flatten()
    log_probs, _ = distributions.log_probs_and_entropies(policy(flat_obs), actions)
    flat_values, flat_advantages = values[:-1].flatten(), advantages.flatten()
    columns = [flat_obs, actions, log_probs, flat_values, flat_advantages, flat_advantages + flat_values]
    if not rollout.valid.all():  # rows that are no transition never reach the loss
        columns = [column[valid.flatten()] for column in columns]
    # clones: the storage is filled again, and tensors made in inference mode may not be saved for a backward pass
    with torch.inference_mode(False):
        obs_, actions_, log_probs_, values_, advantages_, returns_ = [column.clone() for column in columns]
        return Batch(obs_, actions_, log_probs_, values_, advantages_, returns_, update, env_steps)


class EpisodeStatistics:
    """Returns and lengths of episodes, across rollouts.

    Args:
        num_envs: N.
    """

    def __init__(self, num_envs: int) -> None:
        self._returns, self._lengths = [0.0] * num_envs, [0] * num_envs

    def update(self, rollout: Rollout) -> EndedEpisodes:
        """Take a rollout into account; the episodes that ended in it."""
        rewards, valid = rollout.rewards.numpy().astype(np.float64), rollout.valid.numpy()
        boundaries = rollout.terminated.numpy() | rollout.truncated.numpy() | ~valid
        ended: list[tuple[int, int, float, int]] = []
        for env in range(rollout.num_envs):
            begin = 0
            for step in np.flatnonzero(boundaries[:, env]).tolist():
                if valid[step, env]:
                    total = self._returns[env] + float(rewards[begin : step + 1, env].sum())
                    ended.append((step, env, total, self._lengths[env] + step + 1 - begin))
                # a row that is no transition comes after an ending, or gives an episode up whose return nobody knows
                begin, self._returns[env], self._lengths[env] = step + 1, 0.0, 0
            self._returns[env] += float(rewards[begin:, env].sum())
            self._lengths[env] += rollout.horizon - begin
        ended.sort()
        return EndedEpisodes([total for _, _, total, _ in ended], [length for _, _, _, length in ended])

    def state_dict(self) -> dict[str, Sequence[float]]:
        """Returns and lengths of the episodes under way."""
        return {"returns": list(self._returns), "lengths": list(self._lengths)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        self._returns, self._lengths = list(state["returns"]), list(state["lengths"])
