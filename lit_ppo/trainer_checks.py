"""Checks of a run: the Trainer's flags, callbacks and plugins, module and data; what cannot work is refused in one line."""

from typing import Final

from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    GradientAccumulationScheduler,
    LearningRateFinder,
    ModelPruning,
    StochasticWeightAveraging,
)
from lightning.pytorch.trainer.states import TrainerFn

from lit_ppo import elastic
from lit_ppo.checkpoint_io import VerifiedCheckpointIO
from lit_ppo.compat_lightning import rank_strategy_of, unfit_for_ranks
from lit_ppo.errors import ConfigError
from lit_ppo.rollout import DEVICES_WITHOUT_FLOAT64, Learner, RolloutSource
from lit_ppo.spaces import EnvSpec, Leaf

_EVALUATIONS: Final = "has no effect on PPO updates; use --evaluation.every_env_steps"
_ENDLESS: Final = "keeps a signal and total_env_steps from ending the run; leave it out"
# Flags of the Trainer that are refused in fit: the values that change nothing, and what to use instead.
_REFUSED_IN_FIT: Final[dict[str, tuple[tuple[float | None, ...], str]]] = {
    "gradient_clip_val": ((None,), "has no effect on PPO updates; use --model.max_grad_norm"),
    "accumulate_grad_batches": ((1,), "has no effect on PPO updates; use a larger --model.minibatch_size"),
    # overfit_batches sets limit_train_batches
    "overfit_batches": ((0.0,), "has no effect on PPO updates; on-policy data cannot be used again"),
    "limit_train_batches": ((1.0,), "has no effect on PPO updates; an update is one batch; use --data.horizon"),
    "check_val_every_n_epoch": ((1,), _EVALUATIONS),
    "val_check_interval": ((1.0,), _EVALUATIONS),
    "log_every_n_steps": ((1, 50), "has no effect on PPO updates; each of them is logged"),  # 50 is Lightning's default
    "min_steps": ((None,), _ENDLESS),  # sets min_epochs
    "min_epochs": ((None, 0), _ENDLESS),
}
_REFUSED_IN_PLAY: Final = {
    TrainerFn.VALIDATING: ("limit_val_batches", "use --data.validation_episodes"),
    TrainerFn.PREDICTING: ("limit_predict_batches", "use --data.validation_episodes"),
    TrainerFn.TESTING: ("limit_test_batches", "use --data.test_episodes"),
}
_REFUSED_CALLBACKS: Final[dict[type[Callback], str]] = {
    LearningRateFinder: "an update without new rollouts says nothing of a learning rate; compare short runs, "
    "--model.learning_rate=1e-3 --total_env_steps=50000",
    BatchSizeFinder: "the batch of an update is data.horizon * data.num_envs; set these and model.minibatch_size",
    GradientAccumulationScheduler: "has no effect on PPO updates; use a larger --model.minibatch_size",
    StochasticWeightAveraging: "its weights are made after the last evaluation; "
    "use EMAWeightAveraging, whose weights are those evaluated and saved",
    ModelPruning: "replaces the parameters that the policy learns with; prune a trained policy instead",
}


def refuse_flags(trainer: Trainer) -> None:
    """Refuse flags of a fit that would be ignored or do not work with PPO.

    Raises:
        ConfigError: Names the flag and what to use instead.
    """
    set_by_lightning = {"limit_train_batches"} if trainer.fast_dev_run else set()  # type: ignore[attr-defined]
    set_by_lightning |= {"log_every_n_steps"} if trainer.barebones else set()
    for flag, (neutral, reason) in _REFUSED_IN_FIT.items():
        value = getattr(trainer, flag, neutral[0])
        if value not in (None, *neutral) and flag not in set_by_lightning:
            raise ConfigError(f"trainer.{flag}={value}: {reason}")
    is_half = trainer.precision.endswith("-true") and trainer.precision not in ("32-true", "64-true")
    if is_half or trainer.precision == "16-mixed":
        raise ConfigError(f"trainer.precision={trainer.precision}: PPO's ratios need the range of bf16-mixed or 32-true")
    _check_strategy(trainer)


def check_ranks(trainer: Trainer) -> None:
    """Refuse a number of ranks that is not what was started, and strategies that are none for ranks, before any is started.

    Raises:
        ConfigError: Names the options, and what is expected.
    """
    _check_strategy(trainer)
    asked = f"trainer.devices={trainer.num_devices}, trainer.num_nodes={trainer.num_nodes}"
    started = elastic.num_ranks() if elastic.is_torchrun() else trainer.world_size
    if trainer.num_devices * trainer.num_nodes != started or trainer.world_size != started:
        raise ConfigError(f"{asked}: expected {started} in all, the number of ranks that {_launcher_of(trainer)} has started")
    environment: ClusterEnvironment | None = getattr(trainer.strategy, "cluster_environment", None)
    if environment is not None:
        try:
            environment.validate_settings(num_devices=trainer.num_devices, num_nodes=trainer.num_nodes)
        except ValueError as error:
            raise ConfigError(f"{asked}: {' '.join(str(error).split())}") from error


def _check_strategy(trainer: Trainer) -> None:
    if trainer.world_size > 1 and (unfit := unfit_for_ranks(trainer)):
        raise ConfigError(f"trainer.strategy: {unfit}; use --trainer.strategy=ddp")


def _launcher_of(trainer: Trainer) -> str:
    if elastic.is_torchrun():
        return "torchrun"
    return type(getattr(trainer.strategy, "cluster_environment", None)).__name__.removesuffix("Environment")


def check_run(trainer: Trainer, module: LightningModule) -> None:
    """Refuse what cannot work, before a callback acts, and let checkpoints be written and read verified.

    Raises:
        ConfigError: Names what is refused, and what to use instead.
    """
    _check_float64(trainer, _check_parts(trainer, module))
    if trainer.state.fn == TrainerFn.FITTING:
        refuse_flags(trainer)
        _check_callbacks(trainer)
    elif trainer.state.fn in _REFUSED_IN_PLAY:
        flag, advice = _REFUSED_IN_PLAY[trainer.state.fn]
        if (value := getattr(trainer, flag)) != 1.0:
            raise ConfigError(f"trainer.{flag}={value}: has no effect, all episodes are one batch; {advice}")
    rank_strategy_of(trainer)
    found = trainer.strategy.checkpoint_io
    if type(found) is TorchCheckpointIO:
        trainer.strategy.checkpoint_io = VerifiedCheckpointIO()
    elif not isinstance(found, VerifiedCheckpointIO):
        raise ConfigError(
            f"trainer.plugins: {type(found).__name__} is not used: checkpoints are verified when written and read; leave it out"
        )


def _check_parts(trainer: Trainer, module: LightningModule) -> Learner:
    """The run must have our module, which is returned, and our datamodule."""
    data = trainer.datamodule  # type: ignore[attr-defined]
    function = "fit" if trainer.state.fn is None else trainer.state.fn.value
    if not isinstance(data, RolloutSource):
        got = "none" if data is None else type(data).__name__
        raise ConfigError(
            f"trainer.{function}: expected a RolloutDataModule, since PPO collects its own data, got {got}; "
            f"use trainer.{function}(model, datamodule=RolloutDataModule(env_id))"
        )
    if not isinstance(module, Learner):
        raise ConfigError(
            f"trainer.{function}: RolloutDataModule expects a PPOModule, or a subclass, got {type(module).__name__}; "
            f"use trainer.{function}(PPOModule(data.spec), datamodule=data)"
        )
    return module


def _check_float64(trainer: Trainer, learner: Learner) -> None:
    """The device must have float64 if the run needs it."""
    device, policy = trainer.strategy.root_device.type, learner.policy
    needing = {
        "trainer.precision=64-true": trainer.precision == "64-true",
        "model.normalize_observations": policy.observation_normalizer is not None,
        "model.normalize_rewards": policy.reward_normalizer is not None,
    }
    for setting, needs in needing.items():
        if needs and device in DEVICES_WITHOUT_FLOAT64:
            raise ConfigError(f"{setting}: expected a device with float64, got {device}; use --trainer.accelerator=cpu")


def _check_callbacks(trainer: Trainer) -> None:
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    for callback in callbacks:
        for kind, reason in _REFUSED_CALLBACKS.items():
            if isinstance(callback, kind):
                raise ConfigError(f"trainer.callbacks: {type(callback).__name__}: {reason}")


def check_spaces(made_for: EnvSpec, data: EnvSpec, owner: str = "the module", other: str = ", or PPOModule(data.spec)") -> None:
    """The environment must have the spaces that the module, or the checkpoint, was made for.

    Args:
        made_for: The spaces that are expected.
        data: Those of the environment.
        owner: What expects them, for the message.
        other: What can be used besides the owner's environment, for the message.

    Raises:
        ConfigError: It has others.
    """
    for name, expected, got in (
        ("observation", _spaces(made_for.observation), _spaces(data.observation)),
        ("action", _spaces((made_for.action,)), _spaces((data.action,))),
        ("action mask", made_for.mask, data.mask),
    ):
        if expected != got:
            raise ConfigError(
                f"data.env_id={data.env_id}: its {name} is {got}, and {owner} was made for {expected} of "
                f"{made_for.env_id}; use the environment of {owner}{other}"
            )


def _spaces(leaves: tuple[Leaf, ...]) -> str:
    """Leaves in words, without the bounds of boxes, which the networks do not depend on."""
    words = []
    for leaf in leaves:
        bounds = f" from {leaf.low} to {leaf.high}" if leaf.is_integer and leaf.kind != "box" else ""
        words.append(f"{leaf.path + ' ' if leaf.path else ''}{leaf.kind} {leaf.shape} {leaf.dtype}{bounds}")
    return ", ".join(words)
