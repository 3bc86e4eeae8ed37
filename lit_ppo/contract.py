"""The trust boundary: the rules for every value from an environment, checked before anything uses it.

Rules, in the order in which they are checked:

==========================  =====================  ==================================================================
value                       checked where          rule
==========================  =====================  ==================================================================
the returned Python object  worker (`admit_*`)     a tuple of the right length; obs an array of the declared shape and
                                                   dtype kind; reward a real number; flags real booleans
observations                client (`Contract`)    finite, representable in float32, inside the declared space
                                                   (`check_membership`), inside `observation_range` (setting)
rewards                     client                 finite, representable in float32, inside `reward_range` (setting)
terminated, truncated       client                 0 or 1, not both (setting)
new episodes                client                 a first observation exactly where an episode ended
actions                     client, before sending integers inside the action space
==========================  =====================  ==================================================================

A check returns the value it has checked, so unchecked data cannot be used by accident. The usual case costs one vectorised
pass; only when that pass fails are the rules gone through one by one to name the offender.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lit_ppo.errors import ConfigError, ContractViolation, shown
from lit_ppo.spaces import EnvSpec

FLOAT32_MAX: Final = float(np.finfo(np.float32).max)


class VectorStep(NamedTuple):
    """One checked step of N environments.

    The arrays are views into the bridge's history and stay as they are for at least `EnvBridge.history_steps` steps.
    """

    obs: NDArray[Any]  # (N, *obs_shape) what to act on next: the first observation of a new episode where one ended
    next_obs: NDArray[Any]  # (N, *obs_shape) the true successor of the step, also where an episode ended
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


def admit_reset(returned: object) -> object:
    """The observation of what `env.reset` returned."""
    if type(returned) is not tuple or len(returned) != 2:
        raise ContractViolation("reset", "a tuple (obs, info)", shown(returned))
    return returned[0]


def admit_step(returned: object) -> tuple[Any, ...]:
    """What `env.step` returned, once it is known to have five parts."""
    if type(returned) is not tuple or len(returned) != 5:
        raise ContractViolation("step", "a tuple (obs, reward, terminated, truncated, info)", shown(returned))
    return returned


def admit_observation(value: object, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """An observation of the declared shape and dtype, from what one environment returned.

    A value of the same kind but another width is cast, unless that would change what it says: 1e300 is no float32.
    """
    if not isinstance(value, np.ndarray):
        raise ContractViolation("obs", f"a numpy array of shape {shape}", f"{type(value).__name__} {shown(value)}")
    if value.shape != shape:
        raise ContractViolation("obs", f"shape {shape}", f"shape {value.shape}")
    if value.dtype == dtype:
        return value
    if value.dtype.kind != dtype.kind:
        raise ContractViolation("obs", f"dtype {dtype}", f"dtype {value.dtype}")
    with np.errstate(over="ignore", invalid="ignore"):  # a signalling NaN is refused later, by its value
        cast = value.astype(dtype)
    lost = np.isinf(cast) & ~np.isinf(value) if dtype.kind == "f" else cast != value
    if lost.any():
        raise ContractViolation("obs", f"values that {dtype} can hold", shown(value[lost][0].item()))
    return cast


def admit_reward(value: object) -> float:
    """A reward as a float, from what one environment returned."""
    if type(value) is float:
        return value
    if isinstance(value, bool | np.bool_) or not isinstance(value, float | int | np.floating | np.integer):
        raise ContractViolation("reward", "a real number", f"{type(value).__name__} {shown(value)}")
    try:
        return float(value)
    except OverflowError as error:
        raise ContractViolation("reward", "a number that float64 can hold", shown(value)) from error


def admit_flag(name: str, value: object) -> bool:
    """A done flag, from what one environment returned."""
    if type(value) is bool:
        return value
    if isinstance(value, np.bool_):
        return bool(value)
    raise ContractViolation(name, "true or false", f"{type(value).__name__} {shown(value)}")


def _float_bound(bound: NDArray[np.float64], dtype: np.dtype[Any]) -> NDArray[Any]:
    """The bound in the observations' own dtype where that loses nothing: comparing like with like needs no casts."""
    with np.errstate(over="ignore"):  # float16 has no FLOAT32_MAX; the comparison sees that
        cast = bound.astype(dtype)
    return cast if (cast == bound).all() else bound


def _integer_bounds(
    low: NDArray[np.float64], high: NDArray[np.float64], dtype: np.dtype[Any]
) -> tuple[NDArray[Any], NDArray[Any]]:
    """The least and the greatest integer of `dtype` within [low, high]; where there is none, a least above the greatest.

    In float64 neither all bounds nor all values of 64-bit integers would be exact.
    """
    limits = np.iinfo(dtype)
    end = float(limits.max) + 1.0  # a power of two, which every float can hold; of int64, the first number beyond it
    low, high = np.ceil(low), np.floor(high)
    least, greatest = np.full(low.shape, limits.max, dtype), np.full(low.shape, limits.min, dtype)
    is_possible = (low < end) & (high >= limits.min)
    least[is_possible] = np.maximum(low[is_possible], limits.min).astype(dtype)
    greatest[is_possible & (high >= end)] = limits.max
    is_inside = is_possible & (high < end)
    greatest[is_inside] = high[is_inside].astype(dtype)
    return least, greatest


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
        if settings.obs_shape is not None and tuple(settings.obs_shape) != spec.obs_shape:
            raise ContractViolation("obs_shape", f"{tuple(settings.obs_shape)} (contract)", f"{spec.obs_shape} (handshake)")
        if settings.num_actions is not None and settings.num_actions != spec.num_actions:
            raise ContractViolation("num_actions", f"{settings.num_actions} (contract)", f"{spec.num_actions} (handshake)")
        self._space_low, self._space_high = (
            # float64 holds every bound of float32 and of the small integers exactly
            np.broadcast_to(np.asarray(bound, np.float64), int(np.prod(spec.obs_shape))).reshape(spec.obs_shape)
            for bound in (spec.obs_low, spec.obs_high)
        )
        self._limit_observations(membership=settings.check_membership != "off")
        self._ones, self._no_flags_set = b"", b""
        least, most = settings.reward_range or (-FLOAT32_MAX, FLOAT32_MAX)
        self._reward_low, self._reward_high = max(least, -FLOAT32_MAX), min(most, FLOAT32_MAX)

    def _limit_observations(self, membership: bool) -> None:
        """Set the bounds that observations are compared with.

        One comparison for each side covers all rules: NaN compares false, and +-inf lies outside +-FLOAT32_MAX.

        Args:
            membership: Whether the declared space counts.
        """
        self._checks_membership = membership
        lowest, highest = self.settings.observation_range or (-FLOAT32_MAX, FLOAT32_MAX)
        low, high = (
            np.full(self.spec.obs_shape, max(lowest, -FLOAT32_MAX)),
            np.full(self.spec.obs_shape, min(highest, FLOAT32_MAX)),
        )
        if membership:  # maximum, not clip: a range that misses the space must leave nothing
            low, high = np.maximum(low, self._space_low), np.minimum(high, self._space_high)
        dtype = np.dtype(self.spec.obs_dtype)
        if dtype.kind == "f":
            self._obs_low, self._obs_high = _float_bound(low, dtype), _float_bound(high, dtype)
            self._obs_is_free = False
        else:
            self._obs_low, self._obs_high = _integer_bounds(low, high, dtype)
            limits = np.iinfo(dtype)  # if every value of the dtype is allowed, there is nothing to compare
            self._obs_is_free = bool((self._obs_low == limits.min).all() and (self._obs_high == limits.max).all())
        self._scratch = np.empty((2, 0), np.bool_)

    def check_actions(self, actions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Actions of shape (N,), each in 0..num_actions-1.

        Raises:
            ValueError: They are not; the policy is at fault, not the environment.
        """
        # seen as unsigned, a negative number is a huge one: one comparison covers both sides
        if actions.dtype != np.int64 or actions.ndim != 1:
            raise ValueError(f"actions: expected int64 of shape (N,), got {actions.dtype} of shape {actions.shape}")
        if np.maximum.reduce(actions.view(np.uint64)) >= self.spec.num_actions:  # `max` would be twice as slow
            env = int(np.argmax(actions.view(np.uint64) >= self.spec.num_actions))
            raise ValueError(f"actions[{env}]: expected 0 to {self.spec.num_actions - 1}, got {int(actions[env])}")
        return actions

    def check_observations(self, obs: NDArray[Any]) -> NDArray[Any]:
        """First observations of episodes, shape (N, *obs_shape)."""
        while not self._obs_is_free and not ((obs >= self._obs_low) & (obs <= self._obs_high)).all():
            self._refuse_observations("obs", obs)
        return obs

    def check_values(
        self, observations: NDArray[Any], rewards: NDArray[np.float64], flags: bytes, expected_invalid: bytes
    ) -> None:
        """The values of one step of N environments, in one pass.

        Args:
            observations: `obs` and `next_obs`, or only one of them where they are the same: shape (K, N, *obs_shape).
            rewards: Shape (N,).
            flags: `terminated`, `truncated`, `reset` and `invalid`, one byte each for each environment: 4 * N bytes.
            expected_invalid: What the N bytes of `invalid` must be: the rows that were not stepped at all.
        """
        while not self._obs_is_free and not self._are_inside(observations):
            self._refuse_observations("next_obs", observations[-1])
            self._refuse_observations("obs", observations[0])
        # NaN is the largest of all numbers to `maximum`, and compares false
        if (self.settings.reward_range is not None or not np.maximum.reduce(np.absolute(rewards)) <= FLOAT32_MAX) and not (
            (rewards >= self._reward_low) & (rewards <= self._reward_high)
        ).all():
            self._refuse_rewards(rewards)
        if not self._flags_hold(flags, expected_invalid):
            self._refuse_flags(np.frombuffer(flags, np.uint8).reshape(4, -1), expected_invalid)

    def _are_inside(self, observations: NDArray[Any]) -> bool:
        if self._scratch.shape[1:] != observations.shape:
            self._scratch = np.empty((2, *observations.shape), np.bool_)
            # bounds written out: comparing many rows with one costs more than comparing them with as many
            self._lows, self._highs = (
                np.broadcast_to(bound, observations.shape).copy() for bound in (self._obs_low, self._obs_high)
            )
        inside, below = self._scratch
        np.greater_equal(observations, self._lows, out=inside)
        np.less_equal(observations, self._highs, out=below)
        np.logical_and(inside, below, out=inside)
        return b"\x00" not in inside.tobytes()  # a fifth of the price of `all`

    def _flags_hold(self, flags: bytes, expected_invalid: bytes) -> bool:
        """Whether the flags keep all their rules; as long integers, a byte for each environment, for speed."""
        n = len(expected_invalid)
        if len(self._ones) != n:
            self._ones, self._no_flags_set = b"\x01" * n, bytes(3 * n)
        if flags.startswith(self._no_flags_set) and flags.endswith(expected_invalid):
            return True  # no flag is set but those that have to be
        terminated = int.from_bytes(flags[:n], "little")
        truncated = int.from_bytes(flags[n : 2 * n], "little")
        reset = int.from_bytes(flags[2 * n : 3 * n], "little")
        invalid = int.from_bytes(flags[3 * n :], "little")
        ended, ones = terminated | truncated, int.from_bytes(self._ones, "little")
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

    def _refuse_observations(self, field: str, obs: NDArray[Any]) -> None:
        """Raise for the first bad component of `obs`, if there is one.

        If that is only outside the declared space and `check_membership` is `warn`, warn instead, and compare with the space
        no more.
        """
        with np.errstate(invalid="ignore"):  # a signalling NaN
            bad = ~((obs >= self._obs_low) & (obs <= self._obs_high))
        if not bad.any():
            return
        index = tuple(int(i) for i in np.argwhere(bad)[0])
        env, component, value = index[0], index[1:], obs[index].item()
        low, high = float(self._space_low[component]), float(self._space_high[component])
        name = f"{field}[{', '.join(str(i) for i in index)}]"
        if not math.isfinite(value):
            rule = "a finite value"
        elif abs(value) > FLOAT32_MAX:
            rule = "a value that float32 can hold"
        elif self._checks_membership and not low <= value <= high:
            space = f"[{low}, {high}] (the declared observation space"
            if self.settings.check_membership == "warn":
                self._on_warning(
                    f"{name}: expected a value in {space} of {self.spec.env_id}), got {value}; the run goes on without this "
                    "check. data.contract.check_membership=error stops instead, =off says nothing"
                )
                self._limit_observations(membership=False)
                return
            rule = f"a value in {space}; data.contract.check_membership=warn or off accepts it)"
        else:
            rule = f"a value in {list(self.settings.observation_range or ())} (data.contract.observation_range)"
        raise ContractViolation(name, rule, str(value), env)

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
