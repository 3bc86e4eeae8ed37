"""What an environment says of itself: its spaces and limits as plain data, and their JSON."""

import math
import sys
from dataclasses import dataclass
from typing import Any, Final

from numpy.typing import NDArray

from lit_ppo.bridge.protocol import take
from lit_ppo.errors import ProtocolError, shown

MAX_OBS_COMPONENTS: Final = 1 << 24


@dataclass(frozen=True)
class EnvSpec:
    """What an environment says of itself in the handshake, as plain data.

    Attributes:
        env_id: Gymnasium id.
        obs_shape: Shape of one observation.
        obs_dtype: Name of the observations' numpy dtype.
        obs_low: Lower bound of the declared space, one number for all components or one for each (flat, C order).
        obs_high: Upper bound, in the same form.
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


def require_supported_size(env_id: str, obs_shape: tuple[int, ...]) -> None:
    """Refuse observations without components, and those that are too large.

    Raises:
        ValueError: Names the environment and the limit.
    """
    if not obs_shape or min(obs_shape) < 1 or math.prod(obs_shape) > MAX_OBS_COMPONENTS:
        raise ValueError(
            f"env_id={env_id}: observations of shape {obs_shape} are not supported; "
            f"expected 1 to {MAX_OBS_COMPONENTS} components"
        )


def bound_to_json(bound: NDArray[Any]) -> Any:
    """Bounds of a Box as JSON: one value if all are equal; infinities are strings, as in the curve."""
    flat = bound.ravel()
    if flat.size and (flat == flat[0]).all():
        return _number_to_json(float(flat[0]))
    return [_number_to_json(float(value)) for value in flat]


def _number_to_json(value: float) -> float | str:
    return value if math.isfinite(value) else "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _number_from_json(value: object, name: str) -> float:
    if value in ("Infinity", "-Infinity"):
        return math.inf if value == "Infinity" else -math.inf
    if isinstance(value, float | int) and type(value) is not bool and abs(value) <= sys.float_info.max:
        return float(value)
    raise ProtocolError(f"{name}: expected a number, Infinity or -Infinity, got {shown(value)}")


def spec_from_json(message: dict[str, Any]) -> EnvSpec:
    """The environment's announcement, checked.

    Raises:
        ProtocolError: A field is missing or malformed.
        ValueError: A space that this version cannot step; the message says which.
    """
    env_id = take(message, "env_id", str)
    observation, action = take(message, "observation_space", dict), take(message, "action_space", dict)
    if take(observation, "type", str) != "Box":
        raise ValueError(
            f"env_id={env_id}: observation space {shown(observation.get('repr'))} is not supported; "
            "lit_ppo trains on Box observations"
        )
    if take(action, "type", str) != "Discrete":
        raise ValueError(
            f"env_id={env_id}: action space {shown(action.get('repr'))} is not supported; lit_ppo trains on Discrete actions"
        )
    shape = tuple(take({"shape": size}, "shape", int) for size in take(observation, "shape", list))
    require_supported_size(env_id, shape)
    dtype = take(observation, "dtype", str)
    if dtype not in ("float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32"):
        raise ValueError(f"env_id={env_id}: observations of dtype {shown(dtype)} are not supported")
    num_actions, action_start = take(action, "n", int), take(action, "start", int)
    if not 1 <= num_actions <= 1 << 20 or abs(action_start) > 1 << 31:
        raise ValueError(
            f"env_id={env_id}: action space with n={num_actions} start={action_start} is not supported; "
            "expected 1 to 2^20 actions"
        )
    threshold, limit = (
        take(message, "reward_threshold", float, int, type(None)),
        take(message, "max_episode_steps", int, type(None)),
    )
    return EnvSpec(
        env_id=env_id,
        obs_shape=shape,
        obs_dtype=dtype,
        obs_low=_bounds_from_json(observation.get("low"), "low", math.prod(shape)),
        obs_high=_bounds_from_json(observation.get("high"), "high", math.prod(shape)),
        num_actions=num_actions,
        action_start=action_start,
        reward_threshold=None if threshold is None else _number_from_json(threshold, "reward_threshold"),
        max_episode_steps=limit,
    )


def _bounds_from_json(value: object, name: str, size: int) -> float | tuple[float, ...]:
    if type(value) is not list:
        return _number_from_json(value, name)
    if len(value) != size:
        raise ProtocolError(f"{name}: expected {size} numbers, got {len(value)}")
    return tuple(_number_from_json(item, f"{name}[{i}]") for i, item in enumerate(value))
