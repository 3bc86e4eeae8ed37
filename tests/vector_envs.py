"""Native vector environments that keep their state in one of many kinds of attributes, or elsewhere."""

import enum
import functools
import itertools
import logging
import math
import random
import sys
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium.utils import EzPickle
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper
from gymnasium.vector.utils import batch_space


class Phase(enum.Enum):
    """State that is a member of an enumeration."""

    EVEN, ODD = 0, 1


class Slotted:
    """An object without a dictionary."""

    __slots__ = ("total",)

    def __init__(self) -> None:
        self.total = 0.0


class Recipe(EzPickle):
    """An object that pickles its arguments in place of its state."""

    def __init__(self) -> None:
        EzPickle.__init__(self)
        self.total = 0.0


class Counts:
    total = 0.0  # of all its objects


def _accumulator() -> Callable[[float], float]:
    total = 0.0

    def add(amount: float) -> float:
        nonlocal total
        total += amount
        return total

    return add


def _numbers() -> Iterator[float]:
    for number in itertools.count():
        yield number % 7


class Kind(NamedTuple):
    """A kind of attribute: its first value, and what a step makes of it and adds to the observation."""

    first: Callable[[Any], Any]
    step: Callable[[Any, float], float]


def _rebound(read: Callable[[Any], float], change: Callable[[Any, float], Any]) -> Callable[[Any, float], float]:
    def step(env: Any, amount: float) -> float:
        env.kept = change(env.kept, amount)
        return read(env.kept)

    return step


def _mutated(read: Callable[[Any], float], mutate: Callable[[Any, float], object]) -> Callable[[Any, float], float]:
    def step(env: Any, amount: float) -> float:
        mutate(env.kept, amount)
        return read(env.kept)

    return step


def _forgotten(env: Any, amount: float) -> float:
    if hasattr(env, "kept") and env.t[0] == 4:
        del env.kept
    return float(hasattr(env, "kept"))


def _drawn(name: str) -> Callable[[Any, float], float]:
    return lambda env, amount: float(getattr(env.kept, name)())


def _sum(values: Any) -> float:
    return float(np.sum(list(values)))


SAVED: dict[str, Kind] = {
    "array": Kind(lambda env: np.zeros(2), _rebound(_sum, lambda kept, amount: kept + amount)),
    "array in place": Kind(lambda env: np.zeros(2), _mutated(_sum, lambda kept, amount: kept.__iadd__(amount))),
    "empty array": Kind(
        lambda env: np.zeros(0), _rebound(lambda kept: len(kept) % 5, lambda kept, amount: np.zeros(len(kept) + 1))
    ),
    "column-major": Kind(lambda env: np.zeros((9, 7)).T, _rebound(np.sum, lambda kept, amount: np.sin(kept + amount + 0.1))),
    "dates": Kind(
        lambda env: np.zeros(1, "M8[s]"), _mutated(lambda kept: kept.astype(int)[0], lambda kept, n: kept.__iadd__(int(n)))
    ),
    "twice the same": Kind(
        lambda env: setattr(env, "other", np.zeros(2)) or env.other,
        lambda env, amount: (env.other.__iadd__(amount), float(env.kept[0]))[1],
    ),
    "int": Kind(lambda env: 0, _rebound(float, lambda kept, amount: kept + 1 + int(amount))),
    "bool": Kind(lambda env: False, _rebound(float, lambda kept, amount: not kept)),
    "float": Kind(lambda env: 0.0, _rebound(float, lambda kept, amount: kept + amount)),
    "infinite": Kind(lambda env: math.inf, _rebound(math.atan, lambda kept, amount: amount - kept if amount else kept)),
    "text": Kind(lambda env: "", _rebound(len, lambda kept, amount: kept + "\ud800é" * int(amount))),
    "None": Kind(lambda env: None, _rebound(lambda kept: kept or 0.0, lambda kept, amount: 1.0 if kept is None else None)),
    "numpy number": Kind(lambda env: np.float64(0), _rebound(float, lambda kept, amount: kept + np.float64(amount))),
    "numpy flag": Kind(lambda env: np.bool_(False), _rebound(float, lambda kept, amount: ~kept)),
    "numpy text": Kind(lambda env: np.str_(""), _rebound(len, lambda kept, amount: np.str_(kept + "a"))),
}
REFUSED: dict[str, Kind] = {
    "list": Kind(lambda env: [0.0, 0.0], _rebound(_sum, lambda kept, amount: [one + amount for one in kept])),
    "list in place": Kind(lambda env: [], _mutated(_sum, lambda kept, amount: kept.append(amount))),
    "list of arrays": Kind(lambda env: [np.zeros(2)], _mutated(lambda kept: kept[0][0], lambda kept, n: kept[0].__iadd__(n))),
    "tuple": Kind(lambda env: (), _rebound(_sum, lambda kept, amount: (*kept, amount))),
    "dict": Kind(
        lambda env: {"total": 0.0}, _mutated(lambda kept: kept["total"], lambda kept, n: kept.update(total=kept["total"] + n))
    ),
    "defaultdict": Kind(lambda env: defaultdict(float), _mutated(len, lambda kept, amount: kept[len(kept)])),
    "deque": Kind(lambda env: deque(maxlen=3), _mutated(_sum, lambda kept, amount: kept.append(amount + len(kept)))),
    "set": Kind(lambda env: set(), _mutated(len, lambda kept, amount: kept.add(len(kept)))),
    "bytes": Kind(lambda env: b"", _rebound(len, lambda kept, amount: kept + b"a")),
    "bytearray": Kind(lambda env: bytearray(2), _mutated(_sum, lambda kept, amount: kept.__setitem__(0, (kept[0] + 3) % 251))),
    "complex": Kind(lambda env: 0j, _rebound(abs, lambda kept, amount: kept + amount + 1j)),
    "enumeration": Kind(lambda env: Phase.EVEN, _rebound(lambda kept: kept.value, lambda kept, n: Phase(1 - kept.value))),
    "array of objects": Kind(
        lambda env: np.array([0.0, None]), _mutated(lambda kept: kept[0], lambda kept, n: kept.__setitem__(0, kept[0] + n + 1))
    ),
    "array of records": Kind(
        lambda env: np.zeros(2, [("a", float), ("b", int)]),
        _mutated(lambda kept: kept["a"][0], lambda kept, n: kept["a"].__iadd__(n + 1)),
    ),
    "masked array": Kind(lambda env: np.ma.zeros(2), _mutated(np.sum, lambda kept, amount: kept.__iadd__(amount + 1))),
    "object": Kind(
        lambda env: SimpleNamespace(total=0.0),
        _mutated(lambda kept: kept.total, lambda kept, n: setattr(kept, "total", kept.total + n)),
    ),
    "object with slots": Kind(
        lambda env: Slotted(), _mutated(lambda kept: kept.total, lambda kept, n: setattr(kept, "total", kept.total + n))
    ),
    "recipe": Kind(
        lambda env: Recipe(), _mutated(lambda kept: kept.total, lambda kept, n: setattr(kept, "total", kept.total + n))
    ),
    "closure": Kind(lambda env: _accumulator(), lambda env, amount: env.kept(amount)),
    "partial": Kind(lambda env: functools.partial(_accumulator()), lambda env, amount: env.kept(amount)),
    "bound method": Kind(lambda env: [].append, lambda env, amount: (env.kept(amount), float(len(env.kept.__self__)))[1]),
    "generator": Kind(lambda env: _numbers(), lambda env, amount: next(env.kept)),
    "iterator": Kind(lambda env: iter(range(9999)), lambda env, amount: next(env.kept) % 7),
    "counter": Kind(lambda env: itertools.count(), lambda env, amount: next(env.kept) % 7),
    "second stream": Kind(lambda env: np.random.default_rng(3), _drawn("random")),
    "numpy's old stream": Kind(lambda env: np.random.RandomState(3), _drawn("random")),
    "Python's stream": Kind(lambda env: random.Random(3), _drawn("random")),
    "space's stream": Kind(lambda env: gymnasium.spaces.Discrete(100, seed=3), _drawn("sample")),
    "its stream by another name": Kind(lambda env: env.np_random, _drawn("random")),
    "view": Kind(
        lambda env: setattr(env, "other", np.zeros(3)) or env.other[1:],
        lambda env, amount: (env.other.__iadd__(amount + 1), float(env.kept[0]))[1],
    ),
    "deleted": Kind(lambda env: 1.0, _forgotten),
    "lock": Kind(lambda env: threading.Lock(), lambda env, amount: float(env.kept.locked() or env.kept.acquire())),
}
KINDS = SAVED | REFUSED
CONSTANTS: dict[str, Callable[[Any], Any]] = {
    "function": lambda env: _numbers,
    "closure": lambda env: _accumulator(),
    "built-in function": lambda env: math.sin,
    "class": lambda env: Slotted,
    "module": lambda env: math,
    "list": lambda env: [1, [np.ones(3), "a"]],
    "tuple": lambda env: (1.0, (2, b"b")),
    "dict": lambda env: {"a": {1: None}, 2: [3]},
    "set": lambda env: {"b", "a"},
    "deque": lambda env: deque([1], maxlen=3),
    "partial": lambda env: functools.partial(np.clip, a_min=0),
    "ufunc": lambda env: np.tanh,
    "dtype": lambda env: np.dtype("f4"),
    "enumeration": lambda env: Phase.ODD,
    "stream that is not used": lambda env: np.random.default_rng(),
    "space": lambda env: gymnasium.spaces.Dict({"a": gymnasium.spaces.Box(0, 1, (2,))}),
    "object": lambda env: Recipe(),
    "itself": lambda env: [env],
    "its own method": lambda env: env.step,
    "logger": lambda env: logging.getLogger("tests"),
    "stream of text": lambda env: functools.partial(print, file=None),
}


class Keeper(VectorEnv):
    """Rows that count their steps, and more state of one kind.

    Args:
        num_envs: Rows.
        kind: A key of `KINDS`; `class` or `module` for state outside the environment; None for no more state.
        in_reset: The state begins in each reset, not when the environment is made.
        constant: A key of `CONSTANTS` for an attribute that never changes.
        length: Steps of an episode.
    """

    metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}

    def __init__(
        self, num_envs: int = 2, kind: str | None = None, in_reset: bool = False, constant: str | None = None, length: int = 20
    ) -> None:
        self.num_envs, self.kind, self.in_reset, self.length = num_envs, kind, in_reset, length
        self.single_observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float64)
        self.single_action_space = gymnasium.spaces.Discrete(2)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        if constant is not None:
            self.constant = CONSTANTS[constant](self)
        self._begin(not in_reset)

    def _begin(self, is_due: bool) -> None:
        if is_due and self.kind in KINDS:
            self.kept = KINDS[self.kind].first(self)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.t, self.done = np.zeros(self.num_envs, int), np.zeros(self.num_envs, bool)
        self._begin(self.in_reset)
        return self._obs(0.0), {}

    def _obs(self, kept: float) -> np.ndarray:
        return np.stack([self.t, np.full(self.num_envs, kept)], 1).astype(np.float64)

    def _stepped(self, amount: float) -> float:
        if self.kind in KINDS:
            return float(KINDS[self.kind].step(self, amount))
        owner = {"class": Counts, "module": sys.modules[__name__]}.get(self.kind or "")
        if owner is not None:
            owner.total = getattr(owner, "total", 0.0) + amount  # type: ignore[union-attr]
        return getattr(owner, "total", 0.0)

    def step(self, actions: np.ndarray) -> Any:
        self.t = np.where(self.done, 0, self.t + 1)
        kept = self._stepped(float(actions.sum()))
        self.done = self.t >= self.length
        return self._obs(kept), np.full(self.num_envs, kept), self.done.copy(), np.zeros(self.num_envs, bool), {}


class Counting(VectorWrapper):
    """A wrapper with state of its own, in a number or in a list."""

    def __init__(self, env: VectorEnv, in_list: bool) -> None:
        super().__init__(env)
        self.counted: Any = [0.0] if in_list else 0.0

    def step(self, actions: np.ndarray) -> Any:
        if isinstance(self.counted, list):
            self.counted[0] += 1.0
        else:
            self.counted += 1.0
        obs, rewards, *rest = self.env.step(actions)
        return obs, rewards + np.sum(self.counted), *rest


def counting(num_envs: int = 2, in_list: bool = False) -> VectorEnv:
    """A wrapped `Keeper`."""
    return Counting(Keeper(num_envs), in_list)


gymnasium.register("Keeper-v0", vector_entry_point=Keeper)
gymnasium.register("Counting-v0", vector_entry_point=counting)
