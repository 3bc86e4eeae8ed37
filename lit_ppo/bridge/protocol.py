"""What crosses between trainer and worker: control messages as JSON lines, steps through one shared mapping.

Control. Each message is one JSON object on one line of at most `MAX_LINE_BYTES`, strict: no NaN, no duplicate keys, bounded
depth and numbers. Between programs the JSON is followed by a space and its CRC-32 in eight hexadecimal digits, so that no
damaged message passes for another one. Requests carry `cmd` and, from a program, `seq`; the reply repeats `seq`, so that a late
reply is never taken for a fresh one. A person at a terminal leaves checksum and `seq` out, and gets answers without them. An
empty line is the doorbell: "look at the shared frame".

Frame. One anonymous mapping, laid out from the handshake (`FrameLayout`); every field starts on its own cache line::

    header    magic, request number, reply number, status        8 bytes each, a cache line apart
    request   actions (N,) i64, next_seeds (N,) i64, active (N,) u8
    reply     observations (K, N, *obs_shape), rewards (N,) f64, terminated, truncated, reset, invalid (4, N) u8

`observations` are those to act on next and those that the step led to; native environments reset in a step of their own, so
that these are always the same, and K is 1 instead of 2.

The trainer writes the request, then its number; the worker answers, then writes the same number as the reply's. Nothing that
is read here is ever unpickled or evaluated.
"""

import json
import math
import sys
import zlib
from dataclasses import dataclass, field
from typing import Any, Final, NoReturn

import numpy as np
from numpy.typing import NDArray

from lit_ppo.contract import EnvSpec, shown
from lit_ppo.errors import ProtocolError

PROTOCOL_VERSION: Final = 2
MAX_LINE_BYTES: Final = 1 << 20
MAX_DEPTH: Final = 16
MAX_DIGITS: Final = 400
DOORBELL: Final = b"\n"
_MOST_COMPONENTS: Final = 1 << 24  # of one observation
_CHECKSUM_BYTES: Final = len(" 1a2b3c4d")

MAGIC: Final = 0x6C69745F70706F31  # "lit_ppo1"
CACHE_LINE: Final = 64
WORD: Final = 8
# indices of the header's words, in units of 8 bytes
MAGIC_WORD: Final = 0
REQUEST_WORD: Final = CACHE_LINE // WORD
REPLY_WORD: Final = 2 * CACHE_LINE // WORD
STATUS_WORD: Final = REPLY_WORD + 1
HEADER_BYTES: Final = 3 * CACHE_LINE

STATUS_DONE: Final = 0
STATUS_ERROR: Final = 1  # the step failed; a control message says how


def encode(message: dict[str, Any], *, checksum: bool = True) -> bytes:
    """One message as one line, its newline included.

    Args:
        message: What JSON can hold.
        checksum: Whether a program is to read it; a person is not.
    """
    text = json.dumps(message, separators=(",", ":"), allow_nan=False).encode()
    return (text + _checksum(text) if checksum else text) + b"\n"


def decode(line: bytes, *, checksum: bool = True) -> dict[str, Any]:
    """The message on one line.

    Args:
        line: With or without its newline.
        checksum: Whether a program has written it, which must have put its checksum there; a person must not.

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


def bound_to_json(bound: NDArray[Any]) -> Any:
    """Bounds of a Box as JSON: one value if all are alike, infinities as the strings that the curve uses too."""
    flat = [_number_to_json(float(value)) for value in bound.ravel()]
    return flat[0] if flat and all(value == flat[0] for value in flat) else flat


def _number_to_json(value: float) -> float | str:
    return value if math.isfinite(value) else "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _number_from_json(value: object, name: str) -> float:
    if value in ("Infinity", "-Infinity"):
        return math.inf if value == "Infinity" else -math.inf
    if isinstance(value, float | int) and type(value) is not bool and abs(value) <= sys.float_info.max:
        return float(value)
    raise ProtocolError(f"{name}: expected a number, Infinity or -Infinity, got {shown(value)}")


def spec_from_json(message: dict[str, Any]) -> EnvSpec:
    """The environment's announcement, checked.

    Raises:
        ProtocolError: A field is missing or malformed.
        ValueError: A space that this version cannot step; the message says which.
    """
    env_id = take(message, "env_id", str)
    observation, action = take(message, "observation_space", dict), take(message, "action_space", dict)
    if take(observation, "type", str) != "Box":
        raise ValueError(
            f"env_id={env_id}: observation space {shown(observation.get('repr'))} is not supported; "
            "lit_ppo trains on Box observations"
        )
    if take(action, "type", str) != "Discrete":
        raise ValueError(
            f"env_id={env_id}: action space {shown(action.get('repr'))} is not supported; lit_ppo trains on Discrete actions"
        )
    shape = tuple(take({"shape": size}, "shape", int) for size in take(observation, "shape", list))
    if not shape or min(shape) < 1 or math.prod(shape) > _MOST_COMPONENTS:
        raise ValueError(
            f"env_id={env_id}: observations of shape {shape} are not supported; expected 1 to {_MOST_COMPONENTS} components"
        )
    dtype = take(observation, "dtype", str)
    if dtype not in ("float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32"):
        raise ValueError(f"env_id={env_id}: observations of dtype {shown(dtype)} are not supported")
    num_actions, action_start = take(action, "n", int), take(action, "start", int)
    if not 1 <= num_actions <= 1 << 20 or abs(action_start) > 1 << 31:
        raise ProtocolError(f"action_space: expected 1 to 2^20 actions, got n={num_actions} start={action_start}")
    threshold, limit = (
        take(message, "reward_threshold", float, int, type(None)),
        take(message, "max_episode_steps", int, type(None)),
    )
    return EnvSpec(
        env_id=env_id,
        obs_shape=shape,
        obs_dtype=dtype,
        obs_low=_bounds_from_json(observation.get("low"), "low", math.prod(shape)),
        obs_high=_bounds_from_json(observation.get("high"), "high", math.prod(shape)),
        num_actions=num_actions,
        action_start=action_start,
        reward_threshold=None if threshold is None else _number_from_json(threshold, "reward_threshold"),
        max_episode_steps=limit,
    )


def _bounds_from_json(value: object, name: str, size: int) -> float | tuple[float, ...]:
    if type(value) is not list:
        return _number_from_json(value, name)
    if len(value) != size:
        raise ProtocolError(f"{name}: expected {size} numbers, got {len(value)}")
    return tuple(_number_from_json(item, f"{name}[{i}]") for i, item in enumerate(value))


@dataclass(frozen=True)
class FrameLayout:
    """Where each field of the shared frame lies; both sides compute it from the same announcement.

    Args:
        num_envs: N, the number of environments that the worker hosts.
        obs_shape: Shape of one observation.
        obs_dtype: Name of the observations' numpy dtype.
        resets_within_step: As in `Contract`; if not, what a step led to is always what to act on next, and K is 1, else 2.
    """

    num_envs: int
    obs_shape: tuple[int, ...]
    obs_dtype: str
    resets_within_step: bool = True
    request: dict[str, tuple[int, tuple[int, ...], str]] = field(init=False)
    reply: dict[str, tuple[int, tuple[int, ...], str]] = field(init=False)
    reply_start: int = field(init=False)
    reply_bytes: int = field(init=False)
    total_bytes: int = field(init=False)

    def __post_init__(self) -> None:
        n = self.num_envs
        request, offset = _place(
            HEADER_BYTES, {"actions": ((n,), "int64"), "next_seeds": ((n,), "int64"), "active": ((n,), "uint8")}
        )
        reply, end = _place(
            0,
            {
                "observations": ((2 if self.resets_within_step else 1, n, *self.obs_shape), self.obs_dtype),
                "rewards": ((n,), "float64"),
                "flags": ((4, n), "uint8"),
            },
        )
        for name, value in {
            "request": request,
            "reply": reply,
            "reply_start": offset,
            "reply_bytes": end,
            "total_bytes": offset + end,
        }.items():
            object.__setattr__(self, name, value)

    def request_views(self, buffer: Any) -> dict[str, NDArray[Any]]:
        """The request's fields as arrays over the whole frame's bytes."""
        return _views(buffer, self.request, 0)

    def reply_views(self, buffer: Any, start: int) -> dict[str, NDArray[Any]]:
        """The reply's fields as arrays over `buffer`, in which the reply begins at byte `start`."""
        return _views(buffer, self.reply, start)


def _place(
    offset: int, fields: dict[str, tuple[tuple[int, ...], str]]
) -> tuple[dict[str, tuple[int, tuple[int, ...], str]], int]:
    placed = {}
    for name, (shape, dtype) in fields.items():
        placed[name] = (offset, shape, dtype)
        size = math.prod(shape) * np.dtype(dtype).itemsize
        offset += -(-size // CACHE_LINE) * CACHE_LINE
    return placed, offset


def _views(buffer: Any, fields: dict[str, tuple[int, tuple[int, ...], str]], start: int) -> dict[str, NDArray[Any]]:
    return {
        name: np.frombuffer(buffer, dtype, math.prod(shape), start + offset).reshape(shape)
        for name, (offset, shape, dtype) in fields.items()
    }
