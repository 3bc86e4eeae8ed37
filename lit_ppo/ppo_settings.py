"""PPOSettings: the hyperparameters of PPO, their meaning and their ranges, in one place."""

import inspect
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lit_ppo.callables import PartOfCheckpoint, is_description
from lit_ppo.distributions import ActionBounds
from lit_ppo.errors import ConfigError
from lit_ppo.networks import Activation, ImageNetwork, MemoryKind
from lit_ppo.seeding import seed_of_run
from lit_ppo.spaces import ChannelOrder

Decay = Literal["linear", "constant"]
# More is a slip of the hand, for which an update would not end, or memory not suffice.
_LARGEST: Final = {"update_epochs": 10_000, "minibatch_size": 1 << 40, "memory_size": 65_536, "sequence_length": 1_000_000}
PARTS: Final = ("torso", "optimizer", "lr_scheduler", "loss")  # the settings that are a user's own code


@dataclass(frozen=True)
class PPOSettings:
    """Hyperparameters of PPO; the names are those of the options under `--model.`.

    Attributes:
        actor_hidden_sizes: Sizes of the actor's hidden layers.
        critic_hidden_sizes: Sizes of the critic's hidden layers.
        activation: Activation function between the layers of both networks.
        torso: Makes the module that stands in place of the hidden layers: an import path of a callable whose first argument is
            the size of its inputs, with the others as options of their own; null for the hidden layers above.
        shared_torso: Whether actor and critic share everything before their last layers: networks of images, hidden layers,
            memory.
        image_network: Convolutional network for images: nature (Mnih et al. 2015) for sides of at least 36, small for any; auto
            decides by the sides; flat takes an image as a vector.
        image_channels: Whether the channels of an image come first or last in its shape; auto decides by the shape.
        memory: Recurrent cell between the hidden layers and the last layer; null for a policy that sees only the present.
        memory_size: Size of that cell.
        sequence_length: Steps of the sequences that a policy with memory learns from; data.horizon must be a multiple of it.
        orthogonal_init: Whether weights start orthogonal, with zero biases; otherwise as PyTorch draws them.
        action_bounds: Whether continuous actions outside their bounds are clipped to them for the environment, or refused. The
            policy learns from the actions that it drew.
        log_std: Whether the standard deviation of continuous actions is a parameter, or depends on the state.
        log_std_init: Natural logarithm of that standard deviation at the start of the run.
        gsde: Generalised state-dependent exploration, for Box actions: the noise of an action is a random linear function of
            the features, which holds for several steps, so states that look alike are explored alike (Raffin et al. 2021,
            https://arxiv.org/abs/2005.05719). The standard deviation is then a parameter for each feature and component.
        gsde_steps: Steps after which each environment gets another such function; None: with each rollout.
        optimizer: Makes the optimizer; called with the parameters that are trained. None for Adam.
        lr_scheduler: Makes a scheduler of the learning rate, which makes one step after each update; called with the optimizer.
            `lightning.pytorch.cli.ReduceLROnPlateau` takes `monitor`, the name of a diagnostic of the update.
        learning_rate: Adam's step size at the start of the run; None for 0.0003. An optimizer of your own has a setting for its
            rate.
        learning_rate_decay: Whether the learning rate decays linearly to 0 over the run, or stays constant. None for linear, or
            for constant if there is a scheduler or an optimizer of your own.
        adam_epsilon: Adam's epsilon; None for 0.00001.
        normalize_observations: Whether observations are normalised by their running mean and standard deviation. true: all
            vectors of floats, neither whole numbers nor images; or the paths of the parts of a Dict to normalise.
        observation_clip: Limit of normalised observations; null for none.
        normalize_rewards: Whether rewards are divided by the running standard deviation of the discounted return.
        reward_clip: Limit of normalised rewards; null for none.
        reward_scale: What rewards are multiplied by before anything else.
        gamma: Discount factor, in [0, 1].
        gae_lambda: Weight of longer returns in the advantages, in [0, 1].
        update_epochs: Passes over each rollout, K.
        minibatch_size: Transitions in one optimizer step; a rollout is split into the fewest equal parts not larger than this.
        clip_epsilon: Clip range: moving the probability ratio further than this from 1 gains the policy nothing.
        clip_decay: Whether the clip range decays linearly to 0 over the run, or stays constant.
        value_clip: Clip range of the value loss, in units of return; None for no clipping.
        value_coefficient: Weight of the value loss.
        entropy_coefficient: Weight of the entropy bonus.
        normalize_advantages: Whether advantages are normalised over each minibatch, over the whole rollout, or not at all.
        loss: Import path of a function to use in place of PPO's loss: it takes Predictions, Batch and LossSettings of
            `lit_ppo.update` and returns a `PPOLoss`; null for PPO's own.
        max_grad_norm: Gradients are scaled down to this norm, taken over all parameters; None for no limit.
        target_kl: An update ends after the pass in which the policy has moved further than this, nats; None for no limit.
        compile: Whether to compile networks, loss and gradients with torch.compile. It pays off in long runs only and needs a
            C++ compiler. If there is none, or if a callback or a hook needs the backward pass, a warning says so and nothing is
            compiled.
        total_env_steps: Env steps of the whole run, over which learning rate and clip range decay; the run stops at the first
            update that reaches them. None: `trainer.max_epochs` rollouts.
        seed: Seed of the initial weights and of the minibatches. None for that of the data, if one was typed there; else
            Lightning's, if `seed_everything` was called, else 0.

    Raises:
        ConfigError: A setting is out of its range.
    """

    actor_hidden_sizes: Sequence[int] = (64, 64)
    critic_hidden_sizes: Sequence[int] = (64, 64)
    activation: Activation = "tanh"
    torso: Callable[[int], nn.Module] | None = None
    shared_torso: bool = False
    image_network: ImageNetwork = "auto"
    image_channels: ChannelOrder = "auto"
    memory: MemoryKind | None = None
    memory_size: int = 64
    sequence_length: int = 16
    orthogonal_init: bool = True
    action_bounds: ActionBounds = "clip"
    log_std: Literal["parameter", "state"] = "parameter"
    log_std_init: float = 0.0
    gsde: bool = False
    gsde_steps: int | None = None
    optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] | None = None
    lr_scheduler: Callable[[Optimizer], LRScheduler] | None = None
    learning_rate: float | None = None
    learning_rate_decay: Decay | None = None
    adam_epsilon: float | None = None
    normalize_observations: bool | list[str] = False
    observation_clip: float | None = 10.0
    normalize_rewards: bool = False
    reward_clip: float | None = 10.0
    reward_scale: float = 1.0
    gamma: float = 0.99
    gae_lambda: float = 0.95
    update_epochs: int = 10
    minibatch_size: int = 64
    clip_epsilon: float = 0.2
    clip_decay: Decay = "constant"
    value_clip: float | None = None
    value_coefficient: float = 0.5
    entropy_coefficient: float = 0.0
    normalize_advantages: Literal["minibatch", "rollout", "off"] = "minibatch"
    loss: Callable[..., Any] | None = None
    max_grad_norm: float | None = 0.5
    target_kl: float | None = None
    compile: bool = False
    total_env_steps: int | None = None
    seed: int | None = None  # once made, the number

    def __post_init__(self) -> None:
        for name, most in _LARGEST.items():
            self._require(name, 1 <= getattr(self, name) <= most, f"1 to {most:,}")
        for name in ("actor_hidden_sizes", "critic_hidden_sizes"):
            self._require(name, all(size >= 1 for size in getattr(self, name)), "sizes of at least 1")
            default = type(self).__dataclass_fields__[name].default
            self._require(name, self.torso is None or tuple(getattr(self, name)) == default, "no sizes beside model.torso")
        if self.shared_torso and self.torso is None:
            same = list(self.actor_hidden_sizes) == list(self.critic_hidden_sizes)
            self._require("critic_hidden_sizes", same, "those of the actor, with model.shared_torso")
        self._require("memory", self.memory in (None, "gru", "lstm"), "gru, lstm or null")
        self._require("image_network", self.image_network in ("auto", "nature", "small", "flat"), "auto, nature, small or flat")
        self._require("image_channels", self.image_channels in ("auto", "first", "last"), "auto, first or last")
        for name in ("gamma", "gae_lambda"):
            self._require(name, 0 <= getattr(self, name) <= 1, "a number in [0, 1]")
        for name in ("clip_epsilon", "reward_scale"):
            self._require(name, 0 < getattr(self, name) < math.inf, "a number above 0")
        decays = (None, "linear", "constant")
        self._require("learning_rate_decay", self.learning_rate_decay in decays, "linear, constant or null")
        self._require("clip_decay", self.clip_decay in ("linear", "constant"), "linear or constant")
        self._require("action_bounds", self.action_bounds in ("clip", "refuse"), "clip or refuse")
        self._require("log_std", self.log_std in ("parameter", "state"), "parameter or state")
        self._require("log_std_init", math.isfinite(self.log_std_init), "a finite number")
        self._require("log_std", self.log_std == "parameter" or not self.gsde, "parameter, with model.gsde")
        self._require("gsde_steps", self.gsde_steps is None or self.gsde_steps >= 1, "at least 1, or null")
        self._require("gsde_steps", self.gsde_steps is None or self.gsde, "null without model.gsde")
        for name in ("value_coefficient", "entropy_coefficient"):
            self._require(name, 0 <= getattr(self, name) < math.inf, "a number of at least 0")
        limits = ("value_clip", "max_grad_norm", "target_kl", "total_env_steps", "observation_clip", "reward_clip")
        for name in ("learning_rate", "adam_epsilon", *limits):
            limit = getattr(self, name)
            self._require(name, limit is None or 0 < limit < math.inf, "a number above 0, or null")
        object.__setattr__(self, "seed", seed_of_run(self.seed))
        self._require("seed", self.seed is not None and self.seed >= 0, "at least 0")
        for name in PARTS:
            part = getattr(self, name)
            if is_description(part):  # of a checkpoint; only the torso is needed to rebuild the policy
                part = PartOfCheckpoint(name, part)
                object.__setattr__(self, name, part)
            self._require(name, part is None or callable(part), "a callable, or null")
        self._require("loss", self.loss is None or _takes_three(self.loss), "a function of predictions, minibatch and settings")
        if isinstance(self.torso, PartOfCheckpoint):
            raise self.torso.error()
        for name, instead in (("learning_rate", "use model.optimizer.lr"), ("adam_epsilon", "use model.optimizer.eps")):
            if self.optimizer is not None and getattr(self, name) is not None:
                raise ConfigError(f"model.{name}={getattr(self, name)}: not used with model.optimizer; {instead}")
        if self.lr_scheduler is not None and self.learning_rate_decay == "linear":
            raise ConfigError("model.learning_rate_decay=linear: not used with model.lr_scheduler; leave one of them out")

    def _require(self, name: str, holds: bool, allowed: str) -> None:
        if not holds:
            raise ConfigError(f"model.{name}={getattr(self, name)}: expected {allowed}")


def _takes_three(function: Callable[..., Any]) -> bool:
    """Whether a function can be called with three arguments; true if it does not say what it takes."""
    try:
        inspect.signature(function).bind(None, None, None)
    except TypeError:
        return False
    except ValueError:
        return True
    return True
