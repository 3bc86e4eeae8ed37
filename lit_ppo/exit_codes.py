"""How a run of the command line ends, as a number."""

from typing import Final

from lit_ppo.errors import BridgeError, CheckpointError, ConfigError, EnvironmentFault, NonFiniteUpdate, ProtocolError

DONE: Final = 0
USAGE: Final = 2  # a setting that cannot be
ENVIRONMENT: Final = 3  # the environment broke its contract or raised
WORKER: Final = 4  # an environment process failed more often than it may
CHECKPOINT: Final = 5  # a checkpoint cannot be written or read
NON_FINITE: Final = 6  # a loss or gradient was NaN or infinite
SIGINT: Final = 130
SIGTERM: Final = 143

_OF_ERRORS: Final[tuple[tuple[type[Exception], int], ...]] = (
    (ConfigError, USAGE),
    (EnvironmentFault, ENVIRONMENT),
    (ProtocolError, WORKER),
    (BridgeError, WORKER),
    (CheckpointError, CHECKPOINT),
    (NonFiniteUpdate, NON_FINITE),
)


def of(error: BaseException) -> int | None:
    """The exit code for an expected error; None for one that is a defect and deserves its traceback."""
    for kind, code in _OF_ERRORS:
        if isinstance(error, kind):
            return code
    return None
