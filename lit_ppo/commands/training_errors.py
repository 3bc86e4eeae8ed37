"""How a training command ends when an error is raised: the expected ones in one line, with a documented exit code."""

import re
import sys
import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import torch.distributed as dist
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.loggers import Logger

from lit_ppo import exit_codes
from lit_ppo.errors import CheckpointError, ConfigError
from lit_ppo.exit_codes import fail
from lit_ppo.option_parser import condensed

_INSTALLED: Final = tuple({sysconfig.get_path(name) for name in ("purelib", "platlib", "stdlib")})


@contextmanager
def expected_errors() -> Iterator[None]:
    """End the process with one line and a documented exit code if an expected error is raised, also by standard output."""
    try:
        try:
            yield
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except MisconfigurationException as error:
        fail(f"trainer: {' '.join(str(error).split())}", exit_codes.USAGE)
    except dist.DistError as error:  # before the ranks watch each other
        fail(f"a rank was lost: {str(error).strip().partition(chr(10))[0][:200]}", exit_codes.RANK)
    except Exception as error:
        code = exit_codes.of(error)
        if code is not None:
            fail(error, code)
        if (part := _part_of_lightning(error)) is None:
            raise
        fail(f"{part}: {condensed(str(error))}", exit_codes.USAGE)


def _part_of_lightning(error: Exception) -> str | None:
    """Which callback, logger or profiler of Lightning's raised the error, as `trainer.callbacks: EarlyStopping`.

    It may have been raised by a package below, such as that of a logger.
    """
    for frame, _ in reversed(list(traceback.walk_tb(error.__traceback__))):
        name = frame.f_globals.get("__name__", "")
        if kind := re.match(r"lightning\.pytorch\.(callbacks|loggers|profilers)\.", name):
            part = kind[1] if kind[1] == "callbacks" else kind[1].removesuffix("s")
            return f"trainer.{part}: {type(frame.f_locals.get('self')).__name__}"
        if name.partition(".")[0] in ("lit_ppo", "__main__") or not frame.f_code.co_filename.startswith(_INSTALLED):
            return None  # the error is ours, or the user's own code's
    return None


@contextmanager
def errors_of_construction() -> Iterator[None]:
    """Turn what a class raises that is made from options into an expected error.

    Raises:
        ConfigError: Such an error was raised: a class refused its arguments, or memory is too small for the sizes.
    """
    try:
        yield
    except ConfigError:
        raise
    except ValueError as error:  # of jsonargparse, for a class that raises, such as a logger that is not installed
        raise ConfigError(condensed(str(error))) from error
    except (MemoryError, OverflowError, RuntimeError, TypeError) as error:
        if not isinstance(error, MemoryError) and not re.search("can't allocate memory|[Oo]verflow", str(error)):
            raise
        reason = " ".join(str(error).split())
        raise ConfigError(f"model, data: expected sizes that this machine has the memory for: {reason[:200]}") from error


@contextmanager
def logger_errors() -> Iterator[None]:
    """Turn a logger's failure to write into an expected error.

    Raises:
        CheckpointError: An OSError was raised in a logger.
    """
    try:
        yield
    except OSError as error:
        for frame, _ in traceback.walk_tb(error.__traceback__):
            logger = frame.f_locals.get("self")
            if isinstance(logger, Logger):
                raise CheckpointError(f"trainer.logger.save_dir={logger.save_dir}: cannot be written: {error}") from error
        raise
