"""Environments that raise what is no `Exception`, or change settings of their whole process."""

import asyncio
import decimal
import gc
import locale
import os
import random
import signal
import sys
import warnings
from collections.abc import Callable
from types import FrameType
from typing import Any

import gymnasium
import numpy as np


class Rude(BaseException):
    """An exception that is caught by nothing."""


class Wordless(Exception):
    """Its text cannot be had."""

    def __str__(self) -> str:
        raise KeyboardInterrupt

    __repr__ = __str__


def _deep(depth: int = 0) -> int:
    return _deeper(depth + 1)


def _deeper(depth: int) -> int:
    return _deep(depth + 1)


def _raising(error: Callable[[], BaseException]) -> Callable[[], Any]:
    def act() -> None:
        raise error()

    return act


def _chain() -> None:
    try:
        raise Rude("first")
    except Rude as first:
        raise ValueError("second") from first


RAISING: dict[str, Callable[[], Any]] = {
    "KeyboardInterrupt": _raising(KeyboardInterrupt),
    "SystemExit: 0": lambda: sys.exit(0),
    "SystemExit: 3": lambda: sys.exit(3),
    "GeneratorExit": _raising(GeneratorExit),
    "CancelledError": _raising(asyncio.CancelledError),
    "Rude": _raising(Rude),
    "StopIteration": _raising(StopIteration),
    "Wordless": _raising(Wordless),
    "ExceptionGroup": _raising(lambda: ExceptionGroup("two", [ValueError("one"), Wordless()])),
    "BaseExceptionGroup": _raising(lambda: BaseExceptionGroup("two", [Rude("one"), KeyboardInterrupt()])),
    "ValueError: xxx": _raising(lambda: ValueError("x" * 3_000_000)),
    "ValueError: \\u2028": _raising(lambda: ValueError("\u2028\x1b\U0001f300" * 400_000)),
    "RecursionError": _deep,
    "MemoryError": _raising(MemoryError),
    "FileNotFoundError": _raising(lambda: OSError(2, "gone")),
    "ValueError: second": _chain,
    "AssertionError": _raising(AssertionError),
    "UnicodeDecodeError": lambda: b"\xff".decode(),
    "ZeroDivisionError": lambda: 1 / 0,
}


def _refuse_ours(frame: FrameType, event: str, argument: object) -> None:
    if frame.f_globals["__name__"].startswith("lit_ppo."):
        raise Rude(frame.f_code.co_name)


SETTINGS: dict[str, Callable[[], Any]] = {
    "numpy raises": lambda: np.seterr(all="raise"),
    "numpy calls": lambda: (np.seterrcall(_raising(Rude)), np.seterr(all="call")),
    "numpy prints otherwise": lambda: np.set_printoptions(formatter={"all": lambda value: 1 / 0}),  # type: ignore[arg-type]
    "decimal traps": lambda: decimal.setcontext(decimal.Context(prec=1, traps=list(decimal.Context().flags))),
    "locale": lambda: locale.setlocale(locale.LC_ALL, "C"),
    "traced": lambda: sys.settrace(_refuse_ours),
    "profiled": lambda: sys.setprofile(lambda *event: None),
    "warnings raise": lambda: warnings.simplefilter("error"),
    "shallow": lambda: sys.setrecursionlimit(120),
    "signals": lambda: [signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE)],
    "python's handler": lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    "no collector": gc.disable,
    "seeds": lambda: (random.seed(1), np.random.seed(1)),
    "elsewhere": lambda: (os.chdir("/"), os.umask(0o777), os.environ.clear()),
    "arguments": lambda: sys.argv.extend(["--num-envs", "7"]),
    "no output": lambda: (setattr(sys, "stdout", None), setattr(sys, "stderr", None), os.closerange(1, 3)),
    "few digits": lambda: sys.set_int_max_str_digits(640),
}


class RudeEnv(gymnasium.Env[np.ndarray, int]):
    """Counts its steps, beside a number that float32 rounds to 0 or cannot hold exactly.

    Args:
        raising: A key of `RAISING`, for the call `place`.
        place: `make`, `reset`, `step` or `close`.
        settings: Keys of `SETTINGS` that it applies when it is made.
    """

    def __init__(self, raising: str | None = None, place: str = "step", settings: tuple[str, ...] = ()) -> None:
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (3,), np.float32)
        self.action_space = gymnasium.spaces.Discrete(2)
        self.raising, self.place = raising, place
        for name in settings:
            SETTINGS[name]()
        self._act("make")

    def _act(self, call: str) -> None:
        if self.raising is not None and call == self.place:
            RAISING[self.raising]()

    def _obs(self) -> np.ndarray:
        return np.array([self.steps, 1e-60 * self.start, self.start])  # float64

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self._act("reset")
        self.steps, self.start = 0, self.np_random.random()
        return self._obs(), {}

    def step(self, action: int) -> Any:
        self.steps += 1
        if self.steps == 3:
            self._act("step")
        return self._obs(), np.float64(1e-60 * action), self.steps >= 5, False, {}

    def close(self) -> None:
        self._act("close")
