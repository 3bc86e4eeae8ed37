"""RunLock: one process for each directory that a run writes to."""

import fcntl
import os
from pathlib import Path
from typing import Final

from lit_ppo.errors import CheckpointError, ConfigError

LOCK_NAME: Final = ".lock"  # of the file that is locked; a directory with it is that of a run


class RunLock:
    """Locks a directory for the life of the process; the kernel releases the lock when the process ends.

    Args:
        directory: Created if it does not exist.
        setting: Option that names the directory.

    Raises:
        ConfigError: Another run holds it.
        CheckpointError: The directory cannot be written or locked.
    """

    def __init__(self, directory: Path, setting: str = "checkpoint.dirpath") -> None:
        path = directory / LOCK_NAME
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise CheckpointError(f"{directory}: cannot be written: {error.strerror} (errno {error.errno})") from error
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(self._descriptor, 32, 0).decode("ascii", "replace").strip()
            os.close(self._descriptor)
            raise ConfigError(
                f"{setting}={directory}: the run of process {owner or 'unknown'} writes there; "
                "wait for it or choose another directory"
            ) from None
        except OSError as error:
            os.close(self._descriptor)
            raise CheckpointError(
                f"{setting}={directory}: cannot be locked: {error.strerror} (errno {error.errno}); "
                "use a directory on another file system"
            ) from error
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Unlock the directory; may be called again."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
