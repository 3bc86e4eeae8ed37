"""Actor, critic, and both together as a policy."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from lit_ppo import distributions
from lit_ppo.distributions import Distribution, Gaussian
from lit_ppo.errors import ConfigError
from lit_ppo.networks import MLP, Initializer, Inputs, is_image
from lit_ppo.ppo_settings import PPOSettings
from lit_ppo.spaces import Leaf

Observation = Mapping[str, Tensor]  # by path, shape (B, *leaf.shape), each in its own dtype


class Actor(nn.Module):
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
        super().__init__()
        num_outputs = distribution.num_outputs
        self.log_std: nn.Parameter | None = None
        if isinstance(distribution, Gaussian) and settings.log_std == "parameter":
            num_outputs //= 2  # the means
            self.log_std = nn.Parameter(torch.full((num_outputs,), settings.log_std_init))
        sizes, self._mask = settings.actor_hidden_sizes, mask
        self.inputs = inputs
        self.layers = MLP(inputs.num_features, sizes, num_outputs, settings.activation, 0.01, initialize)
        if isinstance(distribution, Gaussian) and settings.log_std == "state":
            nn.init.constant_(self.layers[-1].bias[num_outputs // 2 :], settings.log_std_init)  # type: ignore[index]

    def forward(self, obs: Observation, features: Tensor | None = None) -> Tensor:
        """Outputs, shape (B, num_outputs).

        Args:
            obs: The observations.
            features: What `inputs` makes of them, if it is known.
        """
        outputs: Tensor = self.layers(self.inputs(obs) if features is None else features)
        if self.log_std is not None:
            outputs = torch.cat([outputs, self.log_std.expand_as(outputs)], dim=-1)
        if self._mask is not None:
            # not -inf: the entropy would be right, and its gradient NaN
            outputs = outputs.masked_fill(obs[self._mask].flatten(1) == 0, torch.finfo(outputs.dtype).min)
        return outputs


class Critic(nn.Module):
    """The value function: from observations to expected discounted returns.

    Args:
        inputs: From observations to features.
        settings: Sizes and activation.
        initialize: Draws the weights.
    """

    def __init__(self, inputs: Inputs, settings: PPOSettings, initialize: Initializer) -> None:
        super().__init__()
        self.inputs = inputs
        sizes = settings.critic_hidden_sizes
        self.layers = MLP(inputs.num_features, sizes, 1, settings.activation, 1.0, initialize)

    def forward(self, obs: Observation, features: Tensor | None = None) -> Tensor:
        """Values, shape (B,); arguments as in `Actor`."""
        values: Tensor = self.layers(self.inputs(obs) if features is None else features)
        return values.squeeze(-1)  # (B, 1) -> (B,)


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
        return next(self.critic.layers.parameters()).dtype

    def forward(self, obs: Observation) -> tuple[Tensor, Tensor]:
        """Outputs of the actor, shape (B, num_outputs), and values, shape (B,)."""
        features = self.actor.inputs(obs) if self._shares_inputs else None
        return self.actor(obs, features), self.critic(obs, features)

    def act(self, obs: Observation) -> Tensor:
        """Outputs of the actor alone, shape (B, num_outputs)."""
        outputs: Tensor = self.actor(obs)
        return outputs

    def value(self, obs: Observation) -> Tensor:
        """Values alone, shape (B,)."""
        values: Tensor = self.critic(obs)
        return values


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
