"""Actor, critic, and both together as a policy.

Both have the same parts: inputs (from leaves to features), torso (hidden layers, or a module of the user's), memory, head.

R is a number of rows: observations, one for each step of each environment. With memory they are S sequences of L steps, one
sequence after the other, R = S * L. What a policy remembers of a sequence is one tensor, its *state*, which is passed to it
and returned, and never kept in a module.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lit_ppo import distributions
from lit_ppo.distributions import Distribution, Gaussian
from lit_ppo.errors import ConfigError
from lit_ppo.networks import (
    HiddenLayers,
    ImageSettings,
    Initializer,
    Inputs,
    Memory,
    Observation,
    OwnTorso,
    linear,
)
from lit_ppo.normalization import ObservationNormalizer, RewardNormalizer, normalized_leaves
from lit_ppo.ppo_settings import PPOSettings
from lit_ppo.spaces import Leaf


class Torso(nn.Module):
    """From observations to the features that a head works with: inputs, hidden layers, memory.

    Args:
        leaves: What is seen.
        hidden_sizes: Sizes of the hidden layers, if `settings.torso` is None.
        settings: Images, activation, own torso, memory.
        initialize: Draws the weights.
        normalized: Those of the leaves that are normalised.
    """

    def __init__(
        self,
        leaves: Sequence[Leaf],
        hidden_sizes: Sequence[int],
        settings: PPOSettings,
        initialize: Initializer,
        normalized: Sequence[Leaf],
    ) -> None:
        super().__init__()
        images = ImageSettings(settings.image_network, settings.image_channels)
        self.inputs = Inputs(leaves, images, initialize, normalized)
        num_inputs = self.inputs.num_features
        self.hidden: HiddenLayers | OwnTorso
        if settings.torso is None:
            self.hidden = HiddenLayers(num_inputs, hidden_sizes, settings.activation, initialize)
        else:
            self.hidden = OwnTorso(settings.torso, num_inputs, initialize)
        self.num_features = self.hidden.num_features
        self.memory: Memory | None = None
        if settings.memory is not None:
            self.memory = Memory(settings.memory, self.num_features, settings.memory_size, initialize)
            self.num_features = self.memory.num_features

    @property
    def state_size(self) -> int:
        """Size of the state; 0 without memory."""
        return 0 if self.memory is None else self.memory.state_size

    def forward(self, obs: Observation, state: Tensor | None, begins: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Features, shape (R, num_features), and the states after each row; arguments as in `Policy.forward`."""
        # `forward` itself, here and in `act`: calling a module takes a tenth of a small network's time
        features = self.hidden.forward(self.inputs.forward(obs))
        if self.memory is None:
            return features, None
        after: tuple[Tensor, Tensor] = self.memory(features, state, begins)
        return after


class Actor(nn.Module):
    """From features to the outputs that describe the distribution of actions.

    Args:
        torso: From observations to features.
        distribution: Of the actions.
        mask: Path of the leaf that says which choices are possible; None if all always are.
        settings: Logarithm of the standard deviation.
        initialize: Draws the weights.
    """

    def __init__(
        self, torso: Torso, distribution: Distribution, mask: str | None, settings: PPOSettings, initialize: Initializer
    ) -> None:
        super().__init__()
        num_means = distribution.num_outputs // 2 if isinstance(distribution, Gaussian) else 0
        has_parameter = num_means and settings.log_std == "parameter"
        self.torso = torso
        # a small gain, so that an untrained policy is nearly uniform
        self.head = initialize.linear(torso.num_features, num_means if has_parameter else distribution.num_outputs, 0.01)
        self._mask = mask
        self.log_std = nn.Parameter(torch.full((num_means,), settings.log_std_init)) if has_parameter else None
        if num_means and not has_parameter:
            nn.init.constant_(self.head.bias[num_means:], settings.log_std_init)

    def forward(self, features: Tensor, obs: Observation) -> Tensor:
        """Outputs, shape (R, num_outputs).

        Args:
            features: Of the torso, shape (R, torso.num_features).
            obs: The observations, for the mask.
        """
        outputs = linear(self.head, features)
        if self.log_std is not None:
            outputs = torch.cat([outputs, self.log_std.expand_as(outputs)], dim=-1)
        if self._mask is not None:
            # not -inf: the entropy would be right, and its gradient NaN
            outputs = outputs.masked_fill(obs[self._mask].flatten(1) == 0, torch.finfo(outputs.dtype).min)
        return outputs


class Critic(nn.Module):
    """From features to values: expected discounted returns.

    Args:
        torso: From observations to features.
        initialize: Draws the weights.
    """

    def __init__(self, torso: Torso, initialize: Initializer) -> None:
        super().__init__()
        self.torso = torso
        self.head = initialize.linear(torso.num_features, 1, 1.0)

    def forward(self, features: Tensor) -> Tensor:
        """Values, shape (R,)."""
        return linear(self.head, features).squeeze(-1)  # (R, 1) -> (R,)


class PolicyOutputs(NamedTuple):
    """What a policy makes of R rows."""

    outputs: Tensor  # (R, num_outputs) of the actor
    values: Tensor  # (R,) of the critic
    states: Tensor | None  # (R, state_size) after each row; None without memory


class Policy(nn.Module):
    """Actor and critic as one module, what they see, and the distribution that the actor's outputs describe.

    Args:
        actor, critic: With torsos of their own, or with the same.
        distribution: Of the actions.
        sequence_length: Steps of the sequences that the policy learns from, L; 1 without memory.
        observation_normalizer: Normalises observations before they are seen; None for none.
        reward_normalizer: What the rewards that the critic learns from are divided by; None for nothing.
    """

    def __init__(
        self,
        actor: Actor,
        critic: Critic,
        distribution: Distribution,
        sequence_length: int = 1,
        observation_normalizer: ObservationNormalizer | None = None,
        reward_normalizer: RewardNormalizer | None = None,
    ) -> None:
        super().__init__()
        self.actor, self.critic, self.distribution, self.sequence_length = actor, critic, distribution, sequence_length
        self.observation_normalizer, self.reward_normalizer = observation_normalizer, reward_normalizer
        self._shares_torso = actor.torso is critic.torso
        # of the actor, then of the critic
        self._state_sizes = [torso.state_size for torso in dict.fromkeys([actor.torso, critic.torso])]

    @property
    def state_size(self) -> int:
        """Size of the state; 0 without memory."""
        return sum(self._state_sizes)

    @property
    def dtype(self) -> torch.dtype:
        """Of the parameters."""
        return self.critic.head.weight.dtype

    def initial_state(self, num_sequences: int) -> Tensor | None:
        """The state in which nothing is remembered, shape (S, state_size); None without memory."""
        if not self.state_size:
            return None
        return torch.zeros(num_sequences, self.state_size, dtype=self.dtype, device=self.critic.head.weight.device)

    def forward(self, obs: Observation, state: Tensor | None = None, begins: Tensor | None = None) -> PolicyOutputs:
        """Outputs, values and states.

        Args:
            obs: By path, shape (R, *leaf.shape).
            state: Before the first step of each sequence, shape (S, state_size); None without memory.
            begins: Whether an episode begins with this row, shape (R,), bool; None without memory.
        """
        obs = self._seen(obs)
        if state is None:
            features, _ = self.actor.torso(obs, None, None)
            outputs = self.actor(features, obs)
            if not self._shares_torso:
                del features  # without gradients its memory is used again at once, which saves a large pass a tenth
                features, _ = self.critic.torso(obs, None, None)
            return PolicyOutputs(outputs, self.critic(features), None)
        actor_state, *critic_state = torch.split(state, self._state_sizes, dim=-1)
        features, after = self.actor.torso(obs, actor_state, begins)
        outputs = self.actor(features, obs)
        if self._shares_torso:
            return PolicyOutputs(outputs, self.critic(features), after)
        features, critic_after = self.critic.torso(obs, critic_state[0], begins)
        return PolicyOutputs(outputs, self.critic(features), torch.cat([after, critic_after], dim=-1))

    def act(self, obs: Observation, state: Tensor | None, begins: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """One step of N environments: outputs of the actor, shape (N, num_outputs), and the next state.

        Args:
            obs: By path, shape (N, *leaf.shape).
            state: Shape (N, state_size); None without memory.
            begins: Whether an episode begins with this observation, shape (N,), bool; None without memory.
        """
        if state is None:
            obs, actor = self._seen(obs), self.actor
            features, _ = actor.torso.forward(obs, None, None)
            outputs: Tensor = actor(features, obs)
            return outputs, None
        outputs, _, after = self.forward(obs, state, begins)
        return outputs, after

    def _seen(self, obs: Observation) -> Observation:
        return obs if self.observation_normalizer is None else self.observation_normalizer(obs)


def policy_for(
    observation: Sequence[Leaf], action: Leaf, mask: str | None, settings: PPOSettings, generator: torch.Generator
) -> Policy:
    """An untrained policy for an environment's spaces.

    Args:
        observation: Leaves of an observation.
        action: The leaf of an action.
        mask: Path of the leaf that says which choices are possible; it is not seen by the networks.
        settings: What kind of policy.
        generator: The source of the initial weights.

    Raises:
        ConfigError: There is nothing to see, or a setting does not fit the spaces.
    """
    seen = [leaf for leaf in observation if leaf.path != mask]
    if not seen:
        raise ConfigError(f"data.action_mask=obs:{mask}: expected an observation besides the mask")
    normalized = normalized_leaves(seen, settings.normalize_observations, settings.image_channels)
    initialize = Initializer(generator, settings.orthogonal_init)
    distribution = distributions.for_action(action, settings.action_bounds)
    torso = Torso(seen, settings.actor_hidden_sizes, settings, initialize, normalized)
    actor = Actor(torso, distribution, mask, settings, initialize)
    if not settings.shared_torso:
        torso = Torso(seen, settings.critic_hidden_sizes, settings, initialize, normalized)
    return Policy(
        actor,
        Critic(torso, initialize),
        distribution,
        1 if settings.memory is None else settings.sequence_length,
        ObservationNormalizer(normalized, settings.observation_clip) if normalized else None,
        RewardNormalizer(settings.gamma, settings.reward_clip) if settings.normalize_rewards else None,
    )
