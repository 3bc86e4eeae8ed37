"""The trust boundary: the rules for every value from an environment, checked before anything uses it.

Rules, in the order in which they are checked:

==========================  =====================  ==================================================================
value                       checked where          rule
==========================  =====================  ==================================================================
the returned Python object  worker (`admit_*`)     a tuple of the right length; obs of exactly the declared parts, each in a
                                                   form that `Space.contains` admits, whose numbers the declared dtype can
                                                   hold; reward one real number (`SupportsFloat`); flags real booleans
observations, leaf by leaf  client (`Contract`)    finite, representable in float32, inside the declared space
                                                   (`check_membership`), inside `observation_range` (setting)
action masks                client                 zeros and ones, at least one action possible
rewards                     client                 finite, representable in float32, inside `reward_range` (setting)
terminated, truncated       client                 0 or 1, not both (setting)
new episodes                client                 a first observation exactly where an episode ended
actions                     client, before sending finite, inside the action space
==========================  =====================  ==================================================================

A check returns the value it has checked, so unchecked data cannot be used by accident. The usual case costs one vectorised
pass; only when that pass fails are the rules gone through one by one to name the offender.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lit_ppo.errors import ConfigError, ContractViolation, shown
from lit_ppo.leaf_rules import FLOAT32_MAX, NUMBERS, LeafRules, MaskRules, cure, field_of
from lit_ppo.spaces import EnvSpec, Leaf, Leaves


class VectorStep(NamedTuple):
    """One checked step of N environments.

    The arrays are views into the bridge's history and stay as they are for at least `EnvBridge.history_steps` steps.
    """

    obs: Leaves  # (N, *shape) each: what to act on next, the first observation of a new episode where one ended
    final_obs: Leaves  # (N, *shape) each: the true successor of the step, in the rows where an episode ended
    rewards: NDArray[np.float64]  # (N,)
    terminated: NDArray[np.bool_]  # (N,) the environment reached an end of its own
    truncated: NDArray[np.bool_]  # (N,) a limit from outside, such as a time limit: the episode could have gone on
    valid: NDArray[np.bool_]  # (N,) false where a row is an autoreset artefact and no transition at all
    any_ended: bool  # whether some episode ended
    all_valid: bool


@dataclass(frozen=True)
class ContractSettings:
    """Demands on an environment beyond the rules that always hold.

    Attributes:
        obs_shape: Shape that the handshake must announce; None takes what it announces.
        num_actions: Number of actions that the handshake must announce; None takes what it announces.
        check_membership: What follows when an observation is outside the declared observation space: `warn` once, with the
            figures, and go on; `error` to stop; `off` to say nothing.
        observation_range: [low, high] for every component of every observation; None for no limit.
        reward_range: [low, high] for every reward; None for no limit.
        exclusive_flags: Refuse a step that is both terminated and truncated.
    """

    obs_shape: list[int] | None = None
    num_actions: int | None = None
    check_membership: Literal["warn", "error", "off"] = "warn"
    observation_range: tuple[float, float] | None = None
    reward_range: tuple[float, float] | None = None
    exclusive_flags: bool = False

    def __post_init__(self) -> None:
        if self.check_membership not in ("warn", "error", "off"):
            raise ConfigError(f"data.contract.check_membership={self.check_membership}: expected warn, error or off")
        for name in ("observation_range", "reward_range"):
            limits = getattr(self, name)
            if limits is not None and not limits[0] < limits[1]:
                raise ConfigError(f"data.contract.{name}: expected [low, high] with low < high, got {list(limits)}")


def admit_reset(returned: object) -> tuple[Any, ...]:
    """What `env.reset` returned, once it is known to have two parts."""
    if not isinstance(returned, tuple) or len(returned) != 2:
        raise ContractViolation("reset", "a tuple (obs, info)", shown(returned))
    return returned


def admit_step(returned: object) -> tuple[Any, ...]:
    """What `env.step` returned, once it is known to have five parts."""
    if not isinstance(returned, tuple) or len(returned) != 5:
        raise ContractViolation("step", "a tuple (obs, reward, terminated, truncated, info)", shown(returned))
    return returned


def admit_reward(value: object) -> float:
    """A reward as a float, from what one environment returned: `SupportsFloat`, but one real number."""
    if type(value) is float:
        return value
    is_numpy = isinstance(value, np.generic | np.ndarray)  # whose texts, dates and complex numbers have __float__ as well
    is_number = value.dtype.kind in NUMBERS if is_numpy else hasattr(type(value), "__float__")  # type: ignore[attr-defined]
    if not is_number or getattr(value, "shape", ()) != ():
        raise ContractViolation("reward", "a real number", f"{type(value).__name__} {shown(value)}")
    try:
        return float(value)  # type: ignore[arg-type]
    except OverflowError as error:
        raise ContractViolation("reward", "a number that float64 can hold", shown(value)) from error
    except Exception as error:  # code of the environment
        arrived = f"{type(value).__name__} {shown(value)}, of which float makes none: {shown(error)}"
        raise ContractViolation("reward", f"a real number{cure(value)}", arrived) from error


def admit_flag(name: str, value: object) -> bool:
    """A done flag, from what one environment returned."""
    if type(value) is bool:
        return value
    if isinstance(value, np.bool_):
        return bool(value)
    raise ContractViolation(name, f"true or false{cure(value)}", f"{type(value).__name__} {shown(value)}")


class Contract:
    """The rules for the values of N environments, prepared once and applied at every step.

    Args:
        spec: What the environment announced.
        settings: Demands beyond the rules that always hold.
        resets_within_step: A new episode begins in the step that ended the old one; otherwise in the step after, whose
            row is then no transition (Gymnasium's NEXT_STEP, the mode of native vector environments).
        on_warning: Called with a line of text when `check_membership=warn` finds the first observation outside its space.

    Raises:
        ContractViolation: The announcement does not meet the settings.
    """

    def __init__(
        self,
        spec: EnvSpec,
        settings: ContractSettings | None = None,
        *,
        resets_within_step: bool = True,
        on_warning: Callable[[str], None] = lambda text: None,
    ) -> None:
        settings = settings or ContractSettings()
        self.spec, self.settings, self._on_warning = spec, settings, on_warning
        self._resets_within_step = resets_within_step
        shapes = [leaf.shape for leaf in spec.observation]
        if settings.obs_shape is not None and [tuple(settings.obs_shape)] != shapes:
            arrived = f"{shapes[0] if len(shapes) == 1 else shapes} (handshake)"
            raise ContractViolation("obs_shape", f"{tuple(settings.obs_shape)} (contract)", arrived)
        if settings.num_actions is not None and (settings.num_actions,) != _num_actions(spec.action):
            arrived = f"{spec.action.kind} {_num_actions(spec.action) or spec.action.shape} (handshake)"
            raise ContractViolation("num_actions", f"{settings.num_actions} (contract)", arrived)
        rules = (
            LeafRules(leaf, settings.check_membership, settings.observation_range, on_warning) for leaf in spec.observation
        )
        # if every value of the dtype is allowed, there is nothing to compare
        self._leaves = [(rule.leaf.path, rule) for rule in rules if not rule.is_free]
        self._mask = None if spec.mask is None else MaskRules(spec.action.choices)
        self._action_dtype = np.dtype(spec.action.dtype)
        self._action_rules = LeafRules(spec.action, space="action space")
        self._num_flags, self._ones, self._no_flags_set = 0, 0, b""
        reward = Leaf("", "box", (), "float64", -math.inf, math.inf)
        self._reward_rules = LeafRules(reward, "off", settings.reward_range)
        least, most = settings.reward_range or (-FLOAT32_MAX, FLOAT32_MAX)
        self._reward_low, self._reward_high = max(least, -FLOAT32_MAX), min(most, FLOAT32_MAX)

    def check_actions(self, actions: NDArray[Any]) -> NDArray[Any]:
        """Actions of shape (N, *shape), in the environment's own numbering, each inside the action space.

        Raises:
            ValueError: They are not; the policy is at fault, not the environment.
        """
        leaf = self.spec.action
        if actions.dtype != self._action_dtype or actions.shape[1:] != leaf.shape or not actions.ndim:
            expected = f"{leaf.dtype} of shape (N{''.join(f', {size}' for size in leaf.shape)}{'' if leaf.shape else ','})"
            raise ValueError(f"actions: expected {expected}, got {actions.dtype} of shape {actions.shape}")
        if not self._action_rules.are_inside(actions):
            try:
                self._action_rules.refuse("actions", actions)
            except ContractViolation as violation:
                raise ValueError(str(violation)) from None
        return actions

    def check_observations(self, obs: Leaves, rows: NDArray[np.intp] | None = None) -> Leaves:
        """Observations of K environments.

        Args:
            obs: By path, shape (K, *shape) each.
            rows: Which environments they are of, shape (K,); None for 0 to K - 1.
        """
        for path, rules in self._leaves:
            while not rules.are_inside(obs[path]):
                rules.refuse(field_of("obs", path), obs[path], rows)
        if self._mask is not None and self.spec.mask is not None:
            self._mask.refuse(field_of("obs", self.spec.mask), obs[self.spec.mask], rows)
        return obs

    def check_values(
        self, obs: Leaves, final_obs: Leaves, rewards: NDArray[np.float64], flags: bytes, expected_invalid: bytes
    ) -> NDArray[np.intp] | None:
        """The values of one step of N environments.

        Args:
            obs, final_obs: As in `VectorStep`.
            rewards: Shape (N,).
            flags: `terminated`, `truncated`, `reset` and `invalid`, one byte each for each environment: 4 * N bytes.
            expected_invalid: What the N bytes of `invalid` must be: the rows that were not stepped at all.

        Returns:
            The rows in which an episode ended and the next one began; None if there is none.
        """
        self.check_flags(flags, expected_invalid)
        n, ended = len(expected_invalid), None
        if self._resets_within_step and not flags.startswith(self._no_flags_set):
            bits = np.frombuffer(flags, np.bool_)
            [ended] = (bits[:n] | bits[n : 2 * n]).nonzero()
            self._check_final_observations(final_obs, ended)
        self.check_observations(obs)
        self.check_rewards(rewards)
        return ended

    def check_flags(self, flags: bytes, expected_invalid: bytes) -> bytes:
        """Flags of one step of N environments; arguments as in `check_values`."""
        n = len(expected_invalid)
        if self._num_flags != n:
            self._ones, self._no_flags_set = int.from_bytes(b"\x01" * n, "little"), bytes(3 * n)
            self._num_flags = n
        if not self._flags_hold(flags, expected_invalid):
            self._refuse_flags(np.frombuffer(flags, np.uint8).reshape(4, -1), expected_invalid)
        return flags

    def check_rewards(self, rewards: NDArray[np.float64]) -> NDArray[np.float64]:
        """Rewards of N environments, shape (N,)."""
        if not self._reward_rules.are_inside(rewards):
            self._refuse_rewards(rewards)
        return rewards

    def _check_final_observations(self, final_obs: Leaves, ended: NDArray[np.intp]) -> None:
        """Check what episodes ended with; but no mask, since no action need be possible there."""
        for path, rules in self._leaves:
            values = final_obs[path].take(ended, axis=0)
            while not rules.hold(values):
                rules.refuse(field_of("final_obs", path), values, ended)

    def _flags_hold(self, flags: bytes, expected_invalid: bytes) -> bool:
        """Whether the flags keep all their rules; as long integers, a byte for each environment, for speed."""
        n = len(expected_invalid)
        if flags.startswith(self._no_flags_set) and flags.endswith(expected_invalid):
            return True  # no flag is set but those that have to be
        terminated = int.from_bytes(flags[:n], "little")
        truncated = int.from_bytes(flags[n : 2 * n], "little")
        reset = int.from_bytes(flags[2 * n : 3 * n], "little")
        invalid = int.from_bytes(flags[3 * n :], "little")
        ended, ones = terminated | truncated, self._ones
        return (
            ended | reset | invalid | ones == ones
            and flags[3 * n :] == expected_invalid
            and not ended & invalid
            and reset == (ended if self._resets_within_step else 0)
            and not (self.settings.exclusive_flags and terminated & truncated)
        )

    def _refuse_flags(self, flags: NDArray[np.uint8], expected_invalid: bytes) -> None:
        """Raise for the first rule that is broken."""
        for name, row in zip(("terminated", "truncated", "reset", "invalid"), flags, strict=True):
            if (row > 1).any():
                env = int(np.argmax(row > 1))
                raise ContractViolation(f"{name}[{env}]", "true or false", f"byte {row[env]}", env)
        terminated, truncated, reset, invalid = flags.view(np.bool_)
        ended = terminated | truncated
        first_obs_due = ended if self._resets_within_step else np.zeros_like(ended)
        rules = [
            ("invalid", "true exactly where no transition was made", invalid != np.frombuffer(expected_invalid, np.bool_)),
            ("ended", "no ending where no transition was made", invalid & ended),
            ("reset", "a first observation exactly where an episode ended", reset != first_obs_due),
        ]
        if self.settings.exclusive_flags:
            rules.append(("terminated", "not both terminated and truncated", terminated & truncated))
        for name, rule, broken in rules:
            if broken.any():
                env = int(np.argmax(broken))
                arrived = f"terminated={terminated[env]} truncated={truncated[env]} reset={reset[env]} invalid={invalid[env]}"
                raise ContractViolation(f"{name}[{env}]", rule, arrived, env)

    def _refuse_rewards(self, rewards: NDArray[np.float64]) -> None:
        env = int(np.argmin((rewards >= self._reward_low) & (rewards <= self._reward_high)))
        value = float(rewards[env])
        if not np.isfinite(value):
            rule = "a finite value"
        elif abs(value) > FLOAT32_MAX:
            rule = "a value that float32 can hold"
        else:
            rule = f"a value in {[self._reward_low, self._reward_high]} (data.contract.reward_range)"
        raise ContractViolation(f"rewards[{env}]", rule, str(value), env)


def _num_actions(action: Leaf) -> tuple[int, ...]:
    """How many actions there are, if they are numbered."""
    return action.choices if action.kind == "discrete" else ()
