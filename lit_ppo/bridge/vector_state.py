"""The state of a native vector environment as plain data.

Rules. An attribute of the environment or of one of its wrappers is *saved* if it is an array, a number, text or None. Any
other attribute must stay as the constructor made it, with all that it refers to: then a fresh environment has it as well. One
that has changed, or whose contents cannot be read, makes `save` refuse by its name. State outside the attributes (of a class, a
module or the system) shows only where a fresh process goes another way; `restoration.Snapshots` tries that before a run relies
on it.
"""

import base64
from collections import deque
from collections.abc import Iterator
from copyreg import dispatch_table
from functools import cache
from hashlib import blake2b
from types import FunctionType, MemberDescriptorType, ModuleType
from typing import Any, Final, NoReturn

import numpy as np
from numpy.typing import NDArray

from lit_ppo.bridge.protocol import take
from lit_ppo.errors import ConfigError, ProtocolError

_STREAM: Final = "_np_random"  # of Gymnasium's own base class; its state is saved as `random`


class VectorState:
    """Saves and restores the attributes of a vector environment.

    Args:
        vector: The `gymnasium.vector.VectorEnv`, just made.
        host: Its owner, which the environment may refer to.
    """

    def __init__(self, vector: Any, host: object) -> None:
        self._layers: list[Any] = [vector]  # the environment itself, then its wrappers
        while self._layers[0] is not vector.unwrapped:
            self._layers.insert(0, self._layers[0].env)
        self._known = [*self._layers, host]
        self._names = {key for key, _ in self._attributes()}
        self._made = {key: _fingerprint(value, self._known) for key, value in self._attributes() if _encoded(value) is None}

    def _attributes(self) -> Iterator[tuple[str, Any]]:
        """Each attribute by its key: its name, after the number of a wrapper."""
        for depth, layer in enumerate(self._layers):
            for name, value in _attributes_of(layer).items():
                if name != _STREAM:
                    yield f"{depth}.{name}" if depth else name, value

    def _place(self, key: str) -> tuple[Any, str]:
        depth, _, name = key.rpartition(".")
        return self._layers[int(depth or 0)], name

    def save(self) -> dict[str, Any]:
        """The state as plain data.

        Raises:
            ConfigError: Part of it is not saved.
        """
        fields: dict[str, Any] = {}
        arrays: dict[str, NDArray[Any]] = {}
        for key, value in self._attributes():
            if (encoded := _encoded(value)) is None:
                continue
            for other, array in arrays.items() if type(value) is np.ndarray else ():
                if value is array:
                    encoded = {"same_as": other}
                elif np.may_share_memory(value, array):
                    self._refuse(key, f"shares memory with {other}")
            fields[key] = encoded
            if type(value) is np.ndarray and "same_as" not in encoded:
                arrays[key] = value
        self._require_unchanged()
        random = self._layers[0].np_random
        stream = getattr(random, "bit_generator", None)
        if type(stream) is not np.random.PCG64 or getattr(stream.seed_seq, "n_children_spawned", False):
            self._refuse("np_random", "is not a generator of Gymnasium's kind, or has spawned others")
        return {"fields": fields, "random": stream.state}

    def _require_unchanged(self) -> None:
        """Refuse attributes that are not saved and no longer as they were made."""
        now = dict(self._attributes())
        for key in self._names - now.keys():
            self._refuse(key, "was deleted")
        for key, value in now.items():
            if _encoded(value) is None:
                fingerprint = _fingerprint(value, self._known)
                if fingerprint is None or fingerprint != self._made.get(key):
                    self._refuse(key, f"is a {type(value).__name__}, and only arrays, numbers, text and None are saved")

    def _refuse(self, key: str, reason: str) -> NoReturn:
        layer, name = self._place(key)
        raise ConfigError(
            f"data.vectorization=native: expected state that can be saved as plain data, got {type(layer).__name__}.{name}, "
            f"which {reason}; use data.vectorization=sync"
        )

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from what `save` returned.

        Raises:
            ProtocolError: The state is malformed.
            ConfigError: The environment has changed in a way that cannot be restored.
        """
        stream = self._layers[0].np_random.bit_generator  # first: in a fresh environment this makes it
        try:
            fields = take(state, "fields", dict)
            for key in {key for key, _ in self._attributes()} - fields.keys() - self._names:
                delattr(*self._place(key))
            for key, value in fields.items():
                layer, name = self._place(key)
                if "same_as" in value:
                    setattr(layer, name, dict(self._attributes())[value["same_as"]])
                elif name not in (own := _attributes_of(layer)) or _encoded(own[name]) != value:  # else others may refer to it
                    setattr(layer, name, _decoded(value))
            stream.state = take(state, "random", dict)
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            raise ProtocolError(f"state: expected that of a vector environment: {error}") from error
        self._require_unchanged()


def _attributes_of(value: object) -> dict[str, Any]:
    """Attributes of an object, in its slots and its dictionary."""
    kind: Any = type(value)
    slots = {name: getattr(value, name) for name in _slots(kind) if hasattr(value, name)}
    return slots | getattr(value, "__dict__", {})


@cache
def _slots(kind: Any) -> list[str]:
    members = (member for base in kind.__mro__ for member in vars(base).items())
    return [name for name, member in members if isinstance(member, MemberDescriptorType)]


def _encoded(value: object) -> dict[str, Any] | None:
    """A value that is saved, as plain data; None for any other."""
    if type(value) in (bool, int):
        return {"integer": value}
    if type(value) is float:
        return {"float": value.hex()}  # JSON has no infinities
    if value is None or type(value) is str:
        return {"plain": value}
    if type(value) is np.ndarray or isinstance(value, np.generic):
        dtype = value.dtype
        return array_to_json(value) if np.dtype(dtype.str) == dtype and dtype.itemsize and not dtype.hasobject else None
    return None


def _decoded(value: dict[str, Any]) -> Any:
    if "dtype" in value:
        return array_from_json(value)
    if "float" in value:
        return float.fromhex(take(value, "float", str))
    return take(value, "integer", int, bool) if "integer" in value else take(value, "plain", str, type(None))


def array_to_json(array: NDArray[Any] | np.generic) -> dict[str, Any]:
    """An array or a numpy number as plain data."""
    order = {"order": "F"} if array.flags.fnc else {}  # sums depend on it in their last bits
    scalar = {} if isinstance(array, np.ndarray) else {"scalar": True}
    data = base64.b64encode(array.tobytes("A")).decode()
    return {"dtype": array.dtype.str, "shape": list(array.shape), "data": data, **order, **scalar}


def array_from_json(value: dict[str, Any]) -> Any:
    """The array or number that `array_to_json` wrote."""
    shape = [int(size) for size in take(value, "shape", list)]
    data = base64.b64decode(take(value, "data", str), validate=True)
    array = np.frombuffer(data, np.dtype(take(value, "dtype", str))).reshape(shape, order=value.get("order", "C")).copy("K")
    return array[()] if "scalar" in value else array


def _fingerprint(value: object, known: list[object]) -> bytes | None:
    """A digest of all that a value consists of, the same while nothing in it changes; None if its contents cannot be read.

    Args:
        value: Any object.
        known: Objects that are not looked into.
    """
    digest = blake2b(digest_size=16)
    seen = {id(one): (place, one) for place, one in enumerate(known)}  # the objects as well: a freed one's id is used again

    def walk(value: Any) -> None:
        if value is None or type(value) in (bool, int, float, complex, str, bytes):
            digest.update(f"{value!r};".encode("utf-8", "surrogatepass"))
        elif isinstance(value, type | ModuleType):
            digest.update(f"{id(value)};".encode())
        elif id(value) in seen:
            digest.update(f"seen {seen[id(value)][0]};".encode())
        else:
            seen[id(value)] = len(seen), value
            digest.update(b"(")
            for part in _parts(value):
                walk(part)
            digest.update(b")")

    try:
        walk(value)
    except Exception:  # whatever such an object raises, its contents stay unknown
        return None
    return digest.digest()


def _parts(value: Any) -> tuple[Any, ...]:
    """Parts of an object: those that pickle saves, and the attributes that its own rules for pickle leave out.

    Raises:
        TypeError: It has contents of which Python knows nothing.
    """
    if isinstance(value, FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        return id(value.__code__), *cells, value.__defaults__, value.__kwdefaults__, vars(value)
    if isinstance(value, tuple | deque):
        return type(value), *value
    kind: Any = type(value)
    reducer = dispatch_table.get(kind)
    reduced = reducer(value) if reducer is not None else value.__reduce_ex__(4)
    if isinstance(reduced, str):  # a name in a module
        return id(value), reduced
    function, arguments, state, items, pairs = (*reduced, None, None, None)[:5]
    is_default = kind.__reduce_ex__ is object.__reduce_ex__ and kind.__reduce__ is object.__reduce__
    own = _attributes_of(value) if is_default else {}
    return function, arguments, state, *(items or ()), *(pairs or ()), *own.items()
