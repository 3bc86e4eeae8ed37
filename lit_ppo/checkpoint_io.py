"""Checkpoints that survive: written whole or not at all, verified before they replace anything, read without unpickling.

A file is an ordinary `torch.save` zip archive whose comment holds the SHA-256 of everything before it, so any tool can still
open it and one flipped bit is seen. Order of a save: temporary file in the same directory, fsync, read back and compare, keep
the file that is there as `previous`, replace, fsync the directory. `TMPDIR` is not involved: a rename across file systems is
not atomic.
"""

import hashlib
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from lit_ppo.errors import CheckpointError

_LABEL: Final = b"lit_ppo sha256 "
_COMMENT_BYTES: Final = len(_LABEL) + 64
_END_RECORD: Final = b"PK\x05\x06"  # zip's end of central directory: 22 bytes, the last two say how long the comment is
_END_RECORD_BYTES: Final = 22


def sealed(archive: bytes) -> bytes:
    """A zip archive without a comment, with its checksum as comment."""
    assert archive[-_END_RECORD_BYTES:].startswith(_END_RECORD)
    body = archive[:-2] + _COMMENT_BYTES.to_bytes(2, "little")
    return body + _LABEL + hashlib.sha256(body).hexdigest().encode()


def verified(data: bytes, path: Path) -> bytes:
    """The bytes of a sealed archive, if they are what was written.

    Raises:
        CheckpointError: They are not.
    """
    body, comment = data[:-_COMMENT_BYTES], data[-_COMMENT_BYTES:]
    if not comment.startswith(_LABEL):
        raise CheckpointError(f"{path}: expected a checkpoint of lit_ppo, got a file without checksum (foreign or cut short)")
    if hashlib.sha256(body).hexdigest().encode() != comment[len(_LABEL) :]:
        raise CheckpointError(f"{path}: corrupt: its bytes do not match their checksum")
    return data


def read_checkpoint(path: str | Path, map_location: Any = "cpu") -> dict[str, Any]:
    """The content of a checkpoint; nothing in it is ever unpickled, whatever the environment variables say.

    Raises:
        CheckpointError: There is none, or it is not as it was written.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror} (errno {error.errno})") from error
    try:
        checkpoint: dict[str, Any] = torch.load(io.BytesIO(verified(data, path)), map_location, weights_only=True)
    except CheckpointError:
        raise
    except Exception as error:
        reason = str(error).partition("\n")[0]  # what follows there is advice to load it unsafely
        raise CheckpointError(f"{path}: expected plain data and tensors: {reason}") from error
    return checkpoint


def previous_of(path: Path) -> Path:
    """Where the checkpoint is kept that `path` held before."""
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def write_checkpoint(checkpoint: Mapping[str, Any], path: str | Path) -> None:
    """Put a checkpoint in place of what is at `path`, which is kept as `previous_of(path)`.

    Raises:
        CheckpointError: It could not be written; what was there is still there.
    """
    path = Path(path)
    buffer = io.BytesIO()
    torch.save(dict(checkpoint), buffer)
    data = sealed(buffer.getvalue())
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            if temporary.read_bytes() != data:
                raise CheckpointError(f"{path}: what was written does not read back as it was")
            if path.exists():
                _keep(path, previous_of(path))
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _sync_directory(path.parent)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written: {error.strerror} (errno {error.errno})") from error


def _keep(path: Path, previous: Path) -> None:
    """A second name for the file that is about to be replaced; at no moment is there no good file."""
    link = previous.with_name(f".{previous.name}.{os.getpid()}.tmp")
    link.unlink(missing_ok=True)
    os.link(path, link)
    try:
        os.replace(link, previous)
    except BaseException:
        link.unlink(missing_ok=True)
        raise


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class VerifiedCheckpointIO(TorchCheckpointIO):
    """The above as a Trainer plugin."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        write_checkpoint(checkpoint, path)

    def load_checkpoint(self, path: str | Path, map_location: Any | None = None, weights_only: bool | None = None) -> Any:
        return read_checkpoint(path, map_location or "cpu")

    def remove_checkpoint(self, path: str | Path) -> None:
        Path(path).unlink(missing_ok=True)
