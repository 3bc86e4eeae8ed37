"""What a checkpoint must hold for a run to continue from it: every key, with its type, shape and length.

It is checked before anything of the checkpoint is used, so a run never continues from half of one. What needs the environment,
the actions of its journal, is checked by the bridge before they are replayed.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from lit_ppo.bridge.settings import EnvironmentSettings
from lit_ppo.errors import CheckpointError, ProtocolError, shown
from lit_ppo.spaces import EnvSpec, spec_from_json

Structure = Callable[[Any, str], None]  # raises CheckpointError unless a value, which has this key, is as it must be
RUN_LENGTH_KEY: Final = "lit_ppo_run_env_steps"
RUNNING_RETURNS_KEY: Final = "lit_ppo_running_returns"
WEIGHTS_ONLY_KEY: Final = "lit_ppo_weights_only"  # in a checkpoint that was saved where there was no update boundary
_SETTINGS_KEY: Final = "lit_ppo_config"  # of a run of the command line, which has all callbacks
_SEEDS: Final = 1 << 63
_DIGESTS: Final = 1 << 64
_FOR_SPEED: Final = ("capturable", "foreach", "fused")  # switches of an optimizer that depend on the device


def saved_spec(checkpoint: Mapping[str, Any]) -> EnvSpec | None:
    """The spaces that a checkpoint's policy was made for; None if the checkpoint does not say.

    Raises:
        CheckpointError: They are malformed.
    """
    parameters = checkpoint.get("hyper_parameters")
    if not isinstance(parameters, dict) or "spec" not in parameters:
        return None
    _of_type(dict)(parameters["spec"], "hyper_parameters.spec")
    try:
        return spec_from_json(parameters["spec"])
    except (ProtocolError, ValueError) as error:
        raise CheckpointError(f"the checkpoint's hyper_parameters.spec: {error}") from None


def _refuse(key: str, expected: str, value: object) -> None:
    raise CheckpointError(f"the checkpoint's {key}: expected {expected}, got {shown(value)}")


def _of_type(*kinds: type) -> Structure:
    def require(value: Any, key: str) -> None:
        if type(value) not in kinds:
            _refuse(key, " or ".join(kind.__name__ for kind in kinds), value)

    return require


def _whole(end: int = _SEEDS) -> Structure:
    def require(value: Any, key: str) -> None:
        if type(value) is not int or not 0 <= value < end:
            _refuse(key, f"a whole number from 0 to {end - 1}", value)

    return require


def _list_of(item: Structure, length: int | None = None) -> Structure:
    def require(value: Any, key: str) -> None:
        if type(value) not in (list, tuple) or length not in (None, len(value)):
            _refuse(key, "a list" if length is None else f"a list of {length}", value)
        for index, part in enumerate(value):
            item(part, f"{key}[{index}]")

    return require


def _optional(structure: Structure) -> Structure:
    def require(value: Any, key: str) -> None:
        if value is not None:
            structure(value, key)

    return require


def _mapping(parts: Mapping[Any, Structure], may_have: Mapping[Any, Structure] | None = None) -> Structure:
    """Exactly these keys, and perhaps those of `may_have`."""

    def require(value: Any, key: str) -> None:
        if not isinstance(value, dict):
            _refuse(key, "a mapping", value)
        known = {**(may_have or {}), **parts}
        for name in parts:
            if name not in value:
                raise CheckpointError(f"the checkpoint's {key}: expected {shown(name)}, which is missing")
        for name, part in value.items():
            if name not in known:
                raise CheckpointError(f"the checkpoint's {key}: {shown(name)} is none of its keys")
            known[name](part, f"{key}.{name}")

    return require


def _number(value: Any, key: str) -> None:
    _of_type(float, int)(value, key)


def _anything(value: Any, key: str) -> None:
    """No demands."""


def _like_tensor(wanted: Tensor) -> Structure:
    def require(value: Any, key: str) -> None:
        is_float = wanted.is_floating_point()
        is_plain = isinstance(value, Tensor) and value.layout == torch.strided and not value.is_meta
        if not is_plain or value.shape != wanted.shape or value.is_floating_point() != is_float:
            kind = "floating-point numbers" if is_float else "whole numbers"
            found = f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else value
            if isinstance(value, Tensor) and not is_plain:
                found = f"{found}, {value.layout} on {value.device}"
            _refuse(key, f"a tensor of {kind} of shape {tuple(wanted.shape)}", found)

    return require


def _like(sample: Any) -> Structure:
    """The structure of a value of the run that is about to continue; where that is null or a list, anything may be."""
    if isinstance(sample, dict):
        return _mapping({name: _like(part) for name, part in sample.items()})
    if isinstance(sample, Tensor):
        return _like_tensor(sample)
    return _anything if sample is None or isinstance(sample, list | tuple) else _of_type(type(sample))


def _option_like(name: str, sample: Any) -> Structure:
    """The structure of an option of the optimizer: as many numbers, or the same switch, if it decides on what is computed."""
    if isinstance(sample, bool) and name not in _FOR_SPEED:
        return _exactly(sample)
    if isinstance(sample, tuple):
        return _list_of(_number, len(sample))
    return _like(sample)


def _exactly(sample: object) -> Structure:
    def require(value: Any, key: str) -> None:
        if value is not sample:
            _refuse(key, repr(sample), value)

    return require


@dataclass(frozen=True)
class Continuation:
    """The run that is to continue from a checkpoint.

    Attributes:
        parameters: Names and tensors of the module's state; empty if it may load others.
        optimizer: The state that the run's optimizer has after a step; None if that is not known.
        num_schedulers: Number of learning-rate schedulers; None if that is not known.
        loops: The state of each of the Trainer's loops.
        callbacks: The state of each callback of ours.
        data_key: Under which key the datamodule's state is; None if there is no datamodule.
        is_fit: Whether the run trains; otherwise only parameters and counters are used.
    """

    parameters: Mapping[str, Tensor]
    optimizer: dict[str, Any] | None
    num_schedulers: int | None
    loops: Mapping[str, Any]
    callbacks: Mapping[str, Any]
    data_key: str | None
    is_fit: bool

    def require(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint that is not whole; the datamodule's part is for `require_data`.

        Raises:
            CheckpointError: Names the key, and says what was expected there.
        """
        if self.is_fit and WEIGHTS_ONLY_KEY in checkpoint:
            raise CheckpointError(
                "the checkpoint holds weights only, so no run can continue from it; "
                "use PPOModule.load_from_checkpoint, and fit without ckpt_path"
            )
        parts: dict[str, Structure] = {"epoch": _whole(), "global_step": _whole()}
        if self.parameters:
            parts["state_dict"] = _mapping({name: _like_tensor(tensor) for name, tensor in self.parameters.items()})
        if self.data_key is not None:
            parts[self.data_key] = _of_type(dict)
        if self.is_fit:
            has_all_callbacks = _SETTINGS_KEY in checkpoint
            parts["loops"] = _mapping({name: _like(state) for name, state in self.loops.items()})
            parts["optimizer_states"] = _list_of(self._optimizer, 1)
            parts["lr_schedulers"] = _list_of(_of_type(dict), self.num_schedulers)
            parts["callbacks"] = lambda states, key: self._callbacks(states, key, has_all_callbacks)
            parts[RUN_LENGTH_KEY] = _optional(_whole())
            parts[RUNNING_RETURNS_KEY] = _optional(_like_tensor(torch.empty(self._num_envs(checkpoint), device="meta")))
        for name, structure in parts.items():
            if name not in checkpoint:
                raise CheckpointError(f"the checkpoint: expected {shown(name)}, which is missing")
            structure(checkpoint[name], name)

    def _num_envs(self, checkpoint: dict[str, Any]) -> int:
        """As the bridge's state says, which `require_data` checks; 0 if there is none."""
        state = checkpoint.get(self.data_key or "")
        bridge = state.get("bridge") if isinstance(state, dict) else None
        num_envs = bridge.get("num_envs") if isinstance(bridge, dict) else None
        return num_envs if type(num_envs) is int and 0 <= num_envs < _SEEDS else 0

    def _optimizer(self, state: Any, key: str) -> None:
        groups = None if self.optimizer is None else self.optimizer["param_groups"]
        list_of_groups = _list_of(_of_type(dict), None if groups is None else len(groups))
        _mapping({"state": _of_type(dict), "param_groups": list_of_groups})(state, key)
        if self.optimizer is None or groups is None:
            return
        for number, (found, made) in enumerate(zip(state["param_groups"], groups, strict=True)):
            where = f"{key}.param_groups[{number}]"
            _mapping({name: _option_like(name, part) for name, part in made.items()})(found, where)
            if found["params"] != made["params"]:
                _refuse(f"{where}.params", f"{len(made['params'])} parameters", found["params"])
        of_parameters = {number: _like(part) for number, part in self.optimizer["state"].items()}
        _mapping(of_parameters if state["state"] else {})(state["state"], f"{key}.state")

    def _callbacks(self, states: Any, key: str, has_all: bool) -> None:
        _of_type(dict)(states, key)
        for name, sample in self.callbacks.items():
            if name in states:
                _OF_CALLBACKS.get(name, _like(sample))(states[name], f"{key}.{name}")
            elif has_all and name in _OF_CALLBACKS:
                raise CheckpointError(f"the checkpoint's {key}: expected {shown(name)}, which is missing")


def checked_tensors(saved: Any, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The saved parameters and buffers of a module, if they are tensors like its own; it may lack some, and have others.

    Raises:
        CheckpointError: Names the key, and says what was expected there.
    """
    _of_type(dict, OrderedDict)(saved, "state_dict")
    common = {name: saved[name] for name in own if name in saved}
    _mapping({name: _like_tensor(own[name]) for name in common})(common, "state_dict")
    return common


def require_data(state: Any, policy_state: Tensor | None, *, is_fit: bool, has_more: bool) -> None:
    """Refuse the state of a datamodule that is not whole. Whether it is of the same environments, the bridge says.

    Args:
        state: As `RolloutDataModule.state_dict` makes it.
        policy_state: What the policy remembers at the beginning of an episode, shape (1, state_size); None for nothing.
        is_fit: Whether the run trains; otherwise only the counters are used.
        has_more: Whether a subclass may have put more into it.

    Raises:
        CheckpointError: Names the key, and says what was expected there.
    """
    bridge = state.get("bridge") if isinstance(state, dict) else None
    num_envs = bridge.get("num_envs") if isinstance(bridge, dict) else None
    if type(num_envs) is not int or num_envs < 1:
        num_envs = 1
    unfinished: dict[str, Structure] = {
        "statistics": _mapping({"returns": _list_of(_number, num_envs), "lengths": _list_of(_whole(), num_envs)}),
        "begins": _list_of(_of_type(bool), num_envs),
        "policy_state": _of_type(type(None)) if policy_state is None else _like_tensor(policy_state.expand(num_envs, -1)),
        "bridge": lambda value, key: _require_bridge(value, key, num_envs),
    }
    parts: dict[str, Structure] = {"update": _whole(), "env_steps": _whole(), "seed": _whole()}
    if isinstance(state, dict) and not unfinished.keys().isdisjoint(state):
        parts |= unfinished if is_fit else dict.fromkeys(unfinished, _anything)
    may_have: dict[str, Structure] = {"shards": _whole()}  # which older checkpoints lack
    _mapping(parts, dict.fromkeys(state, _anything) | may_have if has_more else may_have)(state, "datamodule")


def _require_bridge(state: Any, key: str, num_envs: int) -> None:
    is_native = isinstance(state, dict) and state.get("vectorization") == "native"
    journal = {
        "seeds": _list_of(_whole(), num_envs),
        "first_digests": _list_of(_whole(_DIGESTS), num_envs),
        "lost": _list_of(_of_type(bool), num_envs),
        "actions": _list_of(_of_type(str), num_envs),
        "digests": _list_of(_of_type(str), num_envs),
    }
    parts = {
        "env_id": _of_type(str),
        "num_envs": _whole(),
        "vectorization": _of_type(str),
        "num_workers": _whole(),
        "episodes": _list_of(_whole(), num_envs),
        "rows": _of_type(str),
        "restarts": _whole(),
        "abandoned_episodes": _whole(),
        "journal": _mapping(journal),
        **({"snapshots": _list_of(_of_type(dict)), "ended": _of_type(str)} if is_native else {}),
    }
    _mapping(parts, dict.fromkeys(EnvironmentSettings.__dataclass_fields__, _anything))(state, key)


def _latest_evaluation(value: Any, key: str) -> None:
    _list_of(_anything, 4)(value, key)
    for index, structure in enumerate((_whole(), _whole(), _list_of(_number), _list_of(_whole()))):
        structure(value[index], f"{key}[{index}]")


def _curve(value: Any, key: str) -> None:
    _mapping({"steps": _list_of(_whole()), "returns": _list_of(_number)})(value, key)
    _list_of(_number, len(value["steps"]))(value["returns"], f"{key}.returns")


# The callbacks of every run of the command line, and what the state of a fresh one does not tell.
_OF_CALLBACKS: Final[dict[str, Structure]] = {
    "GreedyEvaluation": _mapping({"latest": _optional(_latest_evaluation)}),
    "StopWhenSolved": _mapping({"solved_at": _optional(_whole()), "considered": _of_type(int)}),
    "CurveExport": _curve,
    "RunCheckpoint": _mapping({"best": _optional(_list_of(_anything, 2)), "best_model_path": _of_type(str)}),
}
