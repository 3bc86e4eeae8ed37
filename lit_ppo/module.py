"""PPOModule: actor, critic and the PPO update as a LightningModule.

Each Lightning epoch is one rollout, one batch and one update: `training_step` makes K passes over the batch in permuted
minibatches, with manual optimisation. A checkpoint saved at any moment is that of the newest boundary between two updates.
"""

import dataclasses
import hashlib
import inspect
import logging
import math
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from functools import partial
from pathlib import Path
from time import perf_counter
from types import FrameType
from typing import Any, Self, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from numpy.typing import NDArray
from torch import Tensor, nn

from lit_ppo import functional, seeding
from lit_ppo.callables import PartOfCheckpoint, plain
from lit_ppo.checkpoint_io import require_archive
from lit_ppo.checkpoint_structure import (
    RUN_LENGTH_KEY,
    RUNNING_RETURNS_KEY,
    WEIGHTS_ONLY_KEY,
    Continuation,
    checked_tensors,
    saved_spec,
)
from lit_ppo.compat_lightning import (
    TrainingState,
    attached_trainer,
    averages_weights,
    epochs_made,
    hide_missing_length,
    is_restoring,
    log_over_env_steps,
    move_to_boundary,
    needs_optimizer_hooks,
    publish_metrics,
    step_without_hooks,
    tell_of_evaluation,
    training_state,
)
from lit_ppo.compilation import gradients_for
from lit_ppo.diagnostics import measured
from lit_ppo.errors import ConfigError, shown
from lit_ppo.evaluation import EpisodeResults
from lit_ppo.networks import Observation
from lit_ppo.normalization import Moments
from lit_ppo.optimization import LearningRate, decay_of, make_optimizer, make_scheduler
from lit_ppo.passes import Passes, columns_of
from lit_ppo.policy import Policy, policy_for, require_finite
from lit_ppo.ppo_settings import PARTS, PPOSettings
from lit_ppo.prediction import ObservationReader, predicted
from lit_ppo.rollout import Batch, Outcomes, Rollout, RolloutSource, make_batch
from lit_ppo.setting_types import kinds_of, require_settings
from lit_ppo.spaces import EnvSpec, spec_from_json, spec_to_json
from lit_ppo.trainer_checks import check_run, check_spaces
from lit_ppo.update import SummedGradients

log = logging.getLogger(__name__)


class PPOModule(LightningModule):
    """Proximal Policy Optimization for every space that the bridge can step.

    Args:
        spec: The environment's spaces: `RolloutDataModule.spec`, or the same as JSON, which is how checkpoints hold it.
        **settings: The fields of `PPOSettings`.

    Raises:
        ConfigError: A setting is out of its range, or does not fit the spaces.
    """

    def __init__(self, spec: EnvSpec | dict[str, Any], **settings: Any) -> None:
        super().__init__()
        self.automatic_optimization = False
        require_settings(settings, kinds_of(PPOSettings), "model")
        self.settings = ppo = PPOSettings(**settings)  # written so, the command line finds the options
        if not isinstance(spec, EnvSpec | Mapping):
            raise ConfigError(f"spec: expected RolloutDataModule(env_id).spec, got {type(spec).__name__} {shown(spec)}")
        self.spec = spec if isinstance(spec, EnvSpec) else spec_from_json(spec)
        self.save_hyperparameters({"spec": self.spec, **vars(ppo)})
        is_typed = "seed" in settings and settings["seed"] is not None
        self.seed_origin: seeding.SeedOrigin = "typed" if is_typed else "default"
        self._seed_conflict = ""  # why the data's seed cannot be taken
        self.policy = self._drawn(ppo)
        self.metrics: dict[str, float] = {}  # of the newest update, and of its evaluation
        self._is_evaluated = False  # the newest update, and callbacks have not been told
        self._reader: ObservationReader | None = None  # made when `predict` is first called
        self._updated_at: float | None = None
        self._calls_hooks = True  # Lightning's, around each backward pass and optimizer step
        self._passes: Passes | None = None  # made when fit starts
        self._learning_rate: LearningRate | None = None  # the same
        self._uses_set_optimizer = False  # or a subclass makes its own
        self.learnt_update: int | None = None  # number of the newest complete update of this run
        self.is_updating = False  # an update has begun and is not complete; stays True if it fails
        self.run_env_steps: int | None = None  # length of the run, for the schedules; None: unknown, and nothing decays
        self._running_returns: Tensor | None = None  # (N,) discounted, for the normalisation of rewards; None for zeros
        self._run_env_steps_before: int | None = None  # the same in the checkpoint of a resumed run
        self._at_boundary: TrainingState | None = None  # kept only where a callback can save when it has changed
        self._epochs_before: int | None = None  # epochs that the Trainer counts before update 0; None until this fit trains
        self._has_warned_of_weights = False

    def _drawn(self, settings: PPOSettings) -> Policy:
        """A policy with fresh weights."""
        spec, weights = self.spec, seeding.generator(settings.seed, "weights")
        return policy_for(spec.observation, spec.action, spec.mask, settings, weights)

    @property
    def run_seed(self) -> int:
        """Seed of the weights and of the minibatches."""
        return cast(int, self.settings.seed)

    def take_seed(self, seed: int) -> None:
        """Use the data's seed, and draw the weights anew; refused when `fit` starts if they are no fresh draw any more.

        Args:
            seed: Another than the module's, which was not typed.
        """
        settings = dataclasses.replace(self.settings, seed=seed)
        drawn, own = self._drawn(self.settings).state_dict(), self.policy.state_dict()
        if drawn.keys() == own.keys() and all(own[name].equal(value.to(own[name])) for name, value in drawn.items()):
            self.policy.load_state_dict(self._drawn(settings).state_dict())
            self._use_seed(seed)
        else:
            self._seed_conflict = (
                f"model.seed={self.run_seed}, data.seed={seed}: expected one seed, or both typed, since the weights of the "
                "module are no fresh draw, and cannot be drawn anew"
            )

    def _use_seed(self, seed: int) -> None:
        self.settings = dataclasses.replace(self.settings, seed=seed)
        self.save_hyperparameters({"seed": seed})

    def save_hyperparameters(
        self,
        *args: Any,
        ignore: Sequence[str] | str | None = None,
        frame: FrameType | None = None,
        logger: bool = True,
    ) -> None:
        """As in Lightning; spaces and callables become plain data, which every checkpoint can hold.

        Raises:
            ConfigError: A value is neither.
        """
        if not (args and isinstance(args[0], Mapping)):
            caller = inspect.currentframe()
            assert caller is not None
            super().save_hyperparameters(*args, ignore=ignore, frame=frame or caller.f_back, logger=logger)
            args = (self.hparams,)
        values = {name: spec_to_json(value) if isinstance(value, EnvSpec) else value for name, value in args[0].items()}
        super().save_hyperparameters(plain(values, "model"), ignore=ignore, logger=logger)

    def forward(self, obs: Observation, state: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Greedy actions as the policy counts them, shape (R, *action_shape), and the next state.

        Args:
            obs: Observations by path, shape (R, *leaf.shape).
            state: What the policy remembers, as the last call returned it; None where episodes begin, and without memory.

        Raises:
            ValueError: The observations are not a mapping.
        """
        if not isinstance(obs, Mapping):
            raise ValueError(f"obs: expected tensors by path, got {type(obs).__name__}; predict takes what Gymnasium gives")
        num_rows = len(next(iter(obs.values())))
        if state is None:
            state = self.policy.initial_state(num_rows)
        begins = None if state is None else torch.zeros(num_rows, dtype=torch.bool, device=state.device)
        return self.policy.act(obs, state, begins, None)

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: str | Path, *args: Any, **settings: Any) -> Self:  # type: ignore[override]
        """As in Lightning, from a file that is verified first, if it has a checksum.

        Raises:
            CheckpointError: The file cannot be read, is damaged, or is no checkpoint of lit_ppo.
        """
        require_archive(checkpoint_path)
        loaded: Self = super().load_from_checkpoint(checkpoint_path, *args, **settings)
        return loaded

    def predict(
        self,
        obs: Any,
        state: NDArray[Any] | Tensor | None = None,
        deterministic: bool = True,
        *,
        episode_start: Any = None,
        action_mask: Any = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Any, NDArray[Any] | None]:
        """The environment's own actions for one observation or many, in the shape conventions of Stable-Baselines3.

        The module is used in evaluation mode and left in its own; nothing is drawn from a global random stream.

        Args:
            obs: Arrays or tensors, each of a leaf's shape, or with an axis of R rows before it. Observations with parts are a
                mapping by path (`camera/left`), or nested mappings and tuples as Gymnasium gives them; parts of the outermost
                that the policy does not see are ignored. A Discrete observation may be an int.
            state: What the policy remembers, as the last call returned it; None where episodes begin, and without memory.
            deterministic: The most probable actions; False draws from `generator`.
            episode_start: Where an episode begins, so that nothing is remembered: a bool, or shape (R,); None for nowhere.
            action_mask: Zeros and ones for the choices, where they are no part of the observation.
            generator: The source of the draws, needed if `deterministic` is False; on the CPU.

        Returns:
            Actions as the environment takes them, shape (R, *action_shape), or a single one for a single observation; and the
            next state, shape (R, state_size) or (state_size,), None without memory.

        Raises:
            ValueError: A part of the observation is missing, has another shape or dtype, or is not finite; or another argument
                does not fit. The message says what was expected.
        """
        if not deterministic and generator is None:
            raise ValueError(
                "deterministic=False: expected generator=torch.Generator().manual_seed(...), the source of the draws"
            )
        if self._reader is None:
            self._reader = ObservationReader(self.spec)
        leaves, is_single = self._reader.read(obs, action_mask)
        actions, after = predicted(self.policy, leaves, state, episode_start, None if deterministic else generator)
        if is_single:
            return actions[0], None if after is None else after[0]
        return actions, after

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimizer and the scheduler of the settings; without these, Adam.

        A subclass may return an optimizer of its own, and schedulers, which make one step after each update.
        """
        self._uses_set_optimizer = True
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        optimizer = make_optimizer(trained, self.settings, self.device.type)
        scheduler = make_scheduler(optimizer, self.settings)
        return optimizer if scheduler is None else ([optimizer], [scheduler])

    @classmethod
    def makes_own_optimizer(cls) -> bool:
        """Whether a subclass makes the optimizer."""
        return cls.configure_optimizers is not PPOModule.configure_optimizers

    @property
    def _has_own_optimizer(self) -> bool:
        return self.makes_own_optimizer() or self.settings.optimizer is not None

    def setup(self, stage: str) -> None:
        """Refuse what cannot work.

        Raises:
            ConfigError: The data, a callback, a plugin or a flag of the Trainer is refused.
        """
        check_run(self.trainer, self)

    @property
    def hparams_initial(self) -> MutableMapping[str, Any]:  # type: ignore[override]
        """What loggers get: the settings of the module and, under `data`, those of the run's datamodule."""
        settings = super().hparams_initial
        trainer = attached_trainer(self)
        data = None if trainer is None else trainer.datamodule  # type: ignore[attr-defined]
        return settings if data is None else settings | {"data": dict(data.hparams)}

    def on_fit_start(self) -> None:
        """Check the settings against the Trainer and the data, and compile if asked to.

        Raises:
            ConfigError: Module and data have two seeds, a minibatch is larger than a rollout, a schedule has no length, or the
                checkpoint lacks a part.
        """
        if self._seed_conflict:
            raise ConfigError(self._seed_conflict)
        self._prepare_optimization()
        source = self._source
        log_over_env_steps(self.trainer, lambda: source.env_steps)
        self.trainer.log_every_n_steps = 1  # type: ignore[attr-defined]  # of env steps, Lightning would skip nearly all
        hide_missing_length(self.trainer)
        transitions, num_shards = source.horizon * source.num_envs, source.shards.num_shards
        if self.settings.minibatch_size > transitions:
            raise ConfigError(
                f"model.minibatch_size={self.settings.minibatch_size}: expected at most "
                f"data.horizon * data.num_envs = {source.horizon} * {source.num_envs} = {transitions}"
            )
        length = self.policy.sequence_length
        if source.horizon % length:
            raise ConfigError(f"data.horizon={source.horizon}: expected a multiple of model.sequence_length={length}")
        if self.settings.minibatch_size < length * num_shards:
            least = f"model.sequence_length={length}"
            if num_shards > 1:
                least = f"model.sequence_length * data.shards = {length} * {num_shards} = {length * num_shards}"
            raise ConfigError(f"model.minibatch_size={self.settings.minibatch_size}: expected at least {least}")
        self.learnt_update, self.is_updating, self._at_boundary, self._epochs_before = None, False, None, None
        self.run_env_steps = self._run_length(transitions)
        self._calls_hooks = needs_optimizer_hooks(self.trainer, self)
        num_sequences = transitions // length // num_shards
        num_minibatches = math.ceil(transitions / self.settings.minibatch_size)
        sizes = {num_sequences // num_minibatches, math.ceil(num_sequences / num_minibatches)}
        self._passes = self._make_passes(sorted(sizes, reverse=True))

    def _make_passes(self, minibatch_sizes: Sequence[int]) -> Passes:
        """What an update does with a batch.

        Args:
            minibatch_sizes: Numbers of sequences that a shard's part of a minibatch may have.
        """
        optimizer = self.optimizers()
        assert not isinstance(optimizer, list)
        gradients = gradients_for(
            self.trainer,
            self,
            self.policy,
            self.settings,
            self.spec.observation,
            minibatch_sizes,
            calls_hooks=self._calls_hooks,
            weighted=self._source.has_invalid_rows,
        )
        shards, ranks = self._source.shards, self._source.ranks
        summed = SummedGradients(gradients, self.parameters(), self.settings.max_grad_norm, shards.num_shards, ranks.gather)
        return Passes(self.settings, summed, optimizer.optimizer, partial(self._step, optimizer), shards, ranks)

    def _prepare_optimization(self) -> None:
        """Take the optimizer and schedulers that Lightning got, before it restores them from a checkpoint."""
        for name in PARTS:
            part = getattr(self.settings, name)
            if isinstance(part, PartOfCheckpoint):
                raise part.error()
            if name in ("optimizer", "lr_scheduler") and part is not None and not self._uses_set_optimizer:
                raise ConfigError(f"model.{name}: not used by {type(self).__name__}.configure_optimizers")
        optimizers, configs = self.trainer.optimizers, self.trainer.lr_scheduler_configs
        if len(optimizers) != 1:
            raise ConfigError(f"{type(self).__name__}.configure_optimizers: expected one optimizer, got {len(optimizers)}")
        if any((config.interval, config.frequency) != ("epoch", 1) for config in configs):
            raise ConfigError(
                f"{type(self).__name__}.configure_optimizers: schedulers make one step after each update; "
                "leave out interval and frequency"
            )
        schedulers = [config.scheduler for config in configs]
        self._learning_rate = LearningRate(optimizers[0], schedulers, self.settings, self._has_own_optimizer)

    def _run_length(self, transitions_per_update: int) -> int | None:
        """Env steps of the whole run; None if they are unknown and nothing decays.

        Raises:
            ConfigError: They are unknown and something decays.
        """
        decays = {
            "learning_rate_decay": decay_of(self.settings, self._has_own_optimizer),
            "clip_decay": self.settings.clip_decay,
        }
        decaying = [name for name, decay in decays.items() if decay == "linear"]
        length = self.settings.total_env_steps
        if length is None and self.trainer.max_epochs is not None and self.trainer.max_epochs >= 0:
            length = self.trainer.max_epochs * transitions_per_update
        if decaying and length is None:
            raise ConfigError(
                f"model.{decaying[0]}=linear: expected a run of known length; set total_env_steps or trainer.max_epochs"
            )
        before = self._run_env_steps_before
        if decaying and before is not None and before != length:
            log.warning("the schedules run over %d env steps now, %d before", length, before)
        return length

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Let a checkpoint of any moment be that of the newest update boundary; one without a boundary is marked.

        Mid-way through an update there is one only if Lightning's hooks are called there. Before `fit`, in a stage without it,
        and while a run is being restored, there is none.
        """
        checkpoint[RUN_LENGTH_KEY], checkpoint[RUNNING_RETURNS_KEY] = self.run_env_steps, None
        trainer, data = attached_trainer(self), dict[str, Any]()
        if trainer is not None:
            data = checkpoint.get(type(trainer.datamodule).__qualname__, data)  # type: ignore[attr-defined]
        is_asked_for = "optimizer_states" not in checkpoint
        state = self._at_boundary
        if state is not None and state.update != data.get("update"):
            state = None
        has_boundary = trainer is not None and data and trainer.optimizers and self._source.can_continue
        is_between = self.is_updating and state is None
        if trainer is None or is_asked_for or is_between or not has_boundary or is_restoring(trainer):
            checkpoint[WEIGHTS_ONLY_KEY] = True
            if not (is_asked_for or self._has_warned_of_weights):
                self._has_warned_of_weights = True
                log.warning("a checkpoint that is saved where no environments run, or in an update, holds weights only")
            return
        if "bridge" in data:
            checkpoint[RUNNING_RETURNS_KEY] = self._running_returns
        before = self._epochs_before
        epochs = epochs_made(trainer) if before is None else before + data["update"]
        move_to_boundary(checkpoint, epochs, data["env_steps"], state)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check that the checkpoint is whole, before anything of it is used, and read what `on_save_checkpoint` saved.

        Raises:
            CheckpointError: It is not.
            ConfigError: It was made for another environment.
            NonFiniteUpdate: A parameter or a moment of the normalisation is NaN or infinite.
        """
        trainer = attached_trainer(self)
        if trainer is not None:
            if (spec := saved_spec(checkpoint)) is not None:
                check_spaces(spec, self.spec, owner="the checkpoint", other="")
            self._continuation(trainer).require(checkpoint)
        seed = checkpoint.get("hyper_parameters", {}).get("seed")
        if self.seed_origin == "default" and type(seed) is int:  # a resumed run keeps the seed that it had
            self._use_seed(seed)
        self.seed_origin, self._seed_conflict = "loaded", ""
        require_finite(checked_tensors(checkpoint.get("state_dict"), self.state_dict()).items())
        self._run_env_steps_before = checkpoint.get(RUN_LENGTH_KEY)
        self._running_returns = checkpoint.get(RUNNING_RETURNS_KEY)

    def _continuation(self, trainer: Trainer) -> Continuation:
        """What a checkpoint must hold for this run."""
        is_ours = type(self).configure_optimizers is PPOModule.configure_optimizers and self.settings.optimizer is None
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        ours = [callback for callback in callbacks if type(callback).__module__.startswith("lit_ppo.")]
        loops = {f"{name}_loop": getattr(trainer, f"{name}_loop") for name in ("fit", "validate", "test", "predict")}
        return Continuation(
            parameters=self.state_dict() if self.strict_loading else {},
            optimizer=self._stepped_optimizer_state() if is_ours else None,
            num_schedulers=int(self.settings.lr_scheduler is not None) if is_ours else None,
            loops={name: loop.state_dict() for name, loop in loops.items()},
            callbacks={callback.state_key: state for callback in ours if (state := callback.state_dict())},
            data_key=None if trainer.datamodule is None else type(trainer.datamodule).__qualname__,  # type: ignore[attr-defined]
            is_fit=trainer.state.fn == TrainerFn.FITTING,
        )

    def _stepped_optimizer_state(self) -> dict[str, Any]:
        """The state of our optimizer after a step, on parameters of the same shapes."""
        copies = [nn.Parameter(torch.zeros_like(parameter)) for parameter in self.parameters() if parameter.requires_grad]
        optimizer = make_optimizer(copies, self.settings, self.device.type)
        for copy in copies:
            copy.grad = torch.zeros_like(copy)
        optimizer.step()
        return optimizer.state_dict()

    def on_train_start(self) -> None:
        """Stop a resumed run that has already reached `total_env_steps`.

        Raises:
            ConfigError: The ranks have not begun from the same parameters.
        """
        digest = hashlib.sha256()
        for value in self.state_dict().values():
            digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        if len(set(self._source.ranks.gather_bytes(digest.digest()))) > 1:
            raise ConfigError("trainer.devices: expected the same parameters in every rank; use one file and one version")
        self._stop_at_the_end()
        self._epochs_before = epochs_made(self.trainer) - self._source.update
        self._keep_boundary()

    def _keep_boundary(self) -> None:
        """Keep the state of this moment, a boundary, if a callback can save when an update or an average has changed it."""
        if self._calls_hooks or averages_weights(self.trainer):
            self._at_boundary = training_state(self.trainer, self, self._source.update)

    def _stop_at_the_end(self) -> None:
        total = self.settings.total_env_steps
        if total is not None and self._source.env_steps >= total:
            self.trainer.should_stop = True

    @property
    def _source(self) -> RolloutSource:
        return cast(RolloutSource, self.trainer.datamodule)  # type: ignore[attr-defined]

    def make_batch(self, rollout: Rollout) -> Batch:
        """Values, advantages and log-probabilities of a rollout of the current policy, or of a shard's part of it."""
        settings = self.settings
        # the policy acted in full precision, even if the update runs in mixed precision
        with torch.autocast(self.device.type, enabled=False):
            return make_batch(
                rollout,
                self.policy,
                gamma=settings.gamma,
                gae_lambda=settings.gae_lambda,
                weighted=self._source.has_invalid_rows,
            )

    def training_step(self, rollout: Rollout, batch_idx: int) -> None:
        """One PPO update."""
        source, settings = self._source, self.settings
        rewards, reward_moments, running_returns = self._learnt_rewards(rollout.outcomes)
        own = rollout._replace(rewards=rewards[:, source.shards.own_envs])
        batches = [self.make_batch(part) for part in ([own.part(envs) for envs in source.shards.parts] or [own])]
        columns = columns_of(batches, source.ranks)
        start, self.is_updating = perf_counter(), True
        assert self._passes is not None and self._learning_rate is not None
        learning_rate = self._learning_rate.set(rollout.env_steps, self.run_env_steps)
        clip_epsilon = functional.linear_decay(
            settings.clip_epsilon, rollout.env_steps, self.run_env_steps if settings.clip_decay == "linear" else None
        )
        learnt = self._passes.run(batches, columns, rollout.update, clip_epsilon)
        self._commit_moments(batches, reward_moments)
        self._running_returns = running_returns
        with torch.no_grad():
            self.metrics = measured(columns, learnt)
        self.metrics["optimizer/learning_rate"] = learning_rate
        self._learning_rate.step({**source.metrics, **self.metrics})
        now, num_transitions = perf_counter(), columns.num_valid
        self.metrics["time/update_steps_per_s"] = num_transitions / (now - start)
        if self._updated_at is not None:  # including evaluation, checkpoints and callbacks
            self.metrics["time/overall_steps_per_s"] = num_transitions / (now - self._updated_at)
        self._updated_at, self.is_updating, self.learnt_update = now, False, rollout.update
        self._is_evaluated = False
        publish_metrics(self.trainer, {**source.metrics, **self.metrics})

    def _learnt_rewards(self, outcomes: Outcomes) -> tuple[Tensor, Moments | None, Tensor | None]:
        """Rewards as the critic learns from them, and the moments and running returns that they leave to be stored."""
        rewards, normalizer = outcomes.rewards, self.policy.reward_normalizer
        if self.settings.reward_scale != 1:
            rewards = rewards * self.settings.reward_scale
        if normalizer is None:
            return rewards, None, None
        running = self._running_returns
        if running is None:
            running = torch.zeros(rewards.shape[1], dtype=torch.float64)
        running = running.to(rewards.device) * ~outcomes.begins
        moments, running = normalizer.updated(rewards, outcomes.ends, outcomes.valid, running)
        return normalizer.scaled(rewards, moments), moments, running

    def _commit_moments(self, batches: Sequence[Batch], of_rewards: Moments | None) -> None:
        """Store the moments after an update, not before: the policy that learnt must be the one that acted.

        Args:
            batches: Of this rank's shards.
            of_rewards: The new ones of the rewards; None without their normalisation.
        """
        observations, rewards = self.policy.observation_normalizer, self.policy.reward_normalizer
        if observations is not None:
            own = [observations.packed(observations.moments_of(batch.obs, batch.weights)) for batch in batches]
            of_shards = self._source.ranks.gather(torch.stack(own))
            observations.commit(observations.updated(*map(observations.unpacked, of_shards)))
        if rewards is not None and of_rewards is not None:
            rewards.commit(of_rewards)

    def add_evaluation(self, metrics: Mapping[str, float]) -> None:
        """Add the results of an evaluation to the metrics of the newest update."""
        self.metrics.update(metrics)
        self._is_evaluated = True
        publish_metrics(self.trainer, metrics)

    def on_train_epoch_end(self) -> None:
        """Log the metrics of the update as one row over env steps; stop the run if it has reached `total_env_steps`.

        The loggers are called directly because `self.log` costs half a millisecond per number, more than an optimizer step.
        Lightning calls checkpoint callbacks after this hook, so they see that the run stops, and save its last update.
        """
        source = self._source
        for logger in self.trainer.loggers:
            logger.log_metrics({**source.metrics, **self.metrics}, step=source.env_steps)
        if self._is_evaluated:
            tell_of_evaluation(self.trainer, self)
        self._stop_at_the_end()
        self._keep_boundary()

    def _step(self, optimizer: LightningOptimizer, closure: Callable[[], Tensor] | None) -> None:
        """One step of the optimizer; `closure` computes the loss again, for an optimizer that asks for it."""
        if self._calls_hooks:
            optimizer.step(closure)
        else:
            step_without_hooks(self.trainer, optimizer, closure)

    def validation_step(self, results: EpisodeResults, batch_idx: int) -> None:
        """Log the greedy episodes that the datamodule has played."""
        self._report(results, "val")

    def test_step(self, results: EpisodeResults, batch_idx: int) -> None:
        """Log the greedy episodes that the datamodule has played."""
        self._report(results, "test")

    def predict_step(self, results: EpisodeResults, batch_idx: int) -> EpisodeResults:
        """The greedy episodes that the datamodule has played; `forward` gives the actions for given observations."""
        return results

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
