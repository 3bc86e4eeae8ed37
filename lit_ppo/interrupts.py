"""What SIGINT and SIGTERM do to the process: one line that says how to go on, and exit code 130 or 143.

`end_at_once` is the handler while nothing can be lost: in the imports, the start, `validate` and `test`. While a run trains,
`GracefulExit` replaces it. Environment processes end by themselves when the pipe to them closes.
"""

import os
import signal
import sys
from collections.abc import Sequence
from threading import Thread
from time import sleep
from types import FrameType
from typing import Final, NoReturn

from lit_ppo import exit_codes
from lit_ppo.standard_streams import PATIENCE_S, accepts

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
_CHECKPOINT_OPTION: Final = "--ckpt_path"
_GRACE_S: Final = 1.0  # for the main thread to end the process itself
_advice = ""


def advice() -> str:
    """How to go on after this process has been interrupted; empty for a command that saves nothing."""
    return _advice


def advise(text: str) -> None:
    """Change what `advice` says."""
    global _advice
    _advice = text


def advice_at_start(arguments: Sequence[str]) -> str:
    """What to advise before a command has saved anything.

    Args:
        arguments: Command and options.
    """
    options = [argument.partition("=") for argument in arguments[1:]]
    if list(arguments[:1]) != ["fit"] or {name for name, _, _ in options} & {"-h", "--help", "--print_config"}:
        return ""
    checkpoint = ""
    for (name, assigned, value), following in zip(options, [*arguments[2:], ""], strict=False):
        if name == _CHECKPOINT_OPTION:
            checkpoint = value if assigned else following
    return continue_from(checkpoint) if checkpoint not in ("", "null") else "nothing was saved yet; start again"


def continue_from(checkpoint: str) -> str:
    """Advice to resume from a checkpoint."""
    return f"continue with {_CHECKPOINT_OPTION} {checkpoint}"


def message(reason: str) -> str:
    """The last line of an interrupted command: the reason, and the advice if there is any."""
    return f"{reason}: {_advice}" if _advice else reason


def install() -> None:
    """Let SIGINT and SIGTERM end the process at once, also while the main thread waits in torch for other ranks."""
    for number in SIGNALS:
        signal.signal(number, end_at_once)
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    Thread(target=_end_for_main_thread, args=(reader,), daemon=True).start()


def _end_for_main_thread(reader: int) -> None:
    """Call `end_at_once` where the main thread cannot: Python calls handlers there, between two steps of its own.

    Args:
        reader: From which the number of each signal is read as it arrives.
    """
    while True:
        number = os.read(reader, 1)[0]
        if number in SIGNALS and signal.getsignal(number) is end_at_once:
            sleep(_GRACE_S)
            if signal.getsignal(number) is end_at_once:
                end_at_once(number, None)


def end_at_once(number: int, frame: FrameType | None) -> NoReturn:
    """End the process without its cleanup, which could wait for a thread, an environment or a full pipe."""
    end_with(signal.Signals(number).name, exit_codes.of_signal(number))


def end_with(reason: str, code: int) -> NoReturn:
    """End the process at once, with one line; in any thread."""
    if sys.stderr is not None and accepts(2, PATIENCE_S):
        line = f"lit_ppo: error: {message(reason)}\n"
        try:
            os.write(2, line.encode())  # not through sys.stderr, whose own write the signal may have interrupted
        except OSError:
            pass  # there is no reader
    os._exit(code)
