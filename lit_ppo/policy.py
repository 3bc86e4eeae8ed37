"""Actor, critic, and both together as a policy.

Both have the same parts: inputs (from leaves to features), torso (hidden layers, or a module of the user's), memory, head.

R is a number of rows: observations, one for each step of each environment. With memory they are S sequences of L steps, one
sequence after the other, R = S * L. What a policy remembers of a sequence is one tensor, its *state*, which is passed to it
and returned, and never kept in a module.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from lit_ppo import distributions
from lit_ppo.distributions import Distribution, Gaussian
from lit_ppo.errors import ConfigError, NonFiniteUpdate
from lit_ppo.networks import (
    HiddenLayers,
    ImageSettings,
    Initializer,
    Inputs,
    Memory,
    Observation,
    OwnTorso,
    linear,
    seen_as,
)
from lit_ppo.normalization import ObservationNormalizer, RewardNormalizer, normalized_leaves
from lit_ppo.ppo_settings import PPOSettings
from lit_ppo.spaces import Leaf

# Added to gSDE's variance, which is 0 where all features are; Stable-Baselines3 adds as much.
_LEAST_VARIANCE: Final = 1e-6


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
        if settings.gsde and not num_means:
            raise ConfigError("model.gsde: expected a Box of actions; it explores by continuous noise")
        has_parameter = num_means and settings.log_std == "parameter"
        self.torso, self.is_gsde = torso, settings.gsde
        # a small gain, so that an untrained policy is nearly uniform
        self.head = initialize.linear(torso.num_features, num_means if has_parameter else distribution.num_outputs, 0.01)
        self._mask = mask
        # of each component, shape (D,); with gSDE for each feature, shape (torso.num_features, D)
        shape = (torso.num_features, num_means) if settings.gsde else (num_means,)
        self.log_std = nn.Parameter(torch.full(shape, settings.log_std_init)) if has_parameter else None
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
            log_stds = self._log_stds(features, self.log_std) if self.is_gsde else self.log_std.expand_as(outputs)
            outputs = torch.cat([outputs, log_stds], dim=-1)
        if self._mask is not None:
            # not -inf: the entropy would be right, and its gradient NaN
            outputs = outputs.masked_fill(obs[self._mask].flatten(1) == 0, torch.finfo(outputs.dtype).min)
        return outputs

    @staticmethod
    def _log_stds(features: Tensor, log_std: Tensor) -> Tensor:
        """Logarithms of the standard deviations that gSDE's noise has in these states, shape (R, D).

        The features do not learn from them, as in Stable-Baselines3.
        """
        variances = features.detach().square() @ (2 * log_std).exp()
        return 0.5 * (variances + _LEAST_VARIANCE).log()

    def standard_noise(self, features: Tensor, outputs: Tensor, noise: Tensor) -> Tensor:
        """Noise as the distribution's `sample` takes it.

        Args:
            features: Of the torso, shape (N, torso.num_features).
            outputs: Of `forward`, shape (N, num_outputs).
            noise: One step of `Policy.draw_noise`.
        """
        if not self.is_gsde:
            return noise
        assert self.log_std is not None
        deviations = (features.unsqueeze(1) @ (noise * self.log_std.exp())).squeeze(1)  # (N, 1, F) @ (N, F, D) -> (N, D)
        _, log_stds = outputs.chunk(2, dim=-1)
        return deviations * (-log_stds).exp()


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
        noise_steps: Steps for which gSDE's noise holds; None for a rollout.
        observation_normalizer: Normalises observations before they are seen; None for none.
        reward_normalizer: What the rewards that the critic learns from are divided by; None for nothing.
    """

    def __init__(
        self,
        actor: Actor,
        critic: Critic,
        distribution: Distribution,
        sequence_length: int = 1,
        noise_steps: int | None = None,
        observation_normalizer: ObservationNormalizer | None = None,
        reward_normalizer: RewardNormalizer | None = None,
    ) -> None:
        super().__init__()
        self.actor, self.critic, self.distribution, self.sequence_length = actor, critic, distribution, sequence_length
        self.observation_normalizer, self.reward_normalizer = observation_normalizer, reward_normalizer
        self._noise_steps = noise_steps
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

    def seen_as(self, path: str, dtype: np.dtype[Any]) -> np.dtype[Any]:
        """The dtype in which a leaf of `obs` is given to this policy, from the leaf's own; see `networks.seen_as`."""
        normalizer = self.observation_normalizer
        return seen_as(dtype, self.dtype, normalizer is not None and path in normalizer.paths)

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
        features, outputs, after = self._acting(obs, state, begins)
        if not self._shares_torso:
            del features  # without gradients its memory is used again at once, which saves a large pass a tenth
            features, after = self._judging(obs, state, begins, after)
        return PolicyOutputs(outputs, self.critic(features), after)

    def _acting(self, obs: Observation, state: Tensor | None, begins: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """The actor's features, outputs and states after each row."""
        actor = self.actor
        if state is not None:
            state = state[:, : self._state_sizes[0]]
        features, after = actor.torso(obs, state, begins)
        return features, actor(features, obs), after

    def _judging(
        self, obs: Observation, state: Tensor | None, begins: Tensor | None, after: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """The critic's features, and the states of both after each row; `after` is the actor's."""
        if state is not None:
            state = state[:, self._state_sizes[0] :]
        features, critic_after = self.critic.torso(obs, state, begins)
        if after is None:
            return features, None
        return features, torch.cat([after, critic_after], dim=-1)

    def act(
        self, obs: Observation, state: Tensor | None, begins: Tensor | None, noise: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """One step of N environments: actions, shape (N, *action_shape), and the next state.

        Args:
            obs: By path, shape (N, *leaf.shape).
            state: Shape (N, state_size); None without memory.
            begins: Whether an episode begins with this observation, shape (N,), bool; None without memory.
            noise: One step of `draw_noise`; None for the most probable actions.
        """
        obs, actor = self._seen(obs), self.actor
        if state is None:
            features, after = actor.torso.forward(obs, None, None)
            outputs = actor(features, obs)
        else:
            features, outputs, after = self._acting(obs, state, begins)
            if not self._shares_torso:
                _, after = self._judging(obs, state, begins, after)
        if noise is None:
            return self.distribution.mode(outputs), after
        return self.distribution.sample(outputs, actor.standard_noise(features, outputs, noise)), after

    def draw_noise(self, num_steps: int, num_envs: int, generator: torch.Generator) -> Tensor:
        """Noise for `act` in a whole rollout, shape (T, N, ...), on the generator's device.

        With gSDE a step's noise is standard normal numbers, shape (N, num_features, D), the same for `noise_steps` steps.
        """
        if not self.actor.is_gsde:
            return self.distribution.draw_noise(num_steps, num_envs, generator)
        assert self.actor.log_std is not None
        steps = self._noise_steps or num_steps
        shape = (-(-num_steps // steps), num_envs, *self.actor.log_std.shape)
        draws = torch.randn(shape, device=generator.device, generator=generator)
        # one draw for the whole rollout is not copied
        return draws.unsqueeze(1).expand(-1, steps, *shape[1:]).flatten(0, 1)[:num_steps]

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
        settings.gsde_steps,
        ObservationNormalizer(normalized, settings.observation_clip) if normalized else None,
        RewardNormalizer(settings.gamma, settings.reward_clip) if settings.normalize_rewards else None,
    )


def require_finite(parameters: Iterable[tuple[str, Tensor]]) -> None:
    """Refuse parameters with which no action can be chosen.

    Args:
        parameters: Names and values.

    Raises:
        NonFiniteUpdate: One is NaN or infinite.
    """
    for name, parameter in parameters:
        if not parameter.isfinite().all():
            raise NonFiniteUpdate(
                f"{name}: expected finite parameters, got NaN or infinity; "
                "use an earlier checkpoint, or train again with a smaller model.learning_rate"
            )
