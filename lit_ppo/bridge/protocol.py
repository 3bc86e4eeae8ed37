"""Control messages between trainer and worker: one JSON object on one line each.

JSON is strict: no NaN, no duplicate keys, bounded length, depth and numbers. Between programs a space and the JSON's CRC-32 in
eight hexadecimal digits follow, so that a damaged message never passes for another one. Requests carry `cmd` and, from a
program, `seq`; the reply repeats `seq`, so that a late reply is never taken for a fresh one. A person at a terminal leaves
checksum and `seq` out, and gets answers without them. An empty line is the doorbell: "look at the shared frame" (`frame.py`).
Nothing that is read here is ever unpickled or evaluated.
"""

import json
import math
import zlib
from typing import Any, Final, NoReturn

from lit_ppo.errors import ProtocolError, shown

PROTOCOL_VERSION: Final = 5
MAX_LINE_BYTES: Final = 1 << 20
MAX_DEPTH: Final = 16
MAX_DIGITS: Final = 400
DOORBELL: Final = b"\n"
_CHECKSUM_BYTES: Final = len(" 1a2b3c4d")


def encode(message: dict[str, Any], *, checksum: bool = True) -> bytes:
    """One message as one line, its newline included.

    Args:
        message: Plain data that JSON can hold.
        checksum: True for a line that a program reads, false for a person.
    """
    text = json.dumps(message, separators=(",", ":"), allow_nan=False).encode()
    return (text + _checksum(text) if checksum else text) + b"\n"


def decode(line: bytes, *, checksum: bool = True) -> dict[str, Any]:
    """The message on one line.

    Args:
        line: With or without its newline.
        checksum: True for a line from a program, which must end with its checksum; false for one that a person typed.

    Raises:
        ProtocolError: The line is not exactly one JSON object within the bounds, or its checksum is missing or wrong.
    """
    line = line.removesuffix(b"\n")
    if len(line) > MAX_LINE_BYTES:
        raise ProtocolError(f"message: expected at most {MAX_LINE_BYTES} bytes, got {len(line)}")
    if checksum:
        line, arrived = line[:-_CHECKSUM_BYTES], line[-_CHECKSUM_BYTES:]
        if arrived != _checksum(line):
            raise ProtocolError(
                f"message: expected the checksum {_checksum(line)!r} at the end of {shown(line[:80])}, got {shown(arrived)}"
            )
    if _nesting(line) > MAX_DEPTH:
        raise ProtocolError(f"message: expected a depth of at most {MAX_DEPTH}")
    try:
        message = json.loads(
            line.decode("utf-8"),
            parse_constant=_refuse_constant,
            parse_int=_bounded_int,
            parse_float=_finite_float,
            object_pairs_hook=_unique_keys,
        )
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ProtocolError(f"message: expected one JSON object on a line, got {shown(line[:80])}: {error}") from error
    if type(message) is not dict:
        raise ProtocolError(f"message: expected a JSON object, got {type(message).__name__}")
    return message


def _checksum(text: bytes) -> bytes:
    return b" %08x" % zlib.crc32(text)


def _nesting(line: bytes) -> int:
    """Greatest depth of brackets outside strings, found before a recursive parser sees them."""
    if line.count(b"[") + line.count(b"{") <= MAX_DEPTH:
        return 0
    depth = deepest = 0
    in_string = escaped = False
    for byte in line:
        if in_string:
            in_string = escaped or byte != 0x22
            escaped = byte == 0x5C and not escaped
        elif byte == 0x22:
            in_string = True
        elif byte in b"[{":
            depth += 1
            deepest = max(deepest, depth)
        elif byte in b"]}":
            depth -= 1
    return deepest


def _refuse_constant(constant: str) -> NoReturn:
    raise ProtocolError(f"message: expected finite numbers, got {constant}")


def _bounded_int(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ProtocolError(f"message: expected integers of at most {MAX_DIGITS} digits, got {len(digits)}")
    return int(digits)


def _finite_float(digits: str) -> float:
    if len(digits) > MAX_DIGITS or not math.isfinite(float(digits)):
        raise ProtocolError(f"message: expected finite numbers of at most {MAX_DIGITS} digits, got {digits[:24]}")
    return float(digits)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    message = dict(pairs)
    if len(message) != len(pairs):
        raise ProtocolError(f"message: expected every key once, got {shown([key for key, _ in pairs])}")
    return message


def take(message: dict[str, Any], key: str, *kinds: type) -> Any:
    """`message[key]`, which must be of exactly one of `kinds` (a bool is no int here).

    Raises:
        ProtocolError: It is missing or of another kind.
    """
    value = message.get(key)
    if key not in message or type(value) not in kinds:
        expected = " or ".join("null" if kind is type(None) else kind.__name__ for kind in kinds)
        raise ProtocolError(f"{key}: expected {expected}, got {shown(value) if key in message else 'nothing'}")
    return value
