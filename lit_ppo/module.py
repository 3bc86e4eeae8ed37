"""PPOModule: actor, critic and the PPO update as a LightningModule.

One Lightning epoch is one rollout is one batch is one update: `training_step` makes K passes over the batch in permuted
minibatches, with manual optimisation. So every moment at which Lightning can write a checkpoint is an update boundary.
"""

import dataclasses
import logging
import math
from collections.abc import Sequence
from time import perf_counter
from typing import Any, Literal, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins.precision import Precision
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor
from torchmetrics.functional import explained_variance

from lit_ppo import distributions, functional, seeding
from lit_ppo.errors import ConfigError, NonFiniteUpdate
from lit_ppo.evaluation import EpisodeResults
from lit_ppo.networks import Activation, Actor, Critic
from lit_ppo.rollout import Batch, Rollout, RolloutSource, make_batch
from lit_ppo.update import ActorCritic, CompiledGradients, EagerGradients, LossSettings

log = logging.getLogger(__name__)

_RUN_LENGTH_KEY = "lit_ppo_run_env_steps"  # of a checkpoint

# A Trainer flag that manual optimisation cannot honour, its harmless value, and the setting that does the job.
_FLAGS_NOT_HONOURED = {
    "gradient_clip_val": (None, "use --model.max_grad_norm"),
    "accumulate_grad_batches": (1, "use a larger --model.minibatch_size"),
    "overfit_batches": (0.0, "on-policy data cannot be used again"),  # before the limits that it sets
    "limit_train_batches": (1.0, "an update is one batch; use --data.horizon"),
    "check_val_every_n_epoch": (1, "use --evaluation.every_n_updates"),
    "val_check_interval": (1.0, "use --evaluation.every_n_updates"),
}


class PPOModule(LightningModule):
    """Proximal Policy Optimization for vector observations and discrete actions.

    Args:
        obs_size: Size of one observation (the CLI takes it from the environment).
        num_actions: Number of actions (likewise).
        actor_hidden_sizes: Sizes of the actor's hidden layers.
        critic_hidden_sizes: Sizes of the critic's hidden layers.
        activation: Between the layers of both.
        learning_rate: Adam's step size at the start of the run.
        learning_rate_decay: Whether the learning rate decays linearly to 0 over the run, or stays constant.
        adam_epsilon: Adam's epsilon.
        gamma: Discount factor, in [0, 1].
        gae_lambda: Weight of longer returns in the advantages, in [0, 1].
        update_epochs: Passes over each rollout, K.
        minibatch_size: Transitions in one optimizer step; a rollout is split into the fewest equal parts not larger than this.
        clip_epsilon: How far the probability ratio may leave 1 before it stops to pay.
        clip_decay: Whether `clip_epsilon` decays linearly to 0 over the run, or stays constant.
        value_clip: How far the critic may leave its old prediction before it stops to pay, in units of return; None: no limit.
        value_coefficient: Weight of the value loss.
        entropy_coefficient: Weight of the entropy bonus.
        normalize_advantages: Over each minibatch, over the whole rollout, or not at all.
        max_grad_norm: Largest norm of all gradients together; None for no limit.
        target_kl: Ends an update after the pass in which the policy has moved this far (nats); None for never.
        compile: Whether to compile networks, loss and gradients with torch.compile: pays for itself in long runs only, and
            needs a C++ compiler. Without one, or if somebody listens to backward passes (a callback, a hook on a parameter),
            the run goes on as if this were not set, with a warning.
        total_env_steps: Env steps of the whole run, over which learning rate and clip range decay; the run stops at the first
            update that reaches them. None: `trainer.max_epochs` rollouts.
        seed: Seed of the weights and the minibatches.

    Raises:
        ConfigError: A setting is out of its range.
    """

    def __init__(
        self,
        obs_size: int,
        num_actions: int,
        actor_hidden_sizes: Sequence[int] = (64, 64),
        critic_hidden_sizes: Sequence[int] = (64, 64),
        activation: Activation = "tanh",
        learning_rate: float = 3e-3,
        learning_rate_decay: Literal["linear", "constant"] = "linear",
        adam_epsilon: float = 1e-5,
        gamma: float = 0.99,
        gae_lambda: float = 0.95,
        update_epochs: int = 4,
        minibatch_size: int = 64,
        clip_epsilon: float = 0.4,
        clip_decay: Literal["linear", "constant"] = "constant",
        value_clip: float | None = None,
        value_coefficient: float = 0.5,
        entropy_coefficient: float = 0.0,
        normalize_advantages: Literal["minibatch", "rollout", "off"] = "minibatch",
        max_grad_norm: float | None = 0.5,
        target_kl: float | None = None,
        compile: bool = False,
        total_env_steps: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.save_hyperparameters()
        _require_ranges(dict(self.hparams))
        weights = seeding.generator(seed, "weights")
        self.actor = Actor(obs_size, num_actions, actor_hidden_sizes, activation, weights)
        self.critic = Critic(obs_size, critic_hidden_sizes, activation, weights)
        self.metrics: dict[str, float] = {}  # of the newest update
        self._updated_at: float | None = None
        self._is_observed = True  # steps of the optimizer go through Lightning's hooks
        self._gradients: EagerGradients | CompiledGradients | None = None  # made when fit starts
        self.learnt_update: int | None = None  # number of the newest update of this run
        self.is_updating = False  # the parameters are half way; stays true when an update fails
        self.run_env_steps: int | None = None  # of the whole run, over which schedules run; None: unknown, nothing decays
        self._run_env_steps_before: int | None = None  # the same of the run that is resumed

    def forward(self, obs: Tensor) -> Tensor:
        """Greedy actions, shape (B,), for observations of shape (B, obs_size)."""
        return distributions.mode(self.actor(obs))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam over actor and critic, in its fused form where the device has one."""
        return torch.optim.Adam(
            self.parameters(),
            lr=self.hparams["learning_rate"],
            eps=self.hparams["adam_epsilon"],
            fused=self.device.type in ("cpu", "cuda", "mps", "xpu"),
        )

    @staticmethod
    def refuse_flags(trainer: Trainer) -> None:
        """Refuse flags of the Trainer that would be ignored or cannot work.

        Raises:
            ConfigError: Names the flag and what to use instead.
        """
        for flag, (harmless, instead) in _FLAGS_NOT_HONOURED.items():
            value = getattr(trainer, flag, harmless)
            if value != harmless:
                raise ConfigError(f"trainer.{flag}={value}: has no effect on PPO updates; {instead}")
        if trainer.precision in ("16-mixed", "16-true"):
            raise ConfigError(f"trainer.precision={trainer.precision}: PPO's ratios need the range of bf16-mixed or 32-true")
        if trainer.world_size > 1:
            raise ConfigError(f"trainer.devices: expected 1 device, got {trainer.world_size}; more envs use data.num_envs")

    def on_fit_start(self) -> None:
        """Refuse what would be ignored or cannot work."""
        self.refuse_flags(self.trainer)
        source = self._source
        transitions = source.horizon * source.num_envs
        if self.hparams["minibatch_size"] > transitions:
            raise ConfigError(
                f"model.minibatch_size={self.hparams['minibatch_size']}: expected at most "
                f"data.horizon * data.num_envs = {source.horizon} * {source.num_envs} = {transitions}"
            )
        self.learnt_update = None
        self.run_env_steps = self._run_length(transitions)
        self._is_observed = _is_observed(self.trainer, self)
        num_minibatches = math.ceil(transitions / self.hparams["minibatch_size"])
        sizes = {transitions // num_minibatches, math.ceil(transitions / num_minibatches)}
        if source.has_invalid_rows:
            sizes.add(max(1, min(sizes) - 1))
        self._gradients = self._make_gradients(sorted(sizes, reverse=True))

    def _run_length(self, transitions_per_update: int) -> int | None:
        """Env steps of the whole run; None if it has no length in env steps and nothing decays.

        Raises:
            ConfigError: A schedule needs the length.
        """
        settings = self.hparams
        decaying = [name for name in ("learning_rate_decay", "clip_decay") if settings[name] == "linear"]
        length: int | None = settings["total_env_steps"]
        if length is None and self.trainer.max_epochs is not None and self.trainer.max_epochs >= 0:
            length = self.trainer.max_epochs * transitions_per_update
        if decaying and length is None:
            raise ConfigError(
                f"model.{decaying[0]}=linear: expected a run of known length; set model.total_env_steps or trainer.max_epochs"
            )
        before = self._run_env_steps_before
        if decaying and before is not None and before != length:
            log.warning("the schedules run over %d env steps now, %d before", length, before)
        return length

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the length of the run."""
        checkpoint[_RUN_LENGTH_KEY] = self.run_env_steps

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Remember the length of the run that is resumed."""
        self._run_env_steps_before = checkpoint.get(_RUN_LENGTH_KEY)

    def on_train_start(self) -> None:
        """A run that had reached its last env step before it was resumed has nothing left to do."""
        self._stop_at_the_end()

    def _stop_at_the_end(self) -> None:
        total = self.hparams["total_env_steps"]
        if total is not None and self._source.env_steps >= total:
            self.trainer.should_stop = True

    @property
    def _source(self) -> RolloutSource:
        return cast(RolloutSource, self.trainer.datamodule)  # type: ignore[attr-defined]

    def make_batch(self, rollout: Rollout) -> Batch:
        """What an update learns from a rollout of this policy."""
        # as precise as the policy that acted, also where the update itself is in mixed precision
        with torch.autocast(self.device.type, enabled=False):
            settings = {name: self.hparams[name] for name in ("gamma", "gae_lambda")}
            return make_batch(rollout, self.actor, self.critic, **settings)

    def training_step(self, rollout: Rollout, batch_idx: int) -> None:
        """One PPO update."""
        batch = self.make_batch(rollout)
        start, self.is_updating = perf_counter(), True
        settings = dict(self.hparams)
        optimizer = self.optimizers()
        assert not isinstance(optimizer, list) and self._gradients is not None
        learning_rate, clip_epsilon = (
            functional.linear_decay(
                settings[name], rollout.env_steps, self.run_env_steps if settings[decay] == "linear" else None
            )
            for name, decay in (("learning_rate", "learning_rate_decay"), ("clip_epsilon", "clip_decay"))
        )
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        advantages = batch.advantages
        if settings["normalize_advantages"] == "rollout":
            advantages = functional.normalize(advantages)
        columns = batch._replace(advantages=advantages)
        num_transitions = len(batch.actions)
        num_minibatches = math.ceil(num_transitions / settings["minibatch_size"])
        permutations = seeding.generator(settings["seed"], "minibatches", rollout.update)
        losses: list[Tensor] = []
        log_ratios: list[Tensor] = []
        # K passes over one rollout; older data would be off-policy
        for _ in range(settings["update_epochs"]):
            order = torch.randperm(num_transitions, generator=permutations).to(self.device)
            shuffled = [column[order].tensor_split(num_minibatches) for column in columns]
            log_ratios = []
            for minibatch in map(Batch._make, zip(*shuffled, strict=True)):
                loss, log_ratio, gradient_norm = self._gradients(minibatch, clip_epsilon)
                self._step(optimizer, loss.total, gradient_norm)
                losses += [*loss, gradient_norm]
                log_ratios.append(log_ratio)
            target_kl = settings["target_kl"]
            if target_kl is not None and float(functional.approximate_kl(torch.cat(log_ratios))) > target_kl:
                break
        with torch.no_grad():
            self._measure(batch, losses, torch.cat(log_ratios), learning_rate, clip_epsilon)
        now = perf_counter()
        self.metrics["time/update_steps_per_s"] = num_transitions / (now - start)
        if self._updated_at is not None:  # evaluation, checkpoints and callbacks included
            self.metrics["time/overall_steps_per_s"] = num_transitions / (now - self._updated_at)
        self._updated_at, self.is_updating, self.learnt_update = now, False, rollout.update

    def on_train_epoch_end(self) -> None:
        """Hand the diagnostics of the update to the loggers, over env steps, and end a run that has reached its last one.

        Not through `self.log`: that costs half a millisecond for each number, which is more than an optimizer step.
        Lightning calls checkpoint callbacks after this hook, so they see the end of the run and save its last update.
        """
        source = self._source
        for logger in self.trainer.loggers:
            logger.log_metrics({**source.metrics, **self.metrics}, step=source.env_steps)
        self._stop_at_the_end()

    def _make_gradients(self, minibatch_sizes: Sequence[int]) -> EagerGradients | CompiledGradients:
        """What computes losses and gradients: compiled, if that is asked for and can be done; a warning says why not."""
        names = (field.name for field in dataclasses.fields(LossSettings))
        networks, settings = ActorCritic(self.actor, self.critic), LossSettings(**{name: self.hparams[name] for name in names})
        eager = EagerGradients(networks, settings, self.manual_backward if self._is_observed else torch.autograd.backward)
        if not self.hparams["compile"]:
            return eager
        if listener := _backward_listener(self.trainer, self):
            log.warning("model.compile: nothing is compiled: %s listens to backward passes, and there would be none", listener)
            return eager
        precision = self.trainer.precision_plugin
        try:  # now, rather than in the middle of the first update
            compiled = CompiledGradients(networks, settings)
            for size in minibatch_sizes:
                obs, actions = torch.zeros(size, self.hparams["obs_size"]), torch.zeros(size, dtype=torch.int64)
                # a tensor for each column: were they one, the program would be made for that
                columns = Batch(obs, actions, *(torch.zeros(size) for _ in range(4)))
                minibatch = Batch(*(column.to(self.device) for column in precision.convert_input(columns)))
                with precision.train_step_context():
                    compiled(minibatch, self.hparams["clip_epsilon"])
        except Exception as error:  # of whatever stage of the compiler
            log.warning("model.compile: nothing is compiled: %s", str(error).strip().partition("\n")[0][:200])
            return eager
        return compiled

    def _step(self, optimizer: Any, loss: Tensor, gradient_norm: Tensor) -> None:
        """One optimizer step.

        Raises:
            NonFiniteUpdate: Loss or gradients are NaN or infinite; nothing was stepped.
        """
        if not math.isfinite((loss + gradient_norm).item()):
            raise NonFiniteUpdate(
                f"update {self.current_epoch}: the loss is {loss.item()} and the norm of its gradients {gradient_norm.item()}; "
                "the parameters are those of the last good step. Try a smaller model.learning_rate or scale the rewards"
            )
        if self._is_observed:
            optimizer.step()
        else:  # what is left of Lightning's step: the count
            progress = self.trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress
            progress.increment_ready()
            optimizer.optimizer.step()
            progress.increment_completed()

    def _measure(
        self, batch: Batch, losses: list[Tensor], log_ratio: Tensor, learning_rate: float, clip_epsilon: float
    ) -> None:
        """The diagnostics of an update; KL and clip fraction are those of its last pass."""
        columns = torch.stack(losses).view(-1, len(functional.PPOLoss._fields) + 1)
        total, policy, value, entropy, gradient_norm = columns.mean(dim=0).tolist()
        self.metrics = {
            "loss/total": total,
            "loss/policy": policy,
            "loss/value": value,
            "policy/entropy": entropy,
            "policy/approx_kl": float(functional.approximate_kl(log_ratio)),
            "policy/clip_fraction": float(functional.clip_fraction(log_ratio, clip_epsilon)),
            "critic/explained_variance": float(torch.as_tensor(explained_variance(batch.old_values, batch.returns))),
            "optimizer/gradient_norm": gradient_norm,
            "optimizer/learning_rate": learning_rate,
            "optimizer/steps": float(len(columns)),
        }

    def validation_step(self, results: EpisodeResults, batch_idx: int) -> None:
        """Report greedy episodes, which the datamodule has played."""
        self._report(results, "val")

    def test_step(self, results: EpisodeResults, batch_idx: int) -> None:
        """Report greedy episodes, which the datamodule has played."""
        self._report(results, "test")

    def _report(self, results: EpisodeResults, stage: str) -> None:
        values = {
            "episodes": len(results.returns),
            "return_mean": results.mean,
            "return_std": results.std,
            "return_min": min(results.returns),
            "return_max": max(results.returns),
            "length_mean": sum(results.lengths) / len(results.lengths),
        }
        self.log_dict({f"{stage}/{name}": float(value) for name, value in values.items()}, batch_size=1)


def _backward_listener(trainer: Trainer, module: PPOModule) -> str | None:
    """Who would notice if there were no backward passes; None if nobody would."""
    hooks = ("on_before_backward", "on_after_backward")
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if any(is_overridden(hook, callback, Callback) for hook in hooks):
            return type(callback).__name__
    if any(is_overridden(hook, module, LightningModule) for hook in (*hooks, "backward")):
        return type(module).__name__
    if trainer._detect_anomaly:
        return "trainer.detect_anomaly"
    for name, parameter in module.named_parameters():
        if parameter._backward_hooks or getattr(parameter, "_post_accumulate_grad_hooks", None):
            return f"a hook on {name}"
    return next((f"a hook on {name}" for name, layer in module.named_modules() if layer._backward_hooks), None)


def _is_observed(trainer: Trainer, module: PPOModule) -> bool:
    """Whether anybody would notice if optimizer steps did not go through Lightning's hooks, which cost a tenth of an update."""
    hook = "on_before_optimizer_step"
    return (
        _backward_listener(trainer, module) is not None
        or any(is_overridden(hook, callback, Callback) for callback in trainer.callbacks)  # type: ignore[attr-defined]
        or is_overridden(hook, module, LightningModule)
        or type(trainer.strategy) is not SingleDeviceStrategy
        or type(trainer.precision_plugin) is not Precision
        or type(trainer.profiler) is not PassThroughProfiler  # type: ignore[attr-defined]
    )


def _require_ranges(settings: dict[str, Any]) -> None:
    """Refuse settings out of their range.

    Raises:
        ConfigError: Names key, value and range.
    """

    def require(name: str, holds: bool, allowed: str) -> None:
        if not holds:
            raise ConfigError(f"model.{name}={settings[name]}: expected {allowed}")

    for name in ("obs_size", "num_actions", "update_epochs", "minibatch_size"):
        require(name, settings[name] >= 1, "at least 1")
    for name in ("actor_hidden_sizes", "critic_hidden_sizes"):
        require(name, all(size >= 1 for size in settings[name]), "sizes of at least 1")
    for name in ("gamma", "gae_lambda"):
        require(name, 0 <= settings[name] <= 1, "a number in [0, 1]")
    for name in ("learning_rate", "adam_epsilon", "clip_epsilon"):
        require(name, 0 < settings[name] < math.inf, "a number above 0")
    for name in ("learning_rate_decay", "clip_decay"):
        require(name, settings[name] in ("linear", "constant"), "linear or constant")
    for name in ("value_coefficient", "entropy_coefficient"):
        require(name, 0 <= settings[name] < math.inf, "a number of at least 0")
    for name in ("total_env_steps", "value_clip", "max_grad_norm", "target_kl"):
        require(name, settings[name] is None or 0 < settings[name] < math.inf, "a number above 0, or null")
    require("seed", settings["seed"] >= 0, "at least 0")
