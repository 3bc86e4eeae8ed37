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
from lit_ppo.leaf_rules import admit_leaf, field_of
from lit_ppo.spaces import Leaf, bound_of, require_supported_size

Writer = Callable[[object, object, int], None]  # of what the environment returned there, its info, and the row

INFO: Final = "info:"  # an action mask that is no part of the observation has the path "info:KEY"
_HINTS: Final = {
    "Graph": "write a gymnasium.ObservationWrapper that returns arrays of fixed size",
    "Sequence": "write a gymnasium.ObservationWrapper that pads it to a Box",
    "Text": "write a gymnasium.ObservationWrapper that encodes it as a MultiDiscrete",
    "OneOf": "write a gymnasium.ObservationWrapper that returns a Dict with every alternative",
}


def leaf_of(space: gymnasium.Space[Any], path: str) -> Leaf | None:
    """The leaf of a space without parts; None if it has no array of fixed size."""
    match space:
        case spaces.Box():
            return Leaf(path, "box", space.shape, str(space.dtype), bound_of(space.low), bound_of(space.high))
        case spaces.Discrete():
            return Leaf(path, "discrete", (), "int64", int(space.start), int(space.start) + int(space.n) - 1)
        case spaces.MultiDiscrete():
            low = np.asarray(space.start, np.int64)
            return Leaf(path, "multi_discrete", space.shape, "int64", bound_of(low), bound_of(low + space.nvec - 1))
        case spaces.MultiBinary():
            return Leaf(path, "multi_binary", space.shape, "int8", 0, 1)
    return None


def parts_of(space: gymnasium.Space[Any]) -> list[tuple[str, gymnasium.Space[Any]]] | None:
    """Names and spaces of the parts of a Dict or Tuple; None for another space."""
    match space:
        case spaces.Dict():
            return list(space.spaces.items())
        case spaces.Tuple():
            return [(str(k), part) for k, part in enumerate(space.spaces)]
    return None


class ObservationTree:
    """Plans the walk through the observations of a space.

    Args:
        env_id: For messages.
        space: The declared observation space.
        keys: Names of the parts of the outermost Dict or Tuple that are used; None for all.
        mask: Leaf of an action mask that comes in `info`; None if there is none.

    Raises:
        ValueError: The space has a part that is no array of fixed size, or `keys` names a part that is not there.
    """

    def __init__(
        self, env_id: str, space: gymnasium.Space[Any], keys: Sequence[str] | None = None, mask: Leaf | None = None
    ) -> None:
        self._env_id, self._space, self._mask = env_id, space, mask
        self._used = self._top_level(keys)
        found: list[Leaf] = []
        self._collect(space, "", found)
        if mask is not None:
            found.append(mask)
        self.leaves = tuple(found)
        self._dtypes = {leaf.path: np.dtype(leaf.dtype) for leaf in self.leaves}
        self._by_path = {leaf.path: leaf for leaf in self.leaves}
        self.is_bare = len(self.leaves) == 1 and self.leaves[0].path == ""

    def _top_level(self, keys: Sequence[str] | None) -> set[str] | None:
        parts = parts_of(self._space)
        if keys is None:
            return None
        names = [] if parts is None else [name for name, _ in parts]
        if missing := [key for key in keys if key not in names]:
            raise ValueError(f"obs_keys={list(keys)}: expected parts of {names}, got {missing[0]!r}")
        if not keys:
            raise ValueError("obs_keys=[]: expected at least one part")
        return set(keys)

    def _is_used(self, name: str, path: str) -> bool:
        return bool(path) or self._used is None or name in self._used

    def _collect(self, space: gymnasium.Space[Any], path: str, found: list[Leaf]) -> None:
        if (parts := parts_of(space)) is not None:
            for name, part in parts:
                if self._is_used(name, path):
                    self._collect(part, f"{path}/{name}" if path else name, found)
            return
        leaf = leaf_of(space, path)
        if leaf is None:
            raise ValueError(self._refusal(space, path))
        require_supported_size(self._env_id, f"leaf {path!r}" if path else "observations", leaf.shape)
        found.append(leaf)

    def _refusal(self, space: gymnasium.Space[Any], path: str) -> str:
        kind = type(space).__name__
        hint = _HINTS.get(kind, "write a gymnasium.ObservationWrapper that returns arrays")
        if path:
            outermost = path.partition("/")[0]
            others = [name for name, part in parts_of(self._space) or [] if name != outermost and _is_supported(part)]
            hint = f"leave it out with --data.obs_keys=[{','.join(others)}], or {hint}" if others else hint
        where = f"part {path!r} of the observation space, a {kind}," if path else f"observation space {kind}"
        return f"env_id={self._env_id}: {where} is not supported: it has no arrays of fixed size; {hint}"

    def writer(self, views: Mapping[str, NDArray[Any]]) -> Writer:
        """A function that admits one observation and writes its leaves into their arrays.

        It raises `ContractViolation` if a part is missing, or not what was declared.

        Args:
            views: By path, shape (N, *shape) each.
        """
        write_parts = self._writer_of(self._space, "", views)
        if self._mask is None:
            return write_parts
        masks = views[self._mask.path]

        def write(observation: object, info: object, env: int) -> None:
            write_parts(observation, info, env)
            masks[env] = self._admit_mask(info)

        return write

    def _writer_of(self, space: gymnasium.Space[Any], path: str, views: Mapping[str, NDArray[Any]]) -> Writer:
        """A writer for a part of the space, made once: walking the space in every step would cost more than the copies."""
        parts = parts_of(space)
        if parts is None:
            return self._leaf_writer(path, views[path])
        field, expected = field_of("obs", path), {name for name, _ in parts}
        writers = []
        for k, (name, part) in enumerate(parts):
            if self._is_used(name, path):
                inner = f"{path}/{name}" if path else name
                # a leaf as it should be is copied here: another call would take as long
                is_leaf = parts_of(part) is None
                usual = (self._dtypes[inner], self._by_path[inner].shape) if is_leaf else (None, ())
                writers.append((k, name, self._writer_of(part, inner, views), *usual, _rows(views[inner]) if is_leaf else []))

        def write_dict(value: object, info: object, env: int) -> None:
            if not isinstance(value, dict) or value.keys() != expected:
                keys = f"keys {sorted(map(shown, value))}" if isinstance(value, dict) else None
                arrived = keys or f"{type(value).__name__} {shown(value)}"
                raise ContractViolation(field, f"a dict with exactly the keys {sorted(expected)}", arrived)
            for _, name, write, dtype, shape, rows in writers:
                part = value[name]
                if type(part) is np.ndarray and part.dtype is dtype and part.shape == shape:
                    rows[env][...] = part
                else:
                    write(part, info, env)

        def write_tuple(value: object, info: object, env: int) -> None:
            if not isinstance(value, tuple) or len(value) != len(expected):
                raise ContractViolation(field, f"a tuple of {len(expected)}", f"{type(value).__name__} {shown(value)}")
            for k, _, write, *_ in writers:
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

    def _admit_mask(self, info: object) -> Any:
        assert self._mask is not None
        path = self._mask.path
        key = path.removeprefix(INFO)
        if not isinstance(info, dict) or key not in info:
            raise ContractViolation(path, f"an action mask under {key!r}", f"{type(info).__name__} {shown(info)}")
        value = info[key]
        if isinstance(value, tuple) and all(isinstance(part, np.ndarray) and part.ndim == 1 for part in value) and value:
            value = np.concatenate(value)  # of a MultiDiscrete, one array for each component
        return admit_leaf(value, self._mask, self._dtypes[path], path)


def _rows(array: NDArray[Any]) -> list[NDArray[Any]]:
    """The rows of an array as arrays, made once: indexing takes as long as the copy."""
    return [array[env, ...] for env in range(len(array))]


def _is_supported(space: gymnasium.Space[Any]) -> bool:
    parts = parts_of(space)
    return leaf_of(space, "") is not None if parts is None else all(_is_supported(part) for _, part in parts)


def action_leaf(env_id: str, space: gymnasium.Space[Any]) -> Leaf:
    """The leaf of an action space.

    Raises:
        ValueError: The space is not supported.
    """
    leaf = leaf_of(space, "")
    if leaf is None:
        raise ValueError(
            f"env_id={env_id}: action space {type(space).__name__} is not supported; expected Discrete, MultiDiscrete, "
            "MultiBinary or Box: write a gymnasium.ActionWrapper"
        )
    require_supported_size(env_id, "actions", leaf.shape)
    return leaf


def mask_leaf(action_mask: str, action: Leaf) -> tuple[str, Leaf | None]:
    """The path of the mask, and its leaf if it comes in `info`.

    Args:
        action_mask: `info:KEY` or `obs:PATH`.
        action: The leaf of an action.

    Raises:
        ValueError: It is neither.
    """
    source, colon, key = action_mask.partition(":")
    if source not in ("info", "obs") or not colon or not key:
        raise ValueError(f"action_mask={action_mask}: expected info:KEY or obs:PATH")
    if source == "obs":
        return key, None
    size = sum(action.choices) if action.kind in ("discrete", "multi_discrete") else 1
    return action_mask, Leaf(action_mask, "multi_binary", (size,), "int8", 0, 1)
