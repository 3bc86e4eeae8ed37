"""Whether a checkpoint, or the report of a fault, was written by a run of the directory in which it lies.

Each such directory has a key: random bytes in the file `.origin`, which only its owner may read. A checkpoint, or a report,
carries a tag that is computed from its checksum, the key, and the time at which the kernel last changed that file (ctime).
No program can choose that time. So the tag fails

- for a file that came from elsewhere, or was changed: it was not made with the key;
- in a directory that was copied, unpacked or fetched, key included: its `.origin` has another time.

A directory that was moved or renamed as a whole keeps its files. One that was copied gets valid tags again with the next
files that are written there. A whole file system that somebody else has prepared, such as an image that you mount,
keeps its times and deceives this check.
"""

import hashlib
import hmac
import os
import secrets
import stat
from pathlib import Path
from typing import Final

KEY_NAME: Final = ".origin"
_KEY_BYTES: Final = 32


def tag_of(checksum: bytes, directory: Path) -> bytes | None:
    """The tag for a file that is about to be written; the directory's key is made if it has none.

    Args:
        checksum: Of the file.
        directory: Where it will lie.

    Returns:
        64 hexadecimal digits; None if there is no key, and none can be made.
    """
    key = _key(directory) or _made_key(directory)
    return None if key is None else _tag(key, checksum)


def is_tag(tag: bytes, checksum: bytes, directory: Path) -> bool:
    """Whether a tag is that of a file with this checksum in this directory."""
    key = _key(directory)
    return key is not None and hmac.compare_digest(_tag(key, checksum), tag)


def _tag(key: bytes, checksum: bytes) -> bytes:
    return hmac.new(key, checksum, hashlib.sha256).hexdigest().encode()


def _key(directory: Path) -> bytes | None:
    """The secret bytes of a directory's key with the time of its file; None if it has none that only we can read."""
    try:
        descriptor = os.open(directory / KEY_NAME, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        status, secret = os.fstat(descriptor), os.read(descriptor, _KEY_BYTES)
    except OSError:
        return None
    finally:
        os.close(descriptor)
    is_ours = stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o077
    return secret + str(status.st_ctime_ns).encode() if is_ours and len(secret) == _KEY_BYTES else None


def _made_key(directory: Path) -> bytes | None:
    path = directory / KEY_NAME
    try:
        path.unlink(missing_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.write(descriptor, secrets.token_bytes(_KEY_BYTES))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError:
        return None
    return _key(directory)
