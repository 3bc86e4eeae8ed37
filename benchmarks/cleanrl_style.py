"""PPO as most people write it: one loop, eager torch, `Categorical`, Adam and a `SyncVectorEnv`, after "The 37 Implementation
Details of PPO" (Huang et al. 2022) with CleanRL's settings. Written anew for this benchmark; no code is copied.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import gymnasium
import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Categorical


@dataclass(frozen=True)
class Settings:
    """CleanRL's defaults for CartPole-v1."""

    num_envs: int = 4
    horizon: int = 128
    learning_rate: float = 2.5e-4
    anneal_over: int | None = 500_000  # env steps; None for a constant learning rate
    gamma: float = 0.99
    gae_lambda: float = 0.95
    update_epochs: int = 4
    num_minibatches: int = 4
    clip_epsilon: float = 0.2
    clips_value_loss: bool = True
    value_coefficient: float = 0.5
    entropy_coefficient: float = 0.01
    max_grad_norm: float = 0.5
    seed: int = 0


def _mlp(num_inputs: int, num_outputs: int, output_gain: float) -> nn.Sequential:
    layers = [nn.Linear(num_inputs, 64), nn.Linear(64, 64), nn.Linear(64, num_outputs)]
    for layer, gain in zip(layers, (2**0.5, 2**0.5, output_gain), strict=True):
        nn.init.orthogonal_(layer.weight, gain)
        nn.init.zeros_(layer.bias)
    return nn.Sequential(layers[0], nn.Tanh(), layers[1], nn.Tanh(), layers[2])


class Agent(nn.Module):
    """Separate actor and critic, 64 x 64 tanh."""

    def __init__(self, num_inputs: int, num_actions: int) -> None:
        super().__init__()
        self.critic, self.actor = _mlp(num_inputs, 1, 1.0), _mlp(num_inputs, num_actions, 0.01)

    def act(self, obs: Tensor, actions: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Actions (sampled unless given), their log-probabilities, entropies and values, all of shape (B,)."""
        policy = Categorical(logits=self.actor(obs))
        if actions is None:
            actions = policy.sample()
        return actions, policy.log_prob(actions), policy.entropy(), self.critic(obs).squeeze(-1)


def train(settings: Settings) -> Iterator[tuple[int, Agent]]:
    """Env steps so far and the agent: once when all is made, then after each update, for ever."""
    s = settings
    torch.manual_seed(s.seed)
    np.random.seed(s.seed)  # shuffles the minibatches
    envs = gymnasium.vector.SyncVectorEnv(
        [
            lambda: gymnasium.wrappers.RecordEpisodeStatistics(gymnasium.make("CartPole-v1"))  # as CleanRL makes them
            for _ in range(s.num_envs)
        ],
        autoreset_mode=gymnasium.vector.AutoresetMode.SAME_STEP,
    )
    agent = Agent(4, 2)
    optimizer = torch.optim.Adam(agent.parameters(), lr=s.learning_rate, eps=1e-5)
    shape = (s.horizon, s.num_envs)
    obs, actions = torch.zeros(*shape, 4), torch.zeros(shape, dtype=torch.int64)
    log_probs, rewards, dones, values = (torch.zeros(shape) for _ in range(4))
    next_obs, next_done = torch.as_tensor(envs.reset(seed=s.seed)[0]), torch.zeros(s.num_envs)
    batch_size, env_steps = s.horizon * s.num_envs, 0
    yield env_steps, agent
    while True:
        if s.anneal_over is not None:
            optimizer.param_groups[0]["lr"] = s.learning_rate * (1 - env_steps / s.anneal_over)
        for t in range(s.horizon):
            obs[t], dones[t] = next_obs, next_done
            with torch.no_grad():
                actions[t], log_probs[t], _, values[t] = agent.act(next_obs)
            stepped, reward, terminated, truncated, _ = envs.step(actions[t].numpy())
            rewards[t] = torch.as_tensor(reward)
            next_obs = torch.as_tensor(stepped)
            next_done = torch.as_tensor(np.logical_or(terminated, truncated), dtype=torch.float32)
        env_steps += batch_size
        advantages = _advantages(rewards, values, dones, next_done, agent, next_obs, s)
        _update(agent, optimizer, s, obs, actions, log_probs, advantages, values)
        yield env_steps, agent


@torch.no_grad()
def _advantages(
    rewards: Tensor, values: Tensor, dones: Tensor, next_done: Tensor, agent: Agent, next_obs: Tensor, s: Settings
) -> Tensor:
    """Generalized advantages as CleanRL has them: a time limit counts as an ending."""
    next_value, later = agent.critic(next_obs).squeeze(-1), torch.zeros(s.num_envs)
    advantages = torch.zeros_like(rewards)
    for t in reversed(range(s.horizon)):
        alive = 1 - (next_done if t == s.horizon - 1 else dones[t + 1])
        delta = rewards[t] + s.gamma * next_value * alive - values[t]
        advantages[t] = later = delta + s.gamma * s.gae_lambda * alive * later
        next_value = values[t]
    return advantages


def _update(
    agent: Agent,
    optimizer: torch.optim.Optimizer,
    s: Settings,
    obs: Tensor,
    actions: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    values: Tensor,
) -> None:
    columns = [c.flatten(0, 1) for c in (obs, actions, old_log_probs, advantages, values)]
    returns = (advantages + values).flatten()
    indices, size = np.arange(len(returns)), len(returns) // s.num_minibatches
    clip_fractions = []
    for _ in range(s.update_epochs):
        np.random.shuffle(indices)
        for start in range(0, len(indices), size):
            chosen = indices[start : start + size]
            mb_obs, mb_actions, mb_log_probs, mb_advantages, mb_values = (column[chosen] for column in columns)
            _, new_log_probs, entropies, new_values = agent.act(mb_obs, mb_actions)
            log_ratio = new_log_probs - mb_log_probs
            ratio = log_ratio.exp()
            with torch.no_grad():
                clip_fractions.append(((ratio - 1.0).abs() > s.clip_epsilon).float().mean().item())
            normalized = (mb_advantages - mb_advantages.mean()) / (mb_advantages.std() + 1e-8)
            clipped_ratio = ratio.clamp(1 - s.clip_epsilon, 1 + s.clip_epsilon)
            policy_loss = torch.max(-normalized * ratio, -normalized * clipped_ratio).mean()
            errors = (new_values - returns[chosen]) ** 2
            if s.clips_value_loss:
                near = mb_values + (new_values - mb_values).clamp(-s.clip_epsilon, s.clip_epsilon)
                errors = torch.max(errors, (near - returns[chosen]) ** 2)
            loss = policy_loss - s.entropy_coefficient * entropies.mean() + s.value_coefficient * 0.5 * errors.mean()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(agent.parameters(), s.max_grad_norm)
            optimizer.step()
