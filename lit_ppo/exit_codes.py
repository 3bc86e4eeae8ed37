"""The exit codes of the command line, and how it reports an expected error: one line on standard error, no traceback."""

import errno
import sys
from typing import Final, NoReturn

from lit_ppo.errors import (
    BridgeError,
    CheckpointError,
    ConfigError,
    EnvironmentFault,
    NonFiniteUpdate,
    ProtocolError,
    RankFailed,
    RankLost,
    one_line,
    printable,
    shown,
)
from lit_ppo.standard_streams import for_errors

DONE: Final = 0
NOT_THE_SAME: Final = 1  # replay: the reported fault did not happen again
USAGE: Final = 2  # an invalid setting
ENVIRONMENT: Final = 3  # the environment broke its contract or raised
WORKER: Final = 4  # an environment process failed more often than it may
CHECKPOINT: Final = 5  # a file of the run cannot be written or read, or standard output cannot be written
NON_FINITE: Final = 6  # a loss, a gradient or a parameter was NaN or infinite
RANK: Final = 7  # another rank of the run ended or hung

_OF_ERRORS: Final[tuple[tuple[type[Exception], int], ...]] = (
    (ConfigError, USAGE),
    (EnvironmentFault, ENVIRONMENT),
    (ProtocolError, WORKER),
    (BridgeError, WORKER),
    (CheckpointError, CHECKPOINT),
    (NonFiniteUpdate, NON_FINITE),
    (RankLost, RANK),
)


def of(error: BaseException) -> int | None:
    """The exit code of an expected error; None for any other error, which is a defect and keeps its traceback."""
    if isinstance(error, RankFailed):
        return error.code
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:  # whichever option it was typed for
        return USAGE
    for kind, code in _OF_ERRORS:
        if isinstance(error, kind):
            return code
    return None


def of_signal(number: int) -> int:
    """The exit code after a signal, which is the shell's: 130 after SIGINT, 143 after SIGTERM."""
    return 128 + number


def fail(message: str | Exception, code: int) -> NoReturn:
    """End the process with one error message on standard error; on standard output if the former is closed.

    Args:
        message: One line, or an error; that of an environment has further lines, in which all text of others is indented.
        code: The exit code.
    """
    has_lines = isinstance(message, EnvironmentFault | BridgeError | ProtocolError | RankFailed)
    text = str(message).strip()
    if isinstance(message, OSError):
        text = f"{shown(message.filename)}: {message.strerror} (errno {message.errno})"
    try:
        print(f"lit_ppo: error: {printable(text) if has_lines else one_line(text)}", file=for_errors())
    except (OSError, CheckpointError):
        pass  # it cannot be written; the exit code still says what happened
    sys.exit(code)
