"""Observations as Gymnasium has them, nested dicts and tuples, and their leaves: the worker's walk from one to the other.

Everything is planned from the declared space; what an environment returns is walked by that plan, and anything else there is a
violation of the contract, with the path in its name.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from lit_ppo.errors import ContractViolation, shown
from lit_ppo.leaf_rules import NUMBERS, admit_leaf, as_array, field_of
from lit_ppo.spaces import DTYPES, MAX_COMPONENTS, MAX_LEAVES, Leaf, bound_of, is_supported_size

Writer = Callable[[object, object, int], None]  # of what the environment returned there, its info, and the row
Keys = tuple[Any, ...]  # keys and positions that lead to a part

INFO, CALL = "info:", "call:"  # an action mask that is no part of the observation has the path "info:KEY" or "call:NAME"
_WRAPPERS: Final = {  # of spaces without arrays of fixed size, what a wrapper can do about them
    "Graph": "returns arrays of fixed size",
    "Sequence": "pads it to a Box",
    "Text": "encodes it as a MultiDiscrete",
    "OneOf": "returns a Dict with every alternative",
}


def leaf_of(space: gymnasium.Space[Any], path: str) -> Leaf | None:
    """The leaf of a space without parts; None if it has no array of fixed size."""
    match space:
        case spaces.Box():
            shape = tuple(map(int, space.shape))
            return Leaf(path, "box", shape, space.dtype.name, bound_of(space.low), bound_of(space.high))
        case spaces.Discrete():
            return Leaf(path, "discrete", (), "int64", int(space.start), int(space.start) + int(space.n) - 1)
        case spaces.MultiDiscrete():
            low = np.asarray(space.start, np.int64)
            high = low + space.nvec.astype(np.int64) - 1
            return Leaf(path, "multi_discrete", space.shape, "int64", bound_of(low), bound_of(high))
        case spaces.MultiBinary():
            return Leaf(path, "multi_binary", space.shape, "int8", 0, 1)
    return None


def _objection(space: gymnasium.Space[Any], leaf: Leaf | None) -> tuple[str, str, str] | None:
    """Reason why a space without parts is unsupported, the expected space, and a wrapper's remedy; None if there is none."""
    if leaf is None:
        return "", "it has no arrays of fixed size", _WRAPPERS.get(type(space).__name__, "returns arrays")
    if leaf.dtype not in DTYPES:
        name = np.dtype(space.dtype).type.__name__
        return f" of dtype {name}", f"expected one of {', '.join(DTYPES)}", "casts it to one of them"
    if not is_supported_size(leaf.shape):
        return f" of shape {leaf.shape}", f"expected 1 to {MAX_COMPONENTS} components", "returns an array of another shape"
    return None


def parts_of(space: gymnasium.Space[Any]) -> list[tuple[Any, gymnasium.Space[Any]]] | None:
    """Keys, or positions, and spaces of the parts of a Dict or Tuple; None for another space."""
    match space:
        case spaces.Dict():
            return list(space.spaces.items())
        case spaces.Tuple():
            return list(enumerate(space.spaces))
    return None


class ObservationTree:
    """Plans the walk through the observations of a space.

    Args:
        env_id: For messages.
        space: The declared observation space.
        keys: Names of the parts of the outermost Dict or Tuple that are used; None for all.
        mask: Leaf of an action mask that is no part of the observation; None if there is none.
        observed_mask: Path of an action mask that is a part of the observation; None if there is none.
        hint: Ends the message about a mask that is missing.

    Raises:
        ValueError: The space has a part that is no array of fixed size, two parts of the same path, none, or too many;
            or `keys` or `observed_mask` names a part that is not there.
    """

    def __init__(
        self,
        env_id: str,
        space: gymnasium.Space[Any],
        keys: Sequence[str] | None = None,
        mask: Leaf | None = None,
        observed_mask: str | None = None,
        hint: str = "",
    ) -> None:
        self._env_id, self._space, self._mask, self._hint = env_id, space, mask, hint
        self._observed_mask = observed_mask
        self._used = self._top_level(keys)
        found: dict[str, tuple[Leaf, Keys]] = {}
        self._collect(space, "", (), found)
        if not 1 <= len(found) <= MAX_LEAVES:
            few = "; leave some out with data.obs_keys" if found else ""
            raise ValueError(f"env_id={env_id}: observation space: expected 1 to {MAX_LEAVES} parts, got {len(found)}{few}")
        if observed_mask is not None and observed_mask not in found:
            parts = shown(list(found))
            raise ValueError(
                f"action_mask=obs:{observed_mask}: expected one of the observation's parts {parts}, got none{hint}"
            )
        self.leaves = (*(leaf for leaf, _ in found.values()), *(() if mask is None else (mask,)))
        self._dtypes = {leaf.path: np.dtype(leaf.dtype) for leaf in self.leaves}
        self._by_path = {leaf.path: leaf for leaf in self.leaves}
        self.is_bare = len(self.leaves) == 1 and self.leaves[0].path == ""

    def _top_level(self, keys: Sequence[str] | None) -> set[str] | None:
        parts = parts_of(self._space)
        if keys is None:
            return None
        names = [] if parts is None else [str(key) for key, _ in parts]
        if missing := [key for key in keys if key not in names]:
            raise ValueError(f"obs_keys={list(keys)}: expected parts of {names}, got {missing[0]!r}")
        if not keys:
            raise ValueError("obs_keys=[]: expected at least one part")
        return set(keys)

    def _is_used(self, key: Any, path: str) -> bool:
        return bool(path) or self._used is None or str(key) in self._used

    def _collect(self, space: gymnasium.Space[Any], path: str, keys: Keys, found: dict[str, tuple[Leaf, Keys]]) -> None:
        """Add the leaves of a part of the space, by path, each with the keys that lead to it."""
        if (parts := parts_of(space)) is not None:
            for key, part in parts:
                if self._is_used(key, path):
                    self._collect(part, f"{path}/{key}" if path else str(key), (*keys, key), found)
            return
        leaf = leaf_of(space, path)
        if leaf is None or _objection(space, leaf) is not None:
            raise ValueError(self._refusal(space, leaf, keys))
        if path in found:
            raise ValueError(
                f"env_id={self._env_id}: parts {_subscripts(found[path][1])} and {_subscripts(keys)} of the observation space "
                f"have the same path {shown(path)}; rename one in a gymnasium.ObservationWrapper, or {self._leave_out(keys)}"
            )
        if path == self._observed_mask and not leaf.is_integer:
            leaf = Leaf(path, "multi_binary", leaf.shape, "int8", 0, 1)
        found[path] = leaf, keys

    def _refusal(self, space: gymnasium.Space[Any], leaf: Leaf | None, keys: Keys) -> str:
        objection = _objection(space, leaf)
        assert objection is not None
        (what, expected, wrapper), kind = objection, type(space).__name__
        path = "/".join(map(str, keys))
        where = f"part {shown(path)} of the observation space, a {kind}{what}," if keys else f"observation space {kind}{what}"
        hint = f"write a gymnasium.ObservationWrapper that {wrapper}"
        if keys and (leave_out := self._leave_out(keys)):
            hint = f"{leave_out}, or {hint}"
        return f"env_id={self._env_id}: {where} is not supported: {expected}; {hint}"

    def _leave_out(self, keys: Keys) -> str:
        """Advice to leave out the outermost part of these keys; "" if no other part can be used."""
        others = [key for key, part in parts_of(self._space) or [] if key != keys[0] and _is_supported(part)]
        return f"leave it out with --data.obs_keys=[{','.join(map(str, others))}]" if others else ""

    def writer(
        self, views: Mapping[str, NDArray[Any]], called: Callable[[int], object] | None = None, *, reads_mask: bool = True
    ) -> Writer:
        """A function that admits one observation and writes its leaves into their arrays.

        It raises `ContractViolation` if a part is missing, or not what was declared.

        Args:
            views: By path, shape (N, *shape) each.
            called: Returns the action mask of an environment; None if the mask is in `info` or the observation.
            reads_mask: False for the ends of episodes, where no action follows: the mask there is zeros.
        """
        write_parts = self._writer_of(self._space, "", views, reads_mask)
        if self._mask is None:
            return write_parts
        write_mask = self._mask_writer(views[self._mask.path], called) if reads_mask else _zeros_writer(views[self._mask.path])

        def write(observation: object, info: object, env: int) -> None:
            write_parts(observation, info, env)
            write_mask(observation, info, env)

        return write

    def _writer_of(self, space: gymnasium.Space[Any], path: str, views: Mapping[str, NDArray[Any]], reads_mask: bool) -> Writer:
        """A writer for a part of the space, made once: walking the space in every step would cost more than the copies."""
        parts = parts_of(space)
        if parts is None:
            is_read = reads_mask or path != self._observed_mask
            return self._leaf_writer(path, views[path]) if is_read else _zeros_writer(views[path])
        field, expected = field_of("obs", path), {key for key, _ in parts}
        writers = []
        for key, part in parts:
            if self._is_used(key, path):
                inner = f"{path}/{key}" if path else str(key)
                # a leaf as it should be is copied here: another call would take as long
                is_leaf = parts_of(part) is None and (reads_mask or inner != self._observed_mask)
                usual = (self._dtypes[inner], self._by_path[inner].shape) if is_leaf else (None, ())
                rows = _rows(views[inner]) if is_leaf else []
                writers.append((key, self._writer_of(part, inner, views, reads_mask), *usual, rows))

        def write_dict(value: object, info: object, env: int) -> None:
            if not isinstance(value, dict) or value.keys() != expected:
                keys = f"keys {sorted(map(shown, value))}" if isinstance(value, dict) else None
                arrived = keys or f"{type(value).__name__} {shown(value)}"
                raise ContractViolation(field, f"a dict with exactly the keys {sorted(expected, key=str)}", arrived)
            for key, write, dtype, shape, rows in writers:
                part = value[key]
                if type(part) is np.ndarray and part.dtype is dtype and part.shape == shape:
                    rows[env][...] = part
                else:
                    write(part, info, env)

        def write_tuple(value: object, info: object, env: int) -> None:
            if isinstance(value, np.ndarray) and value.ndim and value.dtype.kind in NUMBERS:
                value = tuple(value)
            if not isinstance(value, tuple | list) or len(value) != len(expected):
                raise ContractViolation(field, f"a tuple of {len(expected)}", f"{type(value).__name__} {shown(value)}")
            for k, write, *_ in writers:
                write(value[k], info, env)

        return write_dict if isinstance(space, spaces.Dict) else write_tuple

    def _leaf_writer(self, path: str, array: NDArray[Any]) -> Writer:
        leaf, dtype, field = self._by_path[path], self._dtypes[path], field_of("obs", path)
        shape, rows = leaf.shape, _rows(array)

        def write(value: object, info: object, env: int) -> None:
            # the usual case first: this runs in every step of every environment
            if type(value) is np.ndarray and value.dtype is dtype and value.shape == shape:
                rows[env][...] = value
            else:
                rows[env][...] = admit_leaf(value, leaf, dtype, field)

        return write

    def _mask_writer(self, array: NDArray[Any], called: Callable[[int], object] | None) -> Writer:
        assert self._mask is not None
        leaf, dtype, rows = self._mask, self._dtypes[self._mask.path], _rows(array)
        path, key = leaf.path, leaf.path.removeprefix(INFO)

        def write(observation: object, info: object, env: int) -> None:
            if called is not None:
                value = called(env)
            elif isinstance(info, dict) and key in info:
                value = info[key]
            else:
                expected = f"an action mask under {key!r}{self._hint}"
                raise ContractViolation(path, expected, f"{type(info).__name__} {shown(info)}")
            if isinstance(value, tuple | list) and any(isinstance(part, tuple | list | np.ndarray) for part in value):
                # of a MultiDiscrete, one mask for each component
                value = np.concatenate([as_array(part, path, leaf.shape).ravel() for part in value])
            rows[env][...] = admit_leaf(value, leaf, dtype, path)

        return write


def _zeros_writer(array: NDArray[Any]) -> Writer:
    """Writes the mask of the end of an episode, where no action follows."""

    def write(observation: object, info: object, env: int) -> None:
        array[env] = 0

    return write


def _subscripts(keys: Keys) -> str:
    """Keys as one would write them: `['a']['b']`."""
    return "".join(f"[{shown(key)}]" for key in keys)


def _rows(array: NDArray[Any]) -> list[NDArray[Any]]:
    """The rows of an array as arrays, made once: indexing takes as long as the copy."""
    return [array[env, ...] for env in range(len(array))]


def _is_supported(space: gymnasium.Space[Any]) -> bool:
    parts = parts_of(space)
    return _objection(space, leaf_of(space, "")) is None if parts is None else all(_is_supported(part) for _, part in parts)


def action_leaf(env_id: str, space: gymnasium.Space[Any]) -> Leaf:
    """The leaf of an action space.

    Raises:
        ValueError: The space is not supported.
    """
    leaf = leaf_of(space, "")
    objection = _objection(space, leaf)
    if leaf is None or objection is not None:
        what, expected, _ = objection or ("", "", "")
        expected = "expected Discrete, MultiDiscrete, MultiBinary or Box" if leaf is None else expected
        raise ValueError(
            f"env_id={env_id}: action space {type(space).__name__}{what} is not supported; {expected}: "
            "write a gymnasium.ActionWrapper"
        )
    return leaf


def mask_leaf(action_mask: str, action: Leaf) -> tuple[str, Leaf | None]:
    """The path of the mask, and its leaf if it is no part of the observation.

    Args:
        action_mask: `info:KEY`, `obs:PATH` or `call:NAME`.
        action: The leaf of an action.

    Raises:
        ValueError: It is none of them.
    """
    source, colon, key = action_mask.partition(":")
    if source not in ("info", "obs", "call") or not colon or not key:
        raise ValueError(f"action_mask={action_mask}: expected info:KEY, obs:PATH or call:METHOD")
    if source == "obs":
        return key, None
    size = sum(action.choices) if action.kind in ("discrete", "multi_discrete") else 1
    return action_mask, Leaf(action_mask, "multi_binary", (size,), "int8", 0, 1)
