"""Spaces as plain data: leaves, rows of bytes, and what an environment announces of itself; with their JSON.

A *leaf* is one array of an observation or an action. A Dict or Tuple space, nested at will, is a tuple of leaves, each with its
path (`camera/left`, `0/1`; the leaf of a space without parts has the path ""). A *row* is all leaves of one observation side by
side in bytes: what crosses between processes, is digested, compared and saved is rows; what networks see is leaves.
"""

import base64
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from lit_ppo.bridge.protocol import take
from lit_ppo.errors import ProtocolError, shown

Kind = Literal["box", "discrete", "multi_discrete", "multi_binary"]
ChannelOrder = Literal["auto", "first", "last"]
Leaves = Mapping[str, NDArray[Any]]  # by path

KINDS: Final[tuple[Kind, ...]] = ("box", "discrete", "multi_discrete", "multi_binary")
DTYPES: Final = ("float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "bool")
MAX_COMPONENTS: Final = 1 << 24  # of one leaf
MAX_LEAVES: Final = 256
MAX_ACTIONS: Final = 1 << 20
_MAX_PATH_CHARACTERS: Final = 200
_MAX_LISTED: Final = 64


@dataclass(frozen=True)
class Leaf:
    """One array of an observation or an action.

    Attributes:
        path: Keys and positions that lead to it, joined by `/`; "" in a space without parts.
        kind: Which space it comes from.
        shape: Shape of one value; () for `discrete`.
        dtype: Name of its numpy dtype; int64 for `discrete`.
        low: Lower bound, one number for all components or one for each (flat, C order); `start` for `discrete`.
        high: Upper bound, inclusive, in the same form.
    """

    path: str
    kind: Kind
    shape: tuple[int, ...]
    dtype: str
    low: float | tuple[float, ...]
    high: float | tuple[float, ...]

    @property
    def num_components(self) -> int:
        """Number of numbers in one value."""
        return math.prod(self.shape)

    @property
    def num_bytes(self) -> int:
        """Bytes of one value."""
        return self.num_components * np.dtype(self.dtype).itemsize

    @property
    def is_integer(self) -> bool:
        """Whether its values are whole numbers, or true and false."""
        return np.dtype(self.dtype).kind in "iub"

    def neutral(self) -> NDArray[Any]:
        """The value nearest to 0, shape `shape`: in place of actions that are not asked for."""
        neutral: NDArray[Any] = np.clip(0, *self.bounds()).astype(self.dtype)
        return neutral

    @property
    def choices(self) -> tuple[int, ...]:
        """How many values each component can have, for the kinds whose components choose one of few.

        (n,) for `discrete`, `nvec` for `multi_discrete`, (2, 2, ...) for `multi_binary`; flat, C order.
        """
        lows, highs = (np.broadcast_to(np.asarray(bound), self.num_components) for bound in (self.low, self.high))
        return tuple(int(high) - int(low) + 1 for low, high in zip(lows, highs, strict=True))

    def bounds(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """Lower and upper bounds, shape `shape` each: int64 or float64, which hold every announced bound exactly."""
        dtype = np.int64 if self.is_integer and all(map(_is_int64, (*_flat(self.low), *_flat(self.high)))) else np.float64
        low, high = (
            np.broadcast_to(np.asarray(bound, dtype), self.num_components).reshape(self.shape)
            for bound in (self.low, self.high)
        )
        return low, high


class Row:
    """All leaves of one observation side by side in bytes, each aligned to its own item, the row to the largest.

    Args:
        leaves: In the order in which they lie in the row.
    """

    def __init__(self, leaves: Sequence[Leaf]) -> None:
        self.leaves = tuple(leaves)
        self._offsets: list[int] = []
        offset, largest = 0, 1
        for leaf in self.leaves:
            item = np.dtype(leaf.dtype).itemsize
            offset = -(-offset // item) * item
            self._offsets.append(offset)
            offset, largest = offset + leaf.num_bytes, max(largest, item)
        self.size = -(-offset // largest) * largest

    def views(self, rows: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        """Each leaf of many rows, as an array over the same memory.

        Args:
            rows: Shape (..., size), contiguous.

        Returns:
            By path, shape (..., *leaf.shape).
        """
        lead, strides, views = rows.shape[:-1], rows.strides[:-1], {}
        for leaf, offset in zip(self.leaves, self._offsets, strict=True):
            inner = np.empty(leaf.shape, leaf.dtype).strides
            views[leaf.path] = np.ndarray((*lead, *leaf.shape), leaf.dtype, rows, offset, (*strides, *inner))
        return views


@dataclass(frozen=True)
class EnvSpec:
    """What an environment says of itself in the handshake, as plain data.

    Attributes:
        env_id: Gymnasium id.
        observation: Leaves of an observation; the action mask is one of them.
        action: The leaf of an action.
        mask: Path of the leaf that says which actions are possible; None if all always are.
        reward_threshold: Average return at which the environment counts as solved, if it says so.
        max_episode_steps: Time limit, if there is one.
    """

    env_id: str
    observation: tuple[Leaf, ...]
    action: Leaf
    mask: str | None = None
    reward_threshold: float | None = None
    max_episode_steps: int | None = None


def _flat(bound: float | tuple[float, ...]) -> tuple[float, ...]:
    return bound if isinstance(bound, tuple) else (bound,)


def _is_int64(value: float) -> bool:
    return isinstance(value, int) and -(1 << 63) <= value < 1 << 63


def channel_order(shape: tuple[int, ...], wanted: ChannelOrder = "auto") -> Literal["first", "last", "none"]:
    """Where the channels of an image are: along the shorter end; of equal ends last if there are 1, 3 or 4.

    Args:
        shape: Of one image.
        wanted: `first` or `last` decides for images with channels.
    """
    if len(shape) == 2:
        return "none"
    if wanted != "auto":
        return wanted
    first, last = (shape[end] < min(shape[1], shape[-1 - end]) for end in (0, -1))
    return "last" if last or (not first and shape[-1] in (1, 3, 4)) else "first"


def is_supported_size(shape: tuple[int, ...]) -> bool:
    """True if an array has at least one component and at most `MAX_COMPONENTS`."""
    return (not shape or min(shape) >= 1) and math.prod(shape) <= MAX_COMPONENTS


# -- JSON


def leaf_to_json(leaf: Leaf) -> dict[str, Any]:
    """A leaf as the announcement has it."""
    return {
        "path": leaf.path,
        "kind": leaf.kind,
        "shape": list(leaf.shape),
        "dtype": leaf.dtype,
        "low": _bound_to_json(leaf.low),
        "high": _bound_to_json(leaf.high),
    }


def bound_of(array: NDArray[Any]) -> float | tuple[float, ...]:
    """The bound of a leaf from an array: one number if all are equal."""
    flat = array.ravel().astype(np.int64) if array.dtype == np.bool_ else array.ravel()
    if flat.size and (flat == flat[0]).all():
        number: float = flat[0].item()
        return number
    return tuple(flat.tolist())


def _bound_to_json(bound: float | tuple[float, ...]) -> Any:
    """One number, or a list of a few; of many, the compressed bytes of an array: as text, an image's would be too long."""
    if not isinstance(bound, tuple):
        return number_to_json(bound)
    if len(bound) <= _MAX_LISTED:
        return [number_to_json(number) for number in bound]
    array = np.array(bound, np.int64 if all(map(_is_int64, bound)) else np.float64)
    return {"dtype": str(array.dtype), "zlib": base64.b64encode(zlib.compress(array.tobytes())).decode()}


def number_to_json(value: float) -> float | str:
    """A number as JSON; infinities and NaN are strings, as in the curve."""
    return value if math.isfinite(value) else "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def number_from_json(value: object, name: str) -> float:
    """A number, or an infinity, from JSON.

    Raises:
        ProtocolError: It is neither.
    """
    if value in ("Infinity", "-Infinity"):
        return math.inf if value == "Infinity" else -math.inf
    if type(value) in (float, int) and abs(value) <= float.fromhex("0x1.fffffffffffffp+1023"):  # type: ignore[arg-type]
        number: float = value  # type: ignore[assignment]
        return number
    raise ProtocolError(f"{name}: expected a number, Infinity or -Infinity, got {shown(value)}")


def leaf_from_json(message: dict[str, Any], env_id: str, whole: str) -> Leaf:
    """A leaf from the announcement, checked.

    Args:
        message: The leaf.
        env_id: For messages.
        whole: How messages call the leaf of a space without parts.

    Raises:
        ProtocolError: A field is missing or malformed.
        ValueError: A leaf that is not supported; the message says which.
    """
    path, kind = take(message, "path", str), take(message, "kind", str)
    if kind not in KINDS:
        raise ProtocolError(f"leaf: expected one of {', '.join(KINDS)}, got {shown(kind)}")
    name = f"leaf {shown(path)}" if path else whole
    if len(path) > _MAX_PATH_CHARACTERS or not path.isprintable():
        raise ValueError(
            f"env_id={env_id}: {name} is not supported: expected keys of at most {_MAX_PATH_CHARACTERS} printable characters; "
            "leave it out with data.obs_keys, or rename it in a gymnasium.ObservationWrapper"
        )
    shape = tuple(take({"shape": size}, "shape", int) for size in take(message, "shape", list))
    if not is_supported_size(shape):
        raise ValueError(
            f"env_id={env_id}: {name} of shape {shape} is not supported; expected 1 to {MAX_COMPONENTS} components"
        )
    dtype = take(message, "dtype", str)
    if dtype not in DTYPES:
        raise ValueError(f"env_id={env_id}: {name} of dtype {shown(dtype)} is not supported")
    size = math.prod(shape)
    low, high = (_bound_from_json(message.get(key), key, size) for key in ("low", "high"))
    leaf = Leaf(path, kind, shape, dtype, low, high)
    if kind != "box":
        _require_choices(leaf, env_id, name)
    return leaf


def _require_choices(leaf: Leaf, env_id: str, name: str) -> None:
    """Refuse a leaf of choices whose bounds are none, or too many choices.

    Raises:
        ProtocolError: The bounds are not whole numbers.
        ValueError: There are no choices, or too many.
    """
    bounds = (*_flat(leaf.low), *_flat(leaf.high))
    if not leaf.is_integer or not all(map(_is_int64, bounds)) or (leaf.kind == "discrete" and leaf.shape != ()):
        raise ProtocolError(f"{name}: expected whole numbers as bounds of {leaf.kind}")
    if min(leaf.choices) < 1 or sum(leaf.choices) > MAX_ACTIONS:
        raise ValueError(f"env_id={env_id}: {name} with {shown(leaf.choices)} choices is not supported; expected 1 to 2^20")


def _bound_from_json(value: object, name: str, size: int) -> float | tuple[float, ...]:
    if type(value) is list:
        if len(value) != size:
            raise ProtocolError(f"{name}: expected {size} numbers, got {len(value)}")
        return tuple(number_from_json(item, f"{name}[{i}]") for i, item in enumerate(value))
    if type(value) is not dict:
        return number_from_json(value, name)
    dtype, text = take(value, "dtype", str), take(value, "zlib", str)
    if dtype not in ("int64", "float64"):
        raise ProtocolError(f"{name}: expected int64 or float64, got {shown(dtype)}")
    try:
        inflate = zlib.decompressobj()
        data = inflate.decompress(base64.b64decode(text, validate=True), 8 * size + 1)
    except (ValueError, zlib.error) as error:
        raise ProtocolError(f"{name}: expected compressed numbers: {error}") from error
    if len(data) != 8 * size:
        raise ProtocolError(f"{name}: expected {size} numbers, got {len(data) // 8}")
    array = np.frombuffer(data, dtype)
    if np.isnan(array).any():
        raise ProtocolError(f"{name}: expected numbers, got NaN")
    return tuple(array.tolist())


def spec_to_json(spec: EnvSpec) -> dict[str, Any]:
    """The announcement of an environment, as far as `EnvSpec` has it."""
    return {
        "env_id": spec.env_id,
        "observation": [leaf_to_json(leaf) for leaf in spec.observation],
        "action": leaf_to_json(spec.action),
        "mask": spec.mask,
        "reward_threshold": None if spec.reward_threshold is None else number_to_json(spec.reward_threshold),
        "max_episode_steps": spec.max_episode_steps,
    }


def spec_from_json(message: dict[str, Any]) -> EnvSpec:
    """The environment's announcement, checked.

    Raises:
        ProtocolError: A field is missing or malformed.
        ValueError: A space that is not supported; the message says which.
    """
    env_id = take(message, "env_id", str)
    leaves = tuple(
        leaf_from_json(take({"leaf": leaf}, "leaf", dict), env_id, "the observation")
        for leaf in take(message, "observation", list)[: MAX_LEAVES + 1]
    )
    if not 1 <= len(leaves) <= MAX_LEAVES or len({leaf.path for leaf in leaves}) < len(leaves):
        raise ProtocolError(f"observation: expected 1 to {MAX_LEAVES} leaves with paths of their own, got {len(leaves)}")
    action = leaf_from_json(take(message, "action", dict), env_id, "the action")
    mask = take(message, "mask", str, type(None))
    if mask is not None:
        _require_mask(mask, leaves, action)
    threshold = take(message, "reward_threshold", float, int, str, type(None))
    return EnvSpec(
        env_id,
        leaves,
        action,
        mask,
        None if threshold is None else float(number_from_json(threshold, "reward_threshold")),
        take(message, "max_episode_steps", int, type(None)),
    )


def _require_mask(mask: str, leaves: Sequence[Leaf], action: Leaf) -> None:
    """Refuse a mask that does not fit the action.

    Raises:
        ValueError: Says what it must be.
    """
    leaf = next((leaf for leaf in leaves if leaf.path == mask), None)
    if action.kind not in ("discrete", "multi_discrete"):
        raise ValueError(f"action_mask: expected a Discrete or MultiDiscrete action space, got {action.kind}")
    if leaf is None or leaf.num_components != sum(action.choices) or not leaf.is_integer:
        raise ValueError(
            f"action_mask: expected a leaf of {sum(action.choices)} zeros and ones, one for each choice, got "
            f"{'none' if leaf is None else f'shape {leaf.shape} of {leaf.dtype}'} at {mask!r}"
        )
