"""PPOSettings: the hyperparameters of PPO, their meaning and their ranges, in one place."""

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
from lit_ppo.networks import Activation

Decay = Literal["linear", "constant"]
PARTS: Final = ("torso", "optimizer", "lr_scheduler", "loss")  # the settings that are a user's own code


@dataclass(frozen=True)
class PPOSettings:
    """Hyperparameters of PPO; the names are those of the options under `--model.`.

    Attributes:
        actor_hidden_sizes: Sizes of the actor's hidden layers.
        critic_hidden_sizes: Sizes of the critic's hidden layers.
        activation: Activation function between the layers of both networks.
        shared_torso: Whether actor and critic share the convolutional networks of images; their hidden layers are apart.
        orthogonal_init: Whether weights start orthogonal, with zero biases; otherwise as PyTorch draws them.
        action_bounds: Whether continuous actions outside their bounds are clipped to them for the environment, or refused. The
            policy learns from the actions that it drew.
        log_std: Whether the standard deviation of continuous actions is a parameter, or depends on the state.
        log_std_init: Natural logarithm of that standard deviation at the start of the run.
        torso: Makes the network between an observation's numbers and the outputs; called with the number of its inputs. None
            for the hidden layers above.
        optimizer: Makes the optimizer; called with the parameters that are trained. None for Adam.
        lr_scheduler: Makes a scheduler of the learning rate, which makes one step after each update; called with the optimizer.
            `lightning.pytorch.cli.ReduceLROnPlateau` takes `monitor`, the name of a diagnostic of the update.
        loss: The loss of a minibatch. None for that of PPO.
        learning_rate: Adam's step size at the start of the run; None for 0.003. An optimizer of your own has a setting for its
            rate.
        learning_rate_decay: Whether the learning rate decays linearly to 0 over the run, or stays constant. None for linear, or
            for constant if there is a scheduler or an optimizer of your own.
        adam_epsilon: Adam's epsilon; None for 0.00001.
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
        max_grad_norm: Gradients are scaled down to this norm, taken over all parameters; None for no limit.
        target_kl: An update ends after the pass in which the policy has moved further than this, nats; None for no limit.
        compile: Whether to compile networks, loss and gradients with torch.compile. It pays off in long runs only and needs a
            C++ compiler. If there is none, or if a callback or a hook needs the backward pass, a warning says so and nothing is
            compiled.
        total_env_steps: Env steps of the whole run, over which learning rate and clip range decay; the run stops at the first
            update that reaches them. None: `trainer.max_epochs` rollouts.
        seed: Seed of the initial weights and of the minibatches.

    Raises:
        ConfigError: A setting is out of its range.
    """

    actor_hidden_sizes: Sequence[int] = (64, 64)
    critic_hidden_sizes: Sequence[int] = (64, 64)
    activation: Activation = "tanh"
    shared_torso: bool = False
    orthogonal_init: bool = True
    action_bounds: ActionBounds = "clip"
    log_std: Literal["parameter", "state"] = "parameter"
    log_std_init: float = 0.0
    torso: Callable[[int], nn.Module] | None = None
    optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] | None = None
    lr_scheduler: Callable[[Optimizer], LRScheduler] | None = None
    loss: Callable[..., Any] | None = None
    learning_rate: float | None = None
    learning_rate_decay: Decay | None = None
    adam_epsilon: float | None = None
    gamma: float = 0.99
    gae_lambda: float = 0.95
    update_epochs: int = 4
    minibatch_size: int = 64
    clip_epsilon: float = 0.4
    clip_decay: Decay = "constant"
    value_clip: float | None = None
    value_coefficient: float = 0.5
    entropy_coefficient: float = 0.0
    normalize_advantages: Literal["minibatch", "rollout", "off"] = "minibatch"
    max_grad_norm: float | None = 0.5
    target_kl: float | None = None
    compile: bool = False
    total_env_steps: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("update_epochs", "minibatch_size"):
            self._require(name, getattr(self, name) >= 1, "at least 1")
        for name in ("actor_hidden_sizes", "critic_hidden_sizes"):
            self._require(name, all(size >= 1 for size in getattr(self, name)), "sizes of at least 1")
        for name in ("gamma", "gae_lambda"):
            self._require(name, 0 <= getattr(self, name) <= 1, "a number in [0, 1]")
        self._require("clip_epsilon", 0 < self.clip_epsilon < math.inf, "a number above 0")
        decays = (None, "linear", "constant")
        self._require("learning_rate_decay", self.learning_rate_decay in decays, "linear, constant or null")
        self._require("clip_decay", self.clip_decay in ("linear", "constant"), "linear or constant")
        self._require("action_bounds", self.action_bounds in ("clip", "refuse"), "clip or refuse")
        self._require("log_std", self.log_std in ("parameter", "state"), "parameter or state")
        self._require("log_std_init", math.isfinite(self.log_std_init), "a finite number")
        for name in ("value_coefficient", "entropy_coefficient"):
            self._require(name, 0 <= getattr(self, name) < math.inf, "a number of at least 0")
        for name in ("learning_rate", "adam_epsilon", "value_clip", "max_grad_norm", "target_kl", "total_env_steps"):
            limit = getattr(self, name)
            self._require(name, limit is None or 0 < limit < math.inf, "a number above 0, or null")
        self._require("seed", self.seed >= 0, "at least 0")
        for name in PARTS:
            part = getattr(self, name)
            if is_description(part):  # of a checkpoint; only the torso is needed to rebuild the policy
                part = PartOfCheckpoint(name, part)
                object.__setattr__(self, name, part)
            self._require(name, part is None or callable(part), "a callable, or null")
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
