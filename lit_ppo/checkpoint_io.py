"""Checkpoints on disk: written whole or not at all, verified before they replace anything, read without unpickling.

A file is an ordinary `torch.save` zip archive whose comment holds the SHA-256 of everything before it, so any tool can still
open it and one flipped bit is seen. Before the SHA-256 stands a tag by which a directory knows its own files (`origin`).
Order of a save: temporary file in the same directory, fsync, read back and compare, keep the old file as `previous`, replace,
fsync the directory. `TMPDIR` is not involved: a rename across file systems is not atomic.
"""

import errno
import hashlib
import io
import os
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from lit_ppo.errors import CheckpointError, shown
from lit_ppo.origin import is_tag, tag_of

FORMAT_KEY: Final = "lit_ppo_format"
FORMAT: Final = 3  # changes when older checkpoints cannot be continued any more
_LABEL: Final = b"lit_ppo sha256 "
_COMMENT_BYTES: Final = len(_LABEL) + 64
_NO_HARD_LINKS: Final = (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EMLINK)  # FAT and many FUSE file systems
_TAG_LABEL: Final = b"lit_ppo origin "
_TAG_BYTES: Final = len(_TAG_LABEL) + 64 + 1
_LIGHTNINGS_VERSION: Final = "pytorch-lightning_version"  # by which Lightning decides how to bring a checkpoint up to date
_VERSION: Final = re.compile(r"\d+(\.\d+)*((a|b|rc)\d+)?(\.post\d+)?(\.dev\d+)?(\+[a-z0-9.]+)?")
_MOST_LEVELS: Final = 64
_END_RECORD: Final = b"PK\x05\x06"  # zip's end of central directory: 22 bytes, the last two say how long the comment is
_END_RECORD_BYTES: Final = 22


def sealed(archive: bytes, directory: Path) -> bytes:
    """A zip archive without a comment, with the directory's tag, if it has a key, and its checksum as comment."""
    assert archive[-_END_RECORD_BYTES:].startswith(_END_RECORD)
    archive = archive[:-2]
    checksum = hashlib.sha256(archive)
    tag = tag_of(checksum.digest(), directory)
    tag = b"" if tag is None else _TAG_LABEL + tag + b" "
    end = (len(tag) + _COMMENT_BYTES).to_bytes(2, "little") + tag
    checksum.update(end)
    return b"".join((archive, end, _LABEL, checksum.hexdigest().encode()))


def is_of_its_directory(path: Path) -> bool:
    """Whether a run of the directory in which a checkpoint lies has written it; its checksum is not looked at."""
    path = path.resolve()
    body = path.read_bytes()[:-_COMMENT_BYTES]
    archive, tag = body[: -_TAG_BYTES - 2], body[-_TAG_BYTES:]
    if not tag.startswith(_TAG_LABEL):
        return False
    return is_tag(tag[len(_TAG_LABEL) : -1], hashlib.sha256(archive).digest(), path.parent)


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


def verified_bytes(path: str | Path) -> bytes:
    """The bytes of a checkpoint file, if they are what was written; nothing is loaded.

    Raises:
        CheckpointError: The file cannot be read, or is not as it was written.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror} (errno {error.errno})") from error
    return verified(data, path)


def require_archive(path: str | Path) -> None:
    """Refuse a file that no checkpoint can be; one with a checksum is verified, one that Lightning wrote by itself has none.

    Raises:
        CheckpointError: The file cannot be read, is damaged, or is no checkpoint.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            is_lightnings = not archive.comment and any(name.endswith("/data.pkl") for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        is_lightnings = False
    if not is_lightnings:
        verified_bytes(path)


def read_checkpoint(path: str | Path, map_location: Any = "cpu") -> dict[str, Any]:
    """The content of a checkpoint, as `write_checkpoint` got it; never unpickled.

    torch's environment variable TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD does not change that.

    Raises:
        CheckpointError: The file cannot be read, is not as it was written, or has another format.
    """
    data = verified_bytes(path)
    try:
        checkpoint: dict[str, Any] = torch.load(io.BytesIO(data), map_location, weights_only=True)
    except Exception as error:
        code = re.search(r"GLOBAL ([\w.]+)", str(error))
        # torch's own words begin with advice to load it unsafely
        reason = f"got code, {code[1]}, which is not run" if code else "got something else"
        raise CheckpointError(f"{path}: expected plain data and tensors, {reason}") from None
    if not isinstance(checkpoint, dict) or not _is_shallow(checkpoint):
        raise CheckpointError(f"{path}: expected a mapping that is nested at most {_MOST_LEVELS} times")
    found = checkpoint.pop(FORMAT_KEY, 1)  # format 1 did not say so
    if found != FORMAT:
        origin = "lit_ppo 0.1" if found == 1 else "another lit_ppo"
        advice = f"continue or test it with {origin}, or train again, in another checkpoint.dirpath"
        raise CheckpointError(f"{path}: format {found} of {origin}, this version reads format {FORMAT}; {advice}")
    return checkpoint


def _is_shallow(value: Any) -> bool:
    """Whether containers are nested so little that a recursive function can look at all of them."""
    level = [value]
    for _ in range(_MOST_LEVELS):
        mappings = [item for item in level if isinstance(item, dict)]
        level = [part for item in mappings for part in item.values()] + [
            part for item in level if isinstance(item, list | tuple | set) for part in item
        ]
        level = [item for item in level if isinstance(item, dict | list | tuple | set)]
        if not level:
            return True
    return False


def previous_of(path: Path) -> Path:
    """Where the checkpoint that `path` held before is kept."""
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def write_checkpoint(checkpoint: Mapping[str, Any], path: str | Path) -> None:
    """Replace the checkpoint at `path`, which is kept as `previous_of(path)`.

    Raises:
        CheckpointError: It could not be written; the old file is still there.
    """
    path = Path(path)
    buffer = io.BytesIO()
    torch.save({**checkpoint, FORMAT_KEY: FORMAT}, buffer)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        data = sealed(buffer.getvalue(), path.resolve().parent)
        try:
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            if temporary.read_bytes() != data:
                raise CheckpointError(f"{path}: the file does not read back as it was written")
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
    """Give the file that is about to be replaced a second name; there is a good file at every moment."""
    link = previous.with_name(f".{previous.name}.{os.getpid()}.tmp")
    link.unlink(missing_ok=True)
    try:
        try:
            os.link(path, link)
        except OSError as error:
            if error.errno not in _NO_HARD_LINKS:
                raise
            _copy(path, link)
        os.replace(link, previous)
    except BaseException:
        link.unlink(missing_ok=True)
        raise


def _copy(path: Path, copy: Path) -> None:
    with open(copy, "wb") as file:
        file.write(path.read_bytes())
        file.flush()
        os.fsync(file.fileno())


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class VerifiedCheckpointIO(TorchCheckpointIO):
    """Trainer plugin that writes with `write_checkpoint` and reads with `read_checkpoint`."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        _require_local(path)
        write_checkpoint(checkpoint, path)

    def load_checkpoint(self, path: str | Path, map_location: Any | None = None, weights_only: bool | None = None) -> Any:
        _require_local(path)
        checkpoint = read_checkpoint(path, map_location or "cpu")
        version = checkpoint.get(_LIGHTNINGS_VERSION)
        if type(version) is not str or not _VERSION.fullmatch(version):
            raise CheckpointError(f"the checkpoint's {_LIGHTNINGS_VERSION}: expected a version, got {shown(version)}")
        return checkpoint

    def remove_checkpoint(self, path: str | Path) -> None:
        for file in (Path(path), previous_of(Path(path))):
            file.unlink(missing_ok=True)


def _require_local(path: str | Path) -> None:
    """Refuse a URL, which would be taken for a directory.

    Raises:
        CheckpointError: The path is a URL.
    """
    if "://" in str(path):
        raise CheckpointError(f"{path}: expected a local path: a file elsewhere cannot be replaced as a whole; copy it there")
