"""What SIGINT and SIGTERM do to the process: one line that says how to go on, and exit code 130 or 143.

`end_at_once` is the handler while nothing can be lost: in the imports, the start, `validate` and `test`. While a run trains,
`GracefulExit` replaces it. Environment processes end by themselves when the pipe to them closes.
"""

import os
import select
import signal
import sys
from types import FrameType
from typing import Final, NoReturn

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
_PATIENCE_S: Final = 1.0
_advice = "nothing was saved yet; start again"


def advice() -> str:
    """How to go on after this process has been interrupted."""
    return _advice


def advise(text: str) -> None:
    """Change what `advice` says: there is a checkpoint to continue from."""
    global _advice
    _advice = text


def install() -> None:
    """Let SIGINT and SIGTERM end the process at once."""
    for number in SIGNALS:
        signal.signal(number, end_at_once)


def end_at_once(number: int, frame: FrameType | None) -> NoReturn:
    """End the process without its cleanup, which could wait for a thread, an environment or a full pipe."""
    if sys.stderr is not None and _accepts(2, _PATIENCE_S):
        line = f"lit_ppo: error: {signal.Signals(number).name}: {_advice}\n"
        try:
            os.write(2, line.encode())  # not through sys.stderr, whose own write the signal may have interrupted
        except OSError:
            pass  # there is no reader
    os._exit(128 + number)


def discard_unread_output(patience_s: float = _PATIENCE_S) -> bool:
    """Send standard output or error to /dev/null from now on, if it is a full pipe without a reader.

    Python repeats a write that waits for such a pipe after the signal's handler, and it succeeds then.

    Args:
        patience_s: How long to wait for a reader.

    Returns:
        Whether there was such a pipe.
    """
    discarded = False
    for descriptor, stream in ((1, sys.stdout), (2, sys.stderr)):
        if stream is not None and not _accepts(descriptor, patience_s):
            nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
            os.dup2(nowhere, descriptor)
            os.close(nowhere)
            discarded = True
    return discarded


def _accepts(descriptor: int, patience_s: float) -> bool:
    """Whether a line can be written without waiting; true also if there is no reader any more."""
    writable = select.poll()
    writable.register(descriptor, select.POLLOUT)
    return bool(writable.poll(1000 * patience_s))
