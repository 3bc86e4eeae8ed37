"""The optimizer and its learning rate: Adam with linear decay, or a user's own optimizer and schedulers.

Either our decay or the schedulers set the learning rate of a run; without both, it stays what the optimizer was made with.
Schedulers make one step after each update. Lightning saves and restores their state and the optimizer's.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, TypeVar

from torch import nn
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from lit_ppo import functional
from lit_ppo.errors import ConfigError
from lit_ppo.ppo_settings import Decay, PPOSettings

Part = TypeVar("Part")

LEARNING_RATE: Final = 3e-4
ADAM_EPSILON: Final = 1e-5
# What a scheduler can monitor: the diagnostics of an update that a resumed run has as well; not times, not evaluations.
MONITORED: Final = (
    "loss/total",
    "loss/policy",
    "loss/value",
    "policy/entropy",
    "policy/approx_kl",
    "policy/clip_fraction",
    "critic/explained_variance",
    "optimizer/gradient_norm",
    "optimizer/learning_rate",
    "optimizer/steps",
    "env/steps",
    "env/restarts",
    "env/abandoned_episodes",
    "episodes/ended",
    "episodes/return",
    "episodes/length",
)


def make_optimizer(parameters: Iterable[nn.Parameter], settings: PPOSettings, device_type: str) -> Optimizer:
    """The optimizer of the settings, or Adam, fused on devices that support it.

    Raises:
        ConfigError: The optimizer refuses its settings, or is none.
    """
    if settings.optimizer is None:
        return Adam(
            parameters,
            lr=LEARNING_RATE if settings.learning_rate is None else settings.learning_rate,
            eps=ADAM_EPSILON if settings.adam_epsilon is None else settings.adam_epsilon,
            fused=device_type in ("cpu", "cuda", "mps", "xpu"),
        )
    return _made("optimizer", settings.optimizer, parameters, Optimizer)


def make_scheduler(optimizer: Optimizer, settings: PPOSettings) -> LRScheduler | None:
    """The scheduler of the settings; None if there is none.

    Raises:
        ConfigError: The scheduler refuses its settings, or is none.
    """
    return None if settings.lr_scheduler is None else _made("lr_scheduler", settings.lr_scheduler, optimizer, LRScheduler)


def _made(setting: str, make: Callable[[Any], Any], argument: object, kind: type[Part]) -> Part:
    """What a user's own callable makes of its first argument.

    Raises:
        ConfigError: It refuses its settings, or makes something else.
    """
    try:
        part = make(argument)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"model.{setting}: {error}") from error
    if not isinstance(part, kind):
        raise ConfigError(f"model.{setting}: expected an object of class {kind.__name__}, got {type(part).__name__}")
    return part


def decay_of(settings: PPOSettings, has_own_optimizer: bool) -> Decay:
    """How the learning rate decays, by us: as set, else linearly for our Adam without a scheduler."""
    if settings.learning_rate_decay is not None:
        return settings.learning_rate_decay
    return "constant" if has_own_optimizer or settings.lr_scheduler is not None else "linear"


def needs_closure(optimizer: Optimizer) -> bool:
    """Whether a step of the optimizer computes the loss again, several times: its closure has no default."""
    closure = inspect.signature(type(optimizer).step).parameters.get("closure")
    return closure is not None and closure.default is inspect.Parameter.empty


class LearningRate:
    """The learning rate of a run.

    Args:
        optimizer: As it was made, before a checkpoint is restored: its rates are those of the start of the run.
        schedulers: Those of the optimizer.
        settings: Of the run.
        has_own_optimizer: Whether the optimizer is not our Adam.

    Raises:
        ConfigError: Both our decay and a scheduler would set the rate, or a scheduler monitors what it cannot.
    """

    def __init__(
        self, optimizer: Optimizer, schedulers: Sequence[LRScheduler], settings: PPOSettings, has_own_optimizer: bool
    ) -> None:
        self._optimizer, self._schedulers = optimizer, schedulers
        self.decay = decay_of(settings, has_own_optimizer)
        if schedulers and settings.learning_rate_decay == "linear":
            raise ConfigError("model.learning_rate_decay=linear: not used with the scheduler of configure_optimizers")
        for scheduler in schedulers:
            if isinstance(scheduler, ReduceLROnPlateau):
                _require_monitor(scheduler)
        self._starts: list[Any] | None = None  # of each parameter group, if the rate is ours to set
        if not schedulers and (not has_own_optimizer or self.decay == "linear"):
            self._starts = [group["lr"] for group in optimizer.param_groups]

    def set(self, env_steps: int, run_env_steps: int | None) -> float:
        """Set the rates of an update.

        Args:
            env_steps: Env steps before the update's rollout.
            run_env_steps: Length of the run.

        Returns:
            The rate of the first parameter group.
        """
        groups = self._optimizer.param_groups
        if self._starts is not None:
            decay_steps = run_env_steps if self.decay == "linear" else None
            for group, start in zip(groups, self._starts, strict=True):
                group["lr"] = functional.linear_decay(start, env_steps, decay_steps)
        return float(groups[0]["lr"])

    def step(self, metrics: Mapping[str, float]) -> None:
        """Let the schedulers make their step after an update.

        Args:
            metrics: Diagnostics of the update and its rollout. A scheduler that monitors one that this update lacks, such as
                the return where no episode ended, makes no step.
        """
        for scheduler in self._schedulers:
            if not isinstance(scheduler, ReduceLROnPlateau):
                scheduler.step()
            elif (value := metrics.get(_require_monitor(scheduler))) is not None:
                scheduler.step(value)


def _require_monitor(scheduler: ReduceLROnPlateau) -> str:
    """The name of the diagnostic that a scheduler monitors.

    Raises:
        ConfigError: It names none, or one that it cannot monitor.
    """
    monitor = getattr(scheduler, "monitor", None)
    if monitor is None:
        raise ConfigError(
            "model.lr_scheduler: ReduceLROnPlateau has no monitor; "
            "use lightning.pytorch.cli.ReduceLROnPlateau, whose monitor names a diagnostic such as loss/value"
        )
    if monitor not in MONITORED:
        reason = " (evaluations are not restored exactly)" if str(monitor).startswith("eval/") else ""
        raise ConfigError(f"model.lr_scheduler.monitor={monitor}{reason}: expected one of {', '.join(MONITORED)}")
    return str(monitor)
