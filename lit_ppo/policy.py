"""Actor, critic, and both together as a policy."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from lit_ppo import distributions
from lit_ppo.distributions import Distribution, Gaussian
from lit_ppo.errors import ConfigError
from lit_ppo.networks import MLP, Initializer, Inputs, Observation, is_image
from lit_ppo.ppo_settings import PPOSettings
from lit_ppo.spaces import Leaf


class Actor(MLP):
    """From observations to the outputs that describe the distribution of actions.

    Args:
        inputs: From observations to features.
        distribution: Of the actions.
        mask: Path of the leaf that says which choices are possible; None if all always are.
        settings: Sizes, activation and logarithm of the standard deviation.
        initialize: Draws the weights.
    """

    def __init__(
        self, inputs: Inputs, distribution: Distribution, mask: str | None, settings: PPOSettings, initialize: Initializer
    ) -> None:
        num_means = distribution.num_outputs // 2 if isinstance(distribution, Gaussian) else 0
        has_parameter = num_means and settings.log_std == "parameter"
        num_outputs = num_means if has_parameter else distribution.num_outputs
        super().__init__(inputs, settings.actor_hidden_sizes, num_outputs, settings.activation, 0.01, initialize)
        self._mask = mask
        self.log_std = nn.Parameter(torch.full((num_means,), settings.log_std_init)) if has_parameter else None
        if num_means and not has_parameter:
            last = cast(nn.Linear, self.layers[-1])
            nn.init.constant_(last.bias[num_means:], settings.log_std_init)

    def forward(self, obs: Observation, features: Tensor | None = None) -> Tensor:
        """Outputs, shape (B, num_outputs); arguments as in `MLP`."""
        outputs = super().forward(obs, features)
        if self.log_std is not None:
            outputs = torch.cat([outputs, self.log_std.expand_as(outputs)], dim=-1)
        if self._mask is not None:
            # not -inf: the entropy would be right, and its gradient NaN
            outputs = outputs.masked_fill(obs[self._mask].flatten(1) == 0, torch.finfo(outputs.dtype).min)
        return outputs


class Critic(MLP):
    """The value function: from observations to expected discounted returns.

    Args:
        inputs: From observations to features.
        settings: Sizes and activation.
        initialize: Draws the weights.
    """

    def __init__(self, inputs: Inputs, settings: PPOSettings, initialize: Initializer) -> None:
        super().__init__(inputs, settings.critic_hidden_sizes, 1, settings.activation, 1.0, initialize)

    def forward(self, obs: Observation, features: Tensor | None = None) -> Tensor:
        """Values, shape (B,); arguments as in `MLP`."""
        return super().forward(obs, features).squeeze(-1)  # (B, 1) -> (B,)


class Policy(nn.Module):
    """Actor and critic as one module, and the distribution that the actor's outputs describe.

    Args:
        actor, critic: With inputs of their own, or with the same.
        distribution: Of the actions.
    """

    def __init__(self, actor: Actor, critic: Critic, distribution: Distribution) -> None:
        super().__init__()
        self.actor, self.critic, self.distribution = actor, critic, distribution
        self._shares_inputs = actor.inputs is critic.inputs

    @property
    def dtype(self) -> torch.dtype:
        """Of the parameters."""
        return next(self.parameters()).dtype

    def forward(self, obs: Observation) -> tuple[Tensor, Tensor]:
        """Outputs of the actor, shape (B, num_outputs), and values, shape (B,)."""
        features = self.actor.inputs(obs) if self._shares_inputs else None
        return self.actor(obs, features), self.critic(obs, features)


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
        ConfigError: There is nothing to see, or nothing to share.
    """
    seen = [leaf for leaf in observation if leaf.path != mask]
    if not seen:
        raise ConfigError(f"data.action_mask=obs:{mask}: expected an observation besides the mask")
    if settings.shared_torso and not any(map(is_image, seen)):
        raise ConfigError("model.shared_torso=True: expected an image in the observation, nothing else is shared")
    initialize = Initializer(generator, settings.orthogonal_init)
    distribution = distributions.for_action(action, settings.action_bounds)
    inputs = Inputs(seen, initialize)
    actor = Actor(inputs, distribution, mask, settings, initialize)
    critic = Critic(inputs if settings.shared_torso else Inputs(seen, initialize), settings, initialize)
    return Policy(actor, critic, distribution)
