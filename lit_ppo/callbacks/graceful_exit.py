"""GracefulExit: SIGINT and SIGTERM end a run at an update boundary, with a checkpoint.

The first signal asks the Trainer to stop after the update under way. If that has not happened within the grace period and what
the run waits for is an environment, the wait is broken off: the parameters are still those of the last boundary, and that is
what `RunCheckpoint` saves. A second signal ends the process as if there were no handler.
"""

import itertools
import signal
from time import monotonic
from types import FrameType
from typing import Any, Final

from lightning.pytorch import Callback, LightningModule, Trainer

from lit_ppo.callbacks.greedy_evaluation import data_of
from lit_ppo.errors import ConfigError

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
_ALARM_INTERVAL_S: Final = 0.1


class RunInterrupted(RuntimeError):
    """The run was broken off while it waited for an environment."""


class GracefulExit(Callback):
    """Handles the signals from the start of `fit` to its end; in the main thread only, where Python delivers signals.

    Args:
        grace_s: How long the update under way, and its environments, may take to end by themselves, seconds.

    Raises:
        ConfigError: A setting is out of its range.
    """

    def __init__(self, grace_s: float = 10.0) -> None:
        if not 0 < grace_s < 1e6:
            raise ConfigError(f"interrupt.grace_s={grace_s}: expected a time above 0 s")
        self.grace_s = grace_s
        self.received: int | None = None
        self._signals = itertools.count()
        self._deadline = 0.0
        self._handlers: dict[int, Any] = {}
        self._trainer: Trainer | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Install the handlers."""
        if stage == "fit" and not self._handlers:
            self._trainer = trainer
            for number in _SIGNALS:
                self._handlers[number] = signal.signal(number, self._on_signal)
            self._handlers[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._on_alarm)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.on_train_epoch_end(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The boundary that the signal asked for."""
        if self.received is not None:
            trainer.should_stop = True

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._restore()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._restore()

    def _restore(self) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        # counted in one call: the second signal may arrive while the handler of the first is at its first line
        if next(self._signals) > 0:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.received = number
        assert self._trainer is not None
        self._trainer.should_stop = True
        self._deadline = monotonic() + self.grace_s
        signal.setitimer(signal.ITIMER_REAL, _ALARM_INTERVAL_S, _ALARM_INTERVAL_S)

    def _on_alarm(self, number: int, frame: FrameType | None) -> None:
        # alarms come before the deadline too: a second signal may arrive in another thread, and does not end our wait then
        assert self._trainer is not None
        if monotonic() >= self._deadline and data_of(self._trainer).is_waiting:
            signal.setitimer(signal.ITIMER_REAL, 0)
            raise RunInterrupted(f"broken off after {signal.Signals(self.received or 0).name}: an environment did not answer")
