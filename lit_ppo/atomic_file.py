"""Small files: read safely whatever they contain, and replaced as a whole or not at all."""

import json
import os
import stat
import tempfile
from pathlib import Path
from typing import Any, Final

_LARGEST: Final = 1 << 28  # bytes of a file that is read


def read_text(path: Path) -> str:
    """Text of a file.

    Raises:
        ValueError: It is no regular file, too large or not in UTF-8; the message names it.
        OSError: It cannot be read.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # to open a pipe would wait for a writer
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_size > _LARGEST:
            raise ValueError(f"{path}: expected a file of at most {_LARGEST:,} bytes")
        with open(descriptor, "rb", closefd=False) as file:
            return file.read(_LARGEST).decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{path}: expected text in UTF-8") from None
    finally:
        os.close(descriptor)


def read_json(path: Path) -> Any:
    """Plain data of a JSON file.

    Raises:
        ValueError, OSError: As in `read_text`; or it is no JSON, is nested too deeply, or has numbers of thousands of digits.
    """
    text = read_text(path)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: expected JSON: {error}") from None


def write_json(path: Path, data: Any) -> None:
    """Replace the file at `path` by plain data without non-finite numbers.

    Raises:
        OSError: As in `replace`.
    """
    replace(path, (json.dumps(data, indent=2, allow_nan=False) + "\n").encode())


def replace(path: Path, contents: bytes) -> None:
    """Replace the file at `path` atomically; parents are made. Not synced to the disk: curves are written often.

    Raises:
        OSError: The file cannot be written; the old one is still there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with open(descriptor, "wb") as file:
            file.write(contents)
        os.chmod(name, 0o644)  # mkstemp's files are private, results are not
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
