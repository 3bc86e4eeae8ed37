"""Transitions as JSON in TorchLean's rollout format, and a report on which of them keep the contract.

    {"spec": {...}, "transitions": [{
        "obs": [...], "action": 1, "reward": 1.0, "terminated": false, "truncated": false, "next_obs": [...],
        "env": 0, "episode": 0, "step": 0, "seed": 1
    }, ...]}

An observation with parts is an object with an array for each path; infinities and NaN are strings, as in the curve. The last
four keys of a transition, and `spec`, are ours: TorchLean reads such a file, and we read one of TorchLean's if we are told what
the environment announces.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lit_ppo.bridge.client import EnvBridge
from lit_ppo.contract import Contract, ContractSettings, admit_flag, admit_reward
from lit_ppo.curve import NON_FINITE
from lit_ppo.errors import ConfigError, ContractViolation, ProtocolError, shown
from lit_ppo.leaf_rules import admit_leaf, field_of
from lit_ppo.spaces import EnvSpec, Leaf, Leaves, number_to_json, spec_from_json, spec_to_json

Choose = Callable[[Leaves, NDArray[np.bool_]], NDArray[Any]]
"""From observations, shape (N, *leaf.shape) each, and whether an episode begins with them, to actions of the environment."""

_KEYS: Final = ("obs", "action", "reward", "terminated", "truncated", "next_obs")
_PLACE: Final = ("env", "episode", "step", "seed")


# -- export


def collect(bridge: EnvBridge, num_steps: int, choose: Choose, seed_of: Callable[[int, int], int]) -> dict[str, Any]:
    """Play, and note every transition.

    Args:
        bridge: The environments; they are reset first.
        num_steps: Steps of each environment.
        choose: Who acts.
        seed_of: As the bridge's `episode_seed`.

    Returns:
        The document, as plain data.
    """
    obs, num_envs = {path: leaf.copy() for path, leaf in bridge.reset().items()}, bridge.num_envs
    begins, lengths = np.ones(num_envs, np.bool_), [0] * num_envs
    transitions = []
    for _ in range(num_steps):
        actions, episodes = choose(obs, begins), bridge.episodes
        step = bridge.step(actions)
        begins = step.terminated | step.truncated
        for env in np.flatnonzero(step.valid).tolist():
            successor = step.final_obs if begins[env] else step.obs
            transitions.append(
                {
                    "obs": _to_json(obs, env),
                    "action": actions[env].tolist(),
                    "reward": float(step.rewards[env]),
                    "terminated": bool(step.terminated[env]),
                    "truncated": bool(step.truncated[env]),
                    "next_obs": _to_json(successor, env),
                    "env": env,
                    "episode": episodes[env],
                    "step": lengths[env],
                    "seed": seed_of(env, episodes[env]),
                }
            )
            lengths[env] = 0 if begins[env] else lengths[env] + 1
        obs = {path: leaf.copy() for path, leaf in step.obs.items()}
    return {"spec": spec_to_json(bridge.spec), "versions": bridge.versions, "transitions": transitions}


def _to_json(obs: Leaves, env: int) -> Any:
    leaves = {path: _numbers_to_json(leaf[env].tolist()) for path, leaf in obs.items()}
    return leaves[""] if list(leaves) == [""] else leaves


def _numbers_to_json(value: Any) -> Any:
    if isinstance(value, list):
        return [_numbers_to_json(item) for item in value]
    return number_to_json(value) if isinstance(value, float) else value


# -- check


class Violation(NamedTuple):
    """One value that breaks a rule."""

    transition: int  # its index in the file
    rule: str
    message: str


@dataclasses.dataclass
class BoundaryReport:
    """How many values were checked by each rule, and how many broke it.

    Attributes:
        num_transitions: Of the file.
        checked, violated: By rule, number of transitions.
        first: The first violations, in the order of the file.
    """

    num_transitions: int
    checked: Counter[str]
    violated: Counter[str]
    first: list[Violation]

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "transitions": self.num_transitions,
            "rules": {rule: {"checked": n, "violated": self.violated[rule]} for rule, n in self.checked.items()},
            "first": [violation._asdict() for violation in self.first],
        }


def check(
    document: object, spec: EnvSpec | None = None, settings: ContractSettings | None = None, num_shown: int = 12
) -> BoundaryReport:
    """Check every transition of a rollout against the contract.

    Args:
        document: What a rollout file holds.
        spec: What the environment announces; None for what the file says of it.
        settings: Demands beyond the rules that always hold; None for an observation inside its declared space.
        num_shown: How many violations the report names.

    Raises:
        ConfigError: This is no rollout, or nothing says what the environment announces.
    """
    if not isinstance(document, dict) or not isinstance(document.get("transitions"), list):
        raise ConfigError("expected a JSON object with a list of transitions")
    if spec is None:
        if not isinstance(document.get("spec"), dict):
            raise ConfigError("the file does not say what the environment announces; name it with --env_id")
        try:
            spec = spec_from_json(document["spec"])
        except (ProtocolError, ValueError, TypeError) as error:
            raise ConfigError(f"spec: {error}") from error
    checks = _Checks(spec, settings or ContractSettings(check_membership="error"))
    report = BoundaryReport(len(document["transitions"]), Counter(), Counter(), [])
    for index, transition in enumerate(document["transitions"]):
        for rule, found in checks.of(index, transition):
            report.checked[rule] += 1
            if found is not None:
                report.violated[rule] += 1
                if len(report.first) < num_shown:
                    report.first.append(Violation(index, rule, found))
    return report


class _Checks:
    """The contract's rules, for one transition after the other.

    Args:
        spec: What the environment announces.
        settings: Of the contract.
    """

    def __init__(self, spec: EnvSpec, settings: ContractSettings) -> None:
        self._spec, self._contract = spec, Contract(spec, settings)
        self._at_the_end = Contract(dataclasses.replace(spec, mask=None), settings)  # where no action need be possible
        self._before: dict[Any, Any] = {}  # the last transition of each environment

    def of(self, index: int, transition: object) -> Iterator[tuple[str, str | None]]:
        """Each rule that applies, and how it is broken; None if it is kept."""
        missing = [key for key in _KEYS if not isinstance(transition, dict) or key not in transition]
        yield "keys", f"expected {', '.join(_KEYS)}; missing: {', '.join(missing)}" if missing else None
        if not isinstance(transition, dict):
            return
        flags = {}
        for name in ("terminated", "truncated"):
            if name in transition:
                flags[name], found = _tried(admit_flag, name, transition[name])
                yield name, found
        ended = any(flags.values())
        for name in ("obs", "next_obs"):
            if name in transition:
                contract = self._at_the_end if name == "next_obs" and ended else self._contract
                admitted, found = _tried(self._admit, name, transition[name])
                yield f"{name}: parts, shapes and types", found
                if admitted is not None:
                    yield f"{name}: values", _tried(contract.check_observations, admitted, np.array([index]))[1]
        if "action" in transition:
            yield "action", _tried(self._check_action, transition["action"])[1]
        if "reward" in transition:
            reward, found = _tried(lambda: admit_reward(_number(transition["reward"])))
            yield "reward: type", found
            if reward is not None:
                yield "reward: value", _tried(self._contract.check_rewards, np.array([reward]))[1]
        if len(flags) == 2 and None not in flags.values():
            bits = bytes([flags["terminated"], flags["truncated"], ended, 0])
            yield "flags", _tried(self._contract.check_flags, bits, b"\0")[1]
        yield from self._succession(transition, ended)

    def _admit(self, name: str, value: object) -> Leaves:
        """Observations of one environment, shape (1, *leaf.shape) each."""
        leaves = self._spec.observation
        parts = {"": value} if [leaf.path for leaf in leaves] == [""] else value
        if not isinstance(parts, dict) or parts.keys() != {leaf.path for leaf in leaves}:
            arrived = sorted(parts) if isinstance(parts, dict) else shown(parts)
            raise ContractViolation(name, f"exactly the parts {sorted(leaf.path for leaf in leaves)}", str(arrived))
        return {leaf.path: _admitted(parts[leaf.path], leaf, field_of(name, leaf.path))[None] for leaf in leaves}

    def _check_action(self, value: object) -> None:
        self._contract.check_actions(_admitted(value, self._spec.action, "action")[None])

    def _succession(self, transition: dict[str, Any], ended: bool) -> Iterator[tuple[str, str | None]]:
        """Whether the transition follows the one before it, if the file says where each belongs."""
        if any(type(transition.get(key)) is not int for key in _PLACE[:3]):
            return
        env, episode, step = (transition[key] for key in _PLACE[:3])
        before = self._before.get(env)
        self._before[env] = (episode, step, ended, transition.get("next_obs"))
        if before is None:
            return
        last_episode, last_step, has_ended, next_obs = before
        if has_ended:
            follows = episode > last_episode and step == 0
            expected = f"step 0 of an episode after {last_episode}, which has ended"
        else:
            follows = (episode == last_episode and step == last_step + 1) or (episode > last_episode and step == 0)
            expected = f"step {last_step + 1} of episode {last_episode}, or step 0 of a later one"
        yield "order", None if follows else f"env {env}: expected {expected}, got step {step} of episode {episode}"
        if follows and step:
            is_same = transition.get("obs") == next_obs
            yield "obs: is next_obs before", None if is_same else f"env {env}: expected next_obs of the step before"


def _tried(function: Callable[..., Any], *arguments: Any) -> tuple[Any, str | None]:
    """What a check returns, and None; or None, and how its rule is broken."""
    try:
        return function(*arguments), None
    except (ContractViolation, ValueError) as violation:
        return None, str(violation)


def _admitted(value: object, leaf: Leaf, field: str) -> NDArray[Any]:
    """A value of the leaf from JSON.

    Raises:
        ContractViolation: It is something else.
    """
    dtype = np.dtype(leaf.dtype)
    if leaf.kind == "discrete":
        return np.asarray(admit_leaf(value, leaf, dtype, field))
    try:
        array = np.array(_numbers(value))
    except (ValueError, TypeError, OverflowError):
        raise ContractViolation(field, f"numbers in nested lists of shape {leaf.shape}", shown(value)) from None
    if array.dtype.kind in "iu" and dtype.kind != "b":  # JSON has one kind of number: 1.0 may be written as 1
        lossless = array.astype(np.float64 if dtype.kind == "f" else dtype)
        array = lossless if (lossless == array).all() else array
    return np.asarray(admit_leaf(array, leaf, dtype, field))


def _numbers(value: object) -> Any:
    return [_numbers(item) for item in value] if isinstance(value, list) else _number(value)


def _number(value: object) -> Any:
    return NON_FINITE.get(value, value) if isinstance(value, str) else value
