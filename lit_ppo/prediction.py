"""Actions for observations as a user has them: nested or by path, one or many, arrays or tensors."""

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lit_ppo.contract import Contract, ContractSettings
from lit_ppo.errors import ContractViolation, shown
from lit_ppo.leaf_rules import admit_leaf, field_of
from lit_ppo.policy import Policy
from lit_ppo.spaces import EnvSpec, Leaf, Leaves

_OUTSIDE: Final = {"info": "what the environment gives in info[{!r}]", "call": "what its method {} returns"}


class ObservationReader:
    """From observations as Gymnasium gives them to the leaves that a policy sees, under the rules that hold in training.

    Args:
        spec: The environment's spaces.
    """

    def __init__(self, spec: EnvSpec) -> None:
        self._leaves = {leaf.path: leaf for leaf in spec.observation}
        self._mask, self._dtypes = spec.mask, {leaf.path: np.dtype(leaf.dtype) for leaf in spec.observation}
        self._inner = {
            "/".join(parts[:k]) for parts in (path.split("/") for path in self._leaves) for k in range(1, len(parts))
        }
        # an observation outside its declared space is one that the policy may have been trained on
        self._contract = Contract(spec, ContractSettings(check_membership="off"))

    def read(self, obs: object, action_mask: object = None) -> tuple[dict[str, NDArray[Any]], bool]:
        """Leaves by path, shape (R, *leaf.shape) each, and whether they are of a single observation (R = 1).

        Args:
            obs: The leaf itself where the space has no parts; else a mapping by path, or nested mappings and tuples. Parts of
                the outermost mapping or tuple that the policy does not see are ignored.
            action_mask: The mask, if it is no part of the observation; for a MultiDiscrete also a tuple with one array for
                each component.

        Raises:
            ValueError: A part is missing, or has another shape or dtype, or a value is not finite or names no choice.
        """
        found: dict[str, object] = {}
        self._collect(obs, "", found)
        if action_mask is not None:
            found[self._path_of_mask(found)] = _joined(action_mask)
        for path in self._leaves:
            if path not in found:
                raise ValueError(self._missing(path, obs))
        arrays = {path: _array(value) for path, value in found.items()}
        first = next(iter(self._leaves.values()))
        num_rows = self._num_rows(first, arrays[first.path])
        try:
            leaves = {path: self._admitted(leaf, arrays[path], num_rows) for path, leaf in self._leaves.items()}
            self._contract.check_observations(leaves)
        except ContractViolation as violation:
            raise ValueError(str(violation)) from None
        return leaves, num_rows is None

    def _collect(self, value: object, path: str, found: dict[str, object]) -> None:
        if path in self._leaves:
            if isinstance(value, Mapping) and path in value and len(value) == 1:
                value = value[path]  # of an observation without parts, by its path ""
            found[path] = value
            return
        if isinstance(value, Mapping):
            parts = list(value.items())
        elif isinstance(value, tuple):
            parts = [(str(k), part) for k, part in enumerate(value)]
        else:
            expected = f"a dict by path, or nested as Gymnasium gives it, with {list(self._leaves)}"
            raise ValueError(f"{field_of('obs', path)}: expected {expected}, got {type(value).__name__} {shown(value)}")
        for name, part in parts:
            inner = f"{path}/{name}" if path else str(name)
            if inner in self._leaves or inner in self._inner:
                self._collect(part, inner, found)
            elif path:
                raise ValueError(f"{field_of('obs', inner)}: expected no such part; the policy sees {list(self._leaves)}")

    def _path_of_mask(self, found: Mapping[str, object]) -> str:
        if self._mask is None:
            raise ValueError("action_mask: expected None; the policy was trained without one (data.action_mask)")
        if self._mask in found:
            raise ValueError(f"action_mask: expected None; the mask is part {self._mask!r} of the observation")
        return self._mask

    def _missing(self, path: str, obs: object) -> str:
        source, _, name = path.partition(":")
        if path == self._mask and source in _OUTSIDE:
            return f"action_mask: expected {_OUTSIDE[source].format(name)}, got None"
        parts = f"parts {list(map(str, obs))}" if isinstance(obs, Mapping) else f"{type(obs).__name__} {shown(obs)}"
        return f"{field_of('obs', path)}: expected a part of the observation, got {parts}"

    @staticmethod
    def _num_rows(leaf: Leaf, value: object) -> int | None:
        """Number of observations; None for one without an axis of rows."""
        shape = np.shape(value) if isinstance(value, np.ndarray) else ()
        if shape == leaf.shape:
            return None
        if len(shape) != len(leaf.shape) + 1 or shape[1:] != leaf.shape or not shape[0]:
            one = "a whole number, or an array of shape (rows,)" if leaf.kind == "discrete" else f"shape {leaf.shape}, or (rows"
            many = "" if leaf.kind == "discrete" else f"{''.join(f', {size}' for size in leaf.shape)}) of many observations"
            arrived = f"shape {shape}" if isinstance(value, np.ndarray) else f"{type(value).__name__} {shown(value)}"
            raise ValueError(f"{field_of('obs', leaf.path)}: expected {one}{many}, got {arrived}")
        return int(shape[0])

    def _admitted(self, leaf: Leaf, value: object, num_rows: int | None) -> NDArray[Any]:
        """The leaf's rows, shape (R, *leaf.shape)."""
        dtype, field = self._dtypes[leaf.path], field_of("obs", leaf.path)
        if num_rows is None:
            return np.asarray(admit_leaf(value, leaf, dtype, field), dtype)[None]
        rows = dataclasses.replace(
            leaf, kind="multi_discrete" if leaf.kind == "discrete" else leaf.kind, shape=(num_rows, *leaf.shape)
        )
        return np.asarray(admit_leaf(value, rows, dtype, field), dtype)


def _array(value: object) -> object:
    """A tensor as an array; anything else as it is."""
    if not isinstance(value, Tensor):
        return value
    value = value.detach().cpu()
    return (value.float() if value.dtype == torch.bfloat16 else value).numpy()  # numpy has no bfloat16


def _joined(mask: object) -> object:
    """A mask with one array for each component as one array, along the last axis."""
    if isinstance(mask, tuple):
        return np.concatenate([np.asarray(_array(part)) for part in mask], axis=-1)
    return mask


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Put a module and its parts into evaluation mode, and each of them back into its own afterwards."""
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True


@torch.inference_mode()
def predicted(
    policy: Policy,
    leaves: Leaves,
    state: NDArray[Any] | Tensor | None,
    begins: NDArray[np.bool_] | None,
    generator: torch.Generator | None,
) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """Actions of the environment, shape (R, *action_shape), and the next state, shape (R, state_size).

    Args:
        policy: Who acts.
        leaves: By path, shape (R, *leaf.shape) each.
        state: Shape (R, state_size), or (state_size,) if R is 1; None where nothing is remembered.
        begins: Where an episode begins, shape (R,); None for nowhere.
        generator: Source of the drawn actions; None for the most probable ones.

    Raises:
        ValueError: The state or `begins` does not fit the policy and the observations, or the generator is none.
    """
    if not isinstance(generator, torch.Generator | None):
        raise ValueError(f"generator: expected a torch.Generator, got {type(generator).__name__} {shown(generator)}")
    parameter = next(policy.parameters())
    device, num_rows = parameter.device, len(next(iter(leaves.values())))
    seen = {path: torch.from_numpy(leaf.astype(policy.seen_as(path, leaf.dtype))).to(device) for path, leaf in leaves.items()}
    before = _state_of(policy, state, num_rows)
    rows = np.zeros(num_rows, np.bool_) if begins is None else np.broadcast_to(np.asarray(begins), (num_rows,))
    if rows.dtype != np.bool_:
        raise ValueError(f"episode_start: expected true or false for each observation, got {shown(begins)}")
    mask = None if before is None else torch.from_numpy(rows.copy()).to(device)
    noise = None if generator is None else policy.draw_noise(1, num_rows, generator)[0].to(device)
    with evaluation_mode(policy):
        actions, after = policy.act(seen, before, mask, noise)
    return policy.distribution.to_env(actions.cpu().numpy()), None if after is None else after.cpu().numpy()


def _state_of(policy: Policy, state: NDArray[Any] | Tensor | None, num_rows: int) -> Tensor | None:
    initial = policy.initial_state(num_rows)
    if state is None:
        return initial
    if initial is None:
        raise ValueError("state: expected None; the policy has no memory (model.memory)")
    shape = tuple(np.shape(state)) if isinstance(state, np.ndarray | Tensor) else None
    if shape not in ({tuple(initial.shape)} | ({tuple(initial.shape[1:])} if num_rows == 1 else set())):
        arrived = f"{type(state).__name__} {shown(state)}" if shape is None else f"shape {shape}"
        raise ValueError(f"state: expected shape {tuple(initial.shape)}, as the last call returned it, got {arrived}")
    return torch.as_tensor(state).to(initial).view(initial.shape)
