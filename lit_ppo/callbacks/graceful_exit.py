"""GracefulExit: while a run trains, SIGINT and SIGTERM end it at an update boundary, with a checkpoint.

The first signal asks the Trainer to stop; the update under way is finished first, however long it takes. The grace period
bounds the waits for environments and for readers of the output: after it, a wait for environments is interrupted (the
parameters are still those of the last boundary, which `RunCheckpoint` saves), and output that waits for a reader is discarded.
Since a wait in the kernel goes on until a signal comes, a thread sends the signal once more then, and marks it as its own.

A second signal of others goes to the program's handler, which on the command line ends the process at once, without a
checkpoint. In a program of one's own it raises `KeyboardInterrupt`. No other signal and no timer of the program is touched.
"""

import itertools
import signal
import threading
from queue import Empty, SimpleQueue
from types import FrameType
from typing import Any, Final

from lightning.pytorch import Callback, LightningModule, Trainer

from lit_ppo import exit_codes
from lit_ppo.callbacks.greedy_evaluation import data_of
from lit_ppo.compat_lightning import end_with_keyboard_interrupt
from lit_ppo.errors import ConfigError, RunInterrupted
from lit_ppo.interrupts import SIGNALS
from lit_ppo.standard_streams import accepts, discard_unread_output

_REPEAT_S: Final = 0.1


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
        self._is_own_signal = False  # the next one that comes
        self._handlers: dict[int, Any] = {}  # the program's
        self._trainer: Trainer | None = None
        self._watch: threading.Thread | None = None
        self._messages: SimpleQueue[int | None] = SimpleQueue()  # a handler may put into it, whatever it has interrupted

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Note the program's handlers, before Lightning has put its own in their place."""
        if stage == "fit" and threading.current_thread() is threading.main_thread():
            self._trainer, self.received, self._signals = trainer, None, itertools.count()
            self._handlers = {number: signal.getsignal(number) for number in SIGNALS}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Replace Lightning's handlers, whose answer to SIGTERM is to leave training with exit code 0."""
        if self._handlers:
            # started now: a handler may not start it
            self._watch = threading.Thread(target=self._repeat, args=(threading.get_ident(),), daemon=True)
            self._watch.start()
            for number in SIGNALS:
                signal.signal(number, self._on_signal)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The boundary that the signal asked for, on every rank the same one."""
        agreed = data_of(trainer).agreed_interrupt
        if agreed is not None:
            self.received, trainer.should_stop = agreed, True

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._restore()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if isinstance(exception, KeyboardInterrupt):
            # Lightning ignores SIGINT by now; before `setup`, Python's own handler has raised it
            self._handlers = self._handlers or {signal.SIGINT: signal.default_int_handler}
            end_with_keyboard_interrupt(trainer, exception)
        self._restore()

    def _restore(self) -> None:
        if self._watch is not None:
            self._messages.put(None)
            self._watch.join()  # a signal that it has just sent comes now, or before a handler is replaced
            self._watch = None
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def _repeat(self, main_thread: int) -> None:
        """Send the first signal once more to the main thread, as often as it waits longer than the grace period."""
        number, wait_s = self._messages.get(), self.grace_s
        while number is not None:
            try:
                if self._messages.get(timeout=wait_s) is None:  # training has ended
                    return
                wait_s = self.grace_s
            except Empty:
                wait_s = _REPEAT_S
                if self._is_waiting() and signal.getsignal(number) == self._on_signal:
                    self._is_own_signal = True
                    signal.pthread_kill(main_thread, number)

    def _is_waiting(self) -> bool:
        """True while the main thread waits for environments, or may wait for a reader of its output."""
        assert self._trainer is not None
        return data_of(self._trainer).is_waiting or not all(accepts(descriptor, 0.0) for descriptor in (1, 2))

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        assert self._trainer is not None
        data = data_of(self._trainer)
        if self._is_own_signal:
            self._is_own_signal = False
            if discard_unread_output(patience_s=0.0):  # the write that waited goes on, and gets a grace period of its own
                self._messages.put(number)
            elif data.is_waiting:
                self.received = number
                message = f"interrupted by {signal.Signals(number).name} while waiting for the environments"
                raise RunInterrupted(message, exit_codes.of_signal(number))
            return
        # counted in one call: the second signal may arrive in the first line of the first one's handler
        if next(self._signals) > 0:
            handler = self._handlers[number]
            if callable(handler):
                handler(number, frame)
            raise KeyboardInterrupt
        data.interrupt = number
        if self._trainer.world_size == 1:  # other ranks must hear of it first, or they would go on without this one
            self.received, self._trainer.should_stop = number, True
        self._messages.put(number)
