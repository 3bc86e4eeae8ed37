"""Files that are replaced as a whole or not at all."""

import json
import os
import tempfile
from pathlib import Path
from typing import Any


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
