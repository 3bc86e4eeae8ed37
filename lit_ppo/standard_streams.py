"""Standard output and error that are closed, full, or without a reader."""

import io
import os
import re
import select
import sys
from typing import Final, TextIO

from lit_ppo.errors import CheckpointError, one_line

PATIENCE_S: Final = 1.0
_closed: set[int] = set()  # descriptors that were closed when the process started


class _Output(io.TextIOWrapper):
    """Standard output, whose failure is an expected error.

    Raises:
        CheckpointError: A text cannot be written; standard output is /dev/null from then on.
    """

    def __init__(self) -> None:
        replaced = sys.stdout
        encoding = "utf-8" if replaced is None else replaced.encoding
        binary = open(1, "wb", closefd=False)  # noqa: SIM115  for the life of the process
        super().__init__(binary, encoding, "backslashreplace", line_buffering=os.isatty(1))

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError as error:
            raise _unwritten(error) from error

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as error:
            raise _unwritten(error) from error


def _unwritten(error: OSError) -> CheckpointError:
    _discard(1)  # else the interpreter fails once more as it ends, and reports that in its own way
    return CheckpointError(f"standard output: cannot be written: {error.strerror} (errno {error.errno})")


def prepare() -> None:
    """Open the standard streams that the process was started without, and make standard output report its errors.

    No other file gets the descriptor of a closed stream then. What is written to a closed standard error is discarded, except
    for the line that says why the command failed, which goes to standard output. To a closed standard output `fit` writes
    nothing, since its files are what is wanted; any other command fails at the first write, like on a full disk.
    """
    for descriptor, flags in ((0, os.O_RDONLY), (1, os.O_WRONLY if _trains() else os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(descriptor)
        except OSError:
            _closed.add(descriptor)
            os.open(os.devnull, flags)  # the kernel gives the lowest free descriptor, which is this one
            os.set_inheritable(descriptor, True)
    sys.stdout = _Output()
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115


def _trains() -> bool:
    return "fit" in sys.argv[1:2] and not any(re.match(r"-h$|--help|--print_config", option) for option in sys.argv[2:])


def say(*lines: str, file: TextIO | None = None) -> None:
    """Print lines; what is not ours in them can neither steer a terminal nor begin another line.

    Args:
        lines: To print, each as one line.
        file: Where to; None for standard output.
    """
    print("\n".join(map(one_line, lines)), file=file, flush=True)


def for_errors() -> TextIO | None:
    """Where the line goes that says why a command failed."""
    return sys.stdout if 2 in _closed else sys.stderr


def accepts(descriptor: int, patience_s: float) -> bool:
    """Whether a line can be written without waiting; true also if the reader has gone."""
    writable = select.poll()
    writable.register(descriptor, select.POLLOUT)
    return bool(writable.poll(1000 * patience_s))


def discard_unread_output(patience_s: float = PATIENCE_S) -> bool:
    """Send standard output or error to /dev/null from now on, if it is a full pipe that nothing reads.

    Python repeats a write that waits for such a pipe after the signal's handler, and it succeeds then.

    Args:
        patience_s: How long to wait for a reader.

    Returns:
        Whether there was such a pipe.
    """
    discarded = False
    for descriptor, stream in ((1, sys.stdout), (2, sys.stderr)):
        if stream is not None and not accepts(descriptor, patience_s):
            _discard(descriptor)
            discarded = True
    return discarded


def _discard(descriptor: int) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)
