"""The trust boundary: what every value that comes from an environment must satisfy before anything may use it.

Rules, in the order in which they are checked:

==========================  =====================  ==================================================================
value                       checked where          rule
==========================  =====================  ==================================================================
the returned Python object  worker (`admit_*`)     a tuple of the right length; obs an array of the declared shape and
                                                   dtype kind; reward a real number; flags real booleans
observations                client (`Contract`)    finite, representable in float32, inside the declared space
                                                   (setting), inside `observation_range` (setting)
rewards                     client                 finite, representable in float32, inside `reward_range` (setting)
terminated, truncated       client                 0 or 1, not both (setting)
new episodes                client                 a first observation exactly where an episode ended
actions                     client, before sending integers inside the action space
==========================  =====================  ==================================================================

A check returns the value it has checked, so unchecked data cannot be used by accident. The usual case costs one vectorised
pass; only when that pass fails are the rules gone through one by one to name the offender.
"""

import math
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lit_ppo.errors import ConfigError, ContractViolation

FLOAT32_MAX: Final = float(np.finfo(np.float32).max)
_SHOWN_CHARACTERS: Final = 120


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
class EnvSpec:
    """What an environment says of itself in the handshake, as plain data.

    Attributes:
        env_id: Gymnasium id.
        obs_shape: Shape of one observation.
        obs_dtype: Name of the observations' numpy dtype.
        obs_low: Lower bound of the declared space, one number for all components or one for each (flat, C order).
        obs_high: Upper bound, likewise.
        num_actions: Number of discrete actions.
        action_start: The environment's name for action 0.
        reward_threshold: Average return at which the environment counts as solved, if it says so.
        max_episode_steps: Time limit, if there is one.
    """

    env_id: str
    obs_shape: tuple[int, ...]
    obs_dtype: str
    obs_low: float | tuple[float, ...]
    obs_high: float | tuple[float, ...]
    num_actions: int
    action_start: int = 0
    reward_threshold: float | None = None
    max_episode_steps: int | None = None


@dataclass(frozen=True)
class ContractSettings:
    """What the user demands of an environment beyond the rules that always hold.

    Attributes:
        obs_shape: Shape that the handshake must announce; None takes what it announces.
        num_actions: Number of actions that the handshake must announce; None takes what it announces.
        check_membership: Refuse observations outside the declared observation space.
        observation_range: [low, high] for every component of every observation; None for no limit.
        reward_range: [low, high] for every reward; None for no limit.
        exclusive_flags: Refuse a step that is both terminated and truncated.
    """

    obs_shape: list[int] | None = None
    num_actions: int | None = None
    check_membership: bool = True
    observation_range: tuple[float, float] | None = None
    reward_range: tuple[float, float] | None = None
    exclusive_flags: bool = False

    def __post_init__(self) -> None:
        for name in ("observation_range", "reward_range"):
            limits = getattr(self, name)
            if limits is not None and not limits[0] < limits[1]:
                raise ConfigError(f"contract.{name}: expected [low, high] with low < high, got {list(limits)}")


def shown(value: object) -> str:
    """`repr` of any value, however broken, on one line of bounded length."""
    try:
        text = repr(value)
    except Exception as error:  # a broken __repr__ must not hide the violation that is being reported
        text = f"<{type(value).__name__} whose repr raises {type(error).__name__}>"
    text = text.replace("\n", " ")
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 3] + "..."


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
    """The rules for the values of N environments, made ready once and applied at every step.

    Args:
        spec: What the environment announced.
        settings: What the user demands beyond that.
        resets_within_step: A new episode begins in the step that ended the old one; otherwise in the step after, whose
            row is then no transition (Gymnasium's NEXT_STEP, the mode of native vector environments).

    Raises:
        ContractViolation: The announcement does not meet the settings.
    """

    def __init__(
        self,
        spec: EnvSpec,
        settings: ContractSettings | None = None,
        *,
        resets_within_step: bool = True,
    ) -> None:
        settings = settings or ContractSettings()
        self.spec, self.settings = spec, settings
        self._resets_within_step = resets_within_step
        if settings.obs_shape is not None and tuple(settings.obs_shape) != spec.obs_shape:
            raise ContractViolation("obs_shape", f"{tuple(settings.obs_shape)} (contract)", f"{spec.obs_shape} (handshake)")
        if settings.num_actions is not None and settings.num_actions != spec.num_actions:
            raise ContractViolation("num_actions", f"{settings.num_actions} (contract)", f"{spec.num_actions} (handshake)")
        # float64 bounds hold every bound of float32 and of the small integers exactly
        low = np.broadcast_to(np.asarray(spec.obs_low, dtype=np.float64), int(np.prod(spec.obs_shape)))
        high = np.broadcast_to(np.asarray(spec.obs_high, dtype=np.float64), int(np.prod(spec.obs_shape)))
        self._space_low, self._space_high = low.reshape(spec.obs_shape), high.reshape(spec.obs_shape)
        lowest, highest = (-FLOAT32_MAX, FLOAT32_MAX)
        if settings.observation_range is not None:
            lowest, highest = max(lowest, settings.observation_range[0]), min(highest, settings.observation_range[1])
        if not settings.check_membership:
            low, high = np.full_like(low, -np.inf), np.full_like(high, np.inf)
        # one comparison per side covers everything: NaN compares false, +-inf lies outside +-FLOAT32_MAX
        # (not clip: a range that misses the space altogether must leave nothing, not the range's own end)
        low, high = np.maximum(low, lowest).reshape(spec.obs_shape), np.minimum(high, highest).reshape(spec.obs_shape)
        dtype = np.dtype(spec.obs_dtype)
        if dtype.kind == "f":
            self._obs_low, self._obs_high = _float_bound(low, dtype), _float_bound(high, dtype)
            self._obs_is_free = False
        else:
            self._obs_low, self._obs_high = _integer_bounds(low, high, dtype)
            limits = np.iinfo(dtype)  # if all that the dtype can hold is allowed, there is nothing to compare
            self._obs_is_free = bool((self._obs_low == limits.min).all() and (self._obs_high == limits.max).all())
        self._scratch, self._ones, self._quiet = np.empty((2, 0), np.bool_), b"", b""
        self._lows, self._highs = self._obs_low, self._obs_high
        least, most = settings.reward_range or (-FLOAT32_MAX, FLOAT32_MAX)
        self._reward_low, self._reward_high = max(least, -FLOAT32_MAX), min(most, FLOAT32_MAX)

    def check_actions(self, actions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Actions of shape (N,), each in 0..num_actions-1.

        Raises:
            ValueError: They are not; whoever chose them is at fault, not the environment.
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
        if not self._obs_is_free and not ((obs >= self._obs_low) & (obs <= self._obs_high)).all():
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
        if not self._obs_is_free and not self._are_inside(observations):
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
            self._ones, self._quiet = b"\x01" * n, bytes(3 * n)
        if flags.startswith(self._quiet) and flags.endswith(expected_invalid):
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
        """Raise for the first bad component of `obs`, if there is one."""
        with np.errstate(invalid="ignore"):  # a signalling NaN
            bad = ~((obs >= self._obs_low) & (obs <= self._obs_high))
        if not bad.any():
            return
        index = tuple(int(i) for i in np.argwhere(bad)[0])
        env, component, value = index[0], index[1:], obs[index].item()
        low, high = float(self._space_low[component]), float(self._space_high[component])
        if not math.isfinite(value):
            rule = "a finite value"
        elif abs(value) > FLOAT32_MAX:
            rule = "a value that float32 can hold"
        elif self.settings.check_membership and not low <= value <= high:
            rule = f"a value in [{low}, {high}] (the declared observation space; contract.check_membership=false accepts it)"
        else:
            rule = f"a value in {list(self.settings.observation_range or ())} (contract.observation_range)"
        indices = ", ".join(str(i) for i in index)
        raise ContractViolation(f"{field}[{indices}]", rule, str(value), env)

    def _refuse_rewards(self, rewards: NDArray[np.float64]) -> None:
        env = int(np.argmin((rewards >= self._reward_low) & (rewards <= self._reward_high)))
        value = float(rewards[env])
        if not np.isfinite(value):
            rule = "a finite value"
        elif abs(value) > FLOAT32_MAX:
            rule = "a value that float32 can hold"
        else:
            rule = f"a value in {[self._reward_low, self._reward_high]} (contract.reward_range)"
        raise ContractViolation(f"rewards[{env}]", rule, str(value), env)
