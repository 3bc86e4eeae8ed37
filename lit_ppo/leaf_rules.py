"""The rules for one leaf: what a Python value must be to become its array, and which numbers that array may hold."""

import math
from collections.abc import Callable, Iterator
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lit_ppo.errors import ContractViolation, shown
from lit_ppo.spaces import Leaf

FLOAT32_MAX: Final = float(np.finfo(np.float32).max)
_OBSERVATION_SPACE: Final = "declared observation space"
NUMBERS: Final = "biuf"  # kinds of dtypes: no text, no objects, no dates
_OF_JAX: Final = "; use data.wrappers=[gymnasium.wrappers.JaxToNumpy], which needs `pip install array-api-compat`"
_CURES: Final = {
    "jax": _OF_JAX,
    "jaxlib": _OF_JAX,
    "torch": "; let the environment, or a wrapper in data.wrappers, return tensor.detach().cpu().numpy()",
}


def field_of(name: str, path: str) -> str:
    """How messages call a leaf: `obs`, or `obs.camera/left`."""
    return f"{name}.{path}" if path else name


def admit_leaf(value: object, leaf: Leaf, dtype: np.dtype[Any], field: str) -> Any:
    """A value of the leaf's shape and dtype, from what one environment returned.

    Admitted is every form that `Space.contains` admits, and numbers of the same kind but another width. The numbers must
    survive the conversion: 1e300 is no float32, 2^53 + 1 no float64. Only floats may be rounded to the leaf's own width.

    Args:
        value: What the environment returned there.
        leaf: What was announced.
        dtype: The leaf's dtype.
        field: How messages call it.

    Raises:
        ContractViolation: The value is something else.
    """
    if leaf.kind == "discrete":
        return _admit_choice(value, field)
    array = as_array(value, field, leaf.shape)
    if array.shape != leaf.shape:
        raise ContractViolation(field, f"shape {leaf.shape}", f"shape {array.shape}")
    if array.dtype == dtype:
        return array
    if isinstance(value, np.ndarray) and not _is_convertible(array.dtype, leaf, dtype):
        raise ContractViolation(field, f"dtype {dtype}", f"dtype {array.dtype}")
    with np.errstate(all="ignore"):  # the environment's own state may be to raise; NaN is refused later, by its value
        cast = array.astype(dtype)
    lost = _lost(array, cast)
    if lost.any():
        raise ContractViolation(field, f"values that {dtype} can hold", shown(array[lost][0].item()))
    if array.dtype.kind == "f" and isinstance(value, list | tuple):  # numpy has made floats of whole numbers beside floats
        for number in _whole_numbers(value):
            if float(dtype.type(number)) != number:
                raise ContractViolation(field, f"values that {dtype} can hold", shown(number))
    return cast


def as_array(value: object, field: str, shape: tuple[int, ...]) -> NDArray[Any]:
    """A value as a numpy array, as in `Space.contains`: a list, a number, or an array of another library.

    Args:
        value: What the environment returned.
        field: How messages call it.
        shape: For messages.

    Raises:
        ContractViolation: It is no array of numbers. Code of the environment runs here, and may raise anything.
    """
    if isinstance(value, np.ndarray):
        return value
    arrived = f"{type(value).__name__} {shown(value)}"
    try:
        array = np.asarray(value)
    except Exception as error:
        arrived = f"{arrived}, of which numpy.asarray makes no array: {shown(error)}"
    else:
        if array.dtype.kind in NUMBERS:
            return array
    raise ContractViolation(field, f"a numpy array of shape {shape}{cure(value)}", arrived)


def cure(value: object) -> str:
    """Advice for an array of another library, by the name of its module; "" for other values."""
    return _CURES.get(type(value).__module__.partition(".")[0], "")


def _is_convertible(dtype: np.dtype[Any], leaf: Leaf, into: np.dtype[Any]) -> bool:
    """True if arrays of a dtype may be converted to the leaf's dtype, provided that each number survives."""
    if leaf.kind == "box":
        return dtype.kind in NUMBERS and (dtype.kind == into.kind or np.can_cast(dtype, into))
    return dtype.kind in (NUMBERS if leaf.kind == "multi_binary" else "iub")  # of choices, any whole numbers will do


def _lost(array: NDArray[Any], cast: NDArray[Any]) -> Any:
    """Components that a conversion has changed by more than rounding a float to another width, as a boolean array."""
    if array.dtype.kind == cast.dtype.kind == "f":
        return np.isinf(cast) & ~np.isinf(array)
    if "f" not in (array.dtype.kind, cast.dtype.kind) or (array.dtype.itemsize < 8 and np.can_cast(array.dtype, cast.dtype)):
        return np.asarray(cast != array)
    return np.asarray(cast.astype(object) != array.astype(object))  # Python compares floats and integers exactly


def _whole_numbers(value: object) -> Iterator[int]:
    """The whole numbers in nested lists."""
    if isinstance(value, list | tuple):
        for item in value:
            yield from _whole_numbers(item)
    elif isinstance(value, int | np.integer):
        yield int(value)


def _admit_choice(value: object, field: str) -> int:
    if type(value) is int:
        number = value
    elif isinstance(value, int) or (
        isinstance(value, np.generic | np.ndarray)
        and value.shape == ()
        and value.dtype.kind in "iub"  # timedelta64 is an integer
    ):
        number = int(value)
    else:
        raise ContractViolation(field, f"a whole number{cure(value)}", f"{type(value).__name__} {shown(value)}")
    if not -(1 << 63) <= number < 1 << 63:
        raise ContractViolation(field, "a number that int64 can hold", shown(value))
    return number


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


class LeafRules:
    """The numbers that a leaf may hold, for N environments at once.

    Args:
        leaf: What was announced.
        membership: What follows when a value is outside the declared space: `warn`, `error` or `off`. For leaves of choices
            (Discrete, MultiDiscrete, MultiBinary) always `error`: a number that names no choice means nothing.
        observation_range: [low, high] for every component besides; None for no limit.
        on_warning: Called with a line of text when `warn` finds the first value outside.
        space: How messages call the space.
    """

    def __init__(
        self,
        leaf: Leaf,
        membership: str = "error",
        observation_range: tuple[float, float] | None = None,
        on_warning: Callable[[str], None] = lambda text: None,
        space: str = _OBSERVATION_SPACE,
    ) -> None:
        self.leaf, self._on_warning, self._space = leaf, on_warning, space
        self._membership = membership if leaf.kind == "box" else "error"
        self._range = observation_range if leaf.kind == "box" else None
        self._is_bool = leaf.dtype == "bool"  # whose shared bytes may be neither 0 nor 1
        self._dtype = np.dtype(np.uint8 if self._is_bool else leaf.dtype)
        self._space_low, self._space_high = leaf.bounds()
        self._limit(membership=self._membership != "off")

    def _limit(self, membership: bool) -> None:
        """Set the bounds that values are compared with.

        One comparison for each side covers all rules: NaN compares false, and +-inf lies outside +-FLOAT32_MAX.

        Args:
            membership: Whether the declared space counts.
        """
        self._checks_membership = membership
        lowest, highest = self._range or (-FLOAT32_MAX, FLOAT32_MAX)
        if self._dtype.kind == "f":
            low, high = np.full(self.leaf.shape, max(lowest, -FLOAT32_MAX)), np.full(self.leaf.shape, min(highest, FLOAT32_MAX))
            if membership:  # maximum, not clip: a range that misses the space must leave nothing
                low, high = np.maximum(low, self._space_low), np.minimum(high, self._space_high)
            self._low, self._high = _float_bound(low, self._dtype), _float_bound(high, self._dtype)
            self.is_free = False
        else:
            low, high = (np.full(self.leaf.shape, bound, np.float64) for bound in self._range or (-math.inf, math.inf))
            self._low, self._high = _integer_bounds(low, high, self._dtype)
            if membership:
                space_low, space_high = (
                    (bound if bound.dtype == np.int64 else None) for bound in (self._space_low, self._space_high)
                )
                if space_low is None or space_high is None:
                    space_low, space_high = _integer_bounds(
                        self._space_low.astype(np.float64), self._space_high.astype(np.float64), self._dtype
                    )
                limits = np.iinfo(self._dtype)
                self._low = np.maximum(self._low, np.clip(space_low, limits.min, limits.max).astype(self._dtype))
                self._high = np.minimum(self._high, np.clip(space_high, limits.min, limits.max).astype(self._dtype))
            limits = np.iinfo(self._dtype)  # if every value of the dtype is allowed, there is nothing to compare
            self.is_free = bool((self._low == limits.min).all() and (self._high == limits.max).all())
        self._compared_shape: tuple[int, ...] = ()

    def are_inside(self, values: NDArray[Any]) -> bool:
        """Whether all values, shape (N, *shape), are within the bounds."""
        if self._is_bool:
            values = values.view(np.uint8)
        if values.shape != self._compared_shape:
            self._compared_shape = values.shape
            self._scratch = np.empty((2, *values.shape), np.bool_)
            self._above, self._below = self._scratch
            # bounds written out: comparing many rows with one costs more than comparing them with as many
            self._lows, self._highs = (np.broadcast_to(bound, values.shape).copy() for bound in (self._low, self._high))
        np.greater_equal(values, self._lows, self._above)
        np.less_equal(values, self._highs, self._below)
        return 0 not in self._scratch.tobytes()  # a tenth of the price of `all`

    def hold(self, values: NDArray[Any]) -> bool:
        """As `are_inside`, for a few environments of which there are others the next time."""
        if self._is_bool:
            values = values.view(np.uint8)
        return 0 not in ((values >= self._low) & (values <= self._high)).tobytes()

    def refuse(self, field: str, values: NDArray[Any], rows: NDArray[np.intp] | None = None) -> None:
        """Raise for the first bad component, if there is one.

        If that is only outside the declared space and membership is `warn`, warn instead, and compare with the space no more.

        Args:
            field: How messages call the leaf.
            values: Shape (K, *shape).
            rows: Which environments they are of, shape (K,); None for 0 to K - 1.
        """
        if self._is_bool:
            values = values.view(np.uint8)
        with np.errstate(invalid="ignore"):  # a signalling NaN
            bad = ~((values >= self._low) & (values <= self._high))
        if not bad.any():
            return
        index = tuple(int(i) for i in np.argwhere(bad)[0])
        component, value = index[1:], values[index].item()
        env = index[0] if rows is None else int(rows[index[0]])
        low, high = self._space_low[component].item(), self._space_high[component].item()
        name = f"{field}[{', '.join(str(i) for i in (env, *component))}]"
        if not math.isfinite(value):
            rule = "a finite value"
        elif self._dtype.kind == "f" and abs(value) > FLOAT32_MAX:
            rule = "a value that float32 can hold"
        elif self._checks_membership and not low <= value <= high:
            space = f"[{low}, {high}] (the {self._space}"
            if self._membership == "warn":
                self._on_warning(
                    f"{name}: expected a value in {space}), got {value}; the run goes on without this check. "
                    "data.contract.check_membership=error stops instead, =off says nothing"
                )
                self._limit(membership=False)
                return
            is_optional = self.leaf.kind == "box" and self._space == _OBSERVATION_SPACE
            accepts = "; data.contract.check_membership=warn or off accepts it" if is_optional else ""
            rule = f"a value in {space}{accepts})"
        else:
            rule = f"a value in {list(self._range or ())} (data.contract.observation_range)"
        raise ContractViolation(name, rule, str(value), env)


class MaskRules:
    """Some action must be possible in each environment.

    Args:
        choices: How many values each component of an action can have.
    """

    def __init__(self, choices: tuple[int, ...]) -> None:
        self._starts = np.cumsum((0, *choices[:-1]))

    def refuse(self, field: str, masks: NDArray[Any], rows: NDArray[np.intp] | None = None) -> None:
        """Raise for the first environment without a possible action; arguments as in `LeafRules.refuse`."""
        possible = np.logical_or.reduceat(masks.reshape(len(masks), -1) != 0, self._starts, axis=1).all(axis=1)
        if not possible.all():
            k = int(np.argmin(possible))
            env = k if rows is None else int(rows[k])
            raise ContractViolation(f"{field}[{env}]", "at least one possible action", "an action mask of zeros", env)
