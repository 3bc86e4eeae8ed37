"""GracefulExit: while a run trains, SIGINT and SIGTERM end it at an update boundary, with a checkpoint.

The first signal asks the Trainer to stop; the update under way is finished first, however long it takes. The grace period
bounds the waits for environments and for readers of the output: after it, a wait for environments is interrupted (the
parameters are still those of the last boundary, which `RunCheckpoint` saves), and output that waits for a reader is discarded.
A second signal ends the process at once, without a checkpoint.
"""

import itertools
import signal
from time import monotonic
from types import FrameType
from typing import Any, Final

from lightning.pytorch import Callback, LightningModule, Trainer

from lit_ppo import exit_codes
from lit_ppo.callbacks.greedy_evaluation import data_of
from lit_ppo.errors import ConfigError, RunInterrupted
from lit_ppo.interrupts import SIGNALS
from lit_ppo.standard_streams import discard_unread_output

_ALARM_INTERVAL_S: Final = 0.1


class GracefulExit(Callback):
    """Handles the signals from the first update to the last; in the main thread only, where Python delivers signals.

    Args:
        grace_s: Longest wait for environments, and for readers of the output, after a signal, seconds. The update under way is
            finished first and is not bounded.

    Raises:
        ConfigError: A setting is out of its range.
    """

    def __init__(self, grace_s: float = 10.0) -> None:
        if not 0 < grace_s < 1e6:
            raise ConfigError(f"interrupt.grace_s={grace_s}: expected a time above 0 s")
        self.grace_s = grace_s
        self.received: int | None = None  # with several ranks, once all know
        self._signals = itertools.count()
        self._deadline = 0.0
        self._handlers: dict[int, Any] = {}
        self._trainer: Trainer | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Install the alarm's handler before Lightning notes all handlers, to which it returns when training ends."""
        if stage == "fit" and not self._handlers:
            self._trainer = trainer
            self._handlers[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._on_alarm)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Replace Lightning's handlers, whose answer to SIGTERM is to leave training with exit code 0."""
        for number in SIGNALS:
            self._handlers[number] = signal.signal(number, self._on_signal)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The boundary that the signal asked for, on every rank the same one."""
        agreed = data_of(trainer).agreed_interrupt
        if agreed is not None:
            self.received, trainer.should_stop = agreed, True

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._restore()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._restore()

    def _restore(self) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in self._handlers.items():
            if signal.getsignal(number) in (self._on_signal, self._on_alarm):  # else Lightning has restored it
                signal.signal(number, handler)
        self._handlers = {}

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        # counted in one call: the second signal may arrive in the first line of the first one's handler
        if next(self._signals) > 0:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        assert self._trainer is not None
        data_of(self._trainer).interrupt = number
        if self._trainer.world_size == 1:  # other ranks must hear of it first, or they would go on without this one
            self.received, self._trainer.should_stop = number, True
        self._deadline = monotonic() + self.grace_s
        signal.setitimer(signal.ITIMER_REAL, _ALARM_INTERVAL_S, _ALARM_INTERVAL_S)

    def _on_alarm(self, number: int, frame: FrameType | None) -> None:
        # alarms repeat, since a signal that the kernel hands to another thread does not interrupt this one's wait
        assert self._trainer is not None
        if monotonic() < self._deadline:
            return
        if discard_unread_output(patience_s=0.0):  # the write that waited goes on, and gets a grace period of its own
            self._deadline = monotonic() + self.grace_s
        elif data_of(self._trainer).is_waiting:
            signal.setitimer(signal.ITIMER_REAL, 0)
            number = signal.Signals(data_of(self._trainer).interrupt or 0)
            self.received = number
            message = f"interrupted by {number.name} while waiting for the environments"
            raise RunInterrupted(message, exit_codes.of_signal(number))
