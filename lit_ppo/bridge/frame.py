"""The shared frame: one anonymous mapping through which steps go, laid out from the announcement by both sides alike.

Every field starts on its own cache line::

    header    magic, request number, reply number, status        8 bytes each, a cache line apart
    request   actions (N, *shape), next_seeds (N,) i64, active (N,) u8
    reply     rows (N, size) u8, final_rows (N, size) u8, rewards (N,) f64, terminated, truncated, reset, invalid (4, N) u8,
              busy_with (1,) i64

`busy_with` is 1 + the row whose environment is being called, N more in the reset that follows a step, 0 for none: it says where
a dead worker died.

`rows` are the observations to act on next, each a row of bytes (`spaces.Row`). Where an episode ended within the step,
`final_rows` has the observation that it ended with; native environments reset in a step of their own, and have none.

The trainer writes the request, then its number; the worker answers, then writes the same number as the reply's. Each side
counts by itself and never reads back a number of its own: the other side can write anywhere in the frame.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

MAGIC: Final = 0x6C69745F70706F31  # "lit_ppo1"
CACHE_LINE: Final = 64
WORD: Final = 8
# indices of the header's words, in units of 8 bytes
MAGIC_WORD: Final = 0
REQUEST_WORD: Final = CACHE_LINE // WORD
REPLY_WORD: Final = 2 * CACHE_LINE // WORD
STATUS_WORD: Final = REPLY_WORD + 1
HEADER_BYTES: Final = 3 * CACHE_LINE

STATUS_DONE: Final = 0
STATUS_ERROR: Final = 1  # the step failed; a control message says how

MAX_FRAME_BYTES: Final = 1 << 30


@dataclass(frozen=True)
class FrameLayout:
    """Offset, shape and dtype of each field of the shared frame.

    Args:
        num_envs: N, the number of environments that the worker hosts.
        row_bytes: Size of one observation.
        action_shape: Shape of one action.
        action_dtype: Name of the actions' numpy dtype.
        resets_within_step: As in `Contract`; otherwise there are no final rows.

    Raises:
        ValueError: The frame would be larger than `MAX_FRAME_BYTES`.
    """

    num_envs: int
    row_bytes: int
    action_shape: tuple[int, ...] = ()
    action_dtype: str = "int64"
    resets_within_step: bool = True
    request: dict[str, tuple[int, tuple[int, ...], str]] = field(init=False)
    reply: dict[str, tuple[int, tuple[int, ...], str]] = field(init=False)
    reply_start: int = field(init=False)
    reply_bytes: int = field(init=False)
    total_bytes: int = field(init=False)

    def __post_init__(self) -> None:
        n = self.num_envs
        request, offset = _place(
            HEADER_BYTES,
            {
                "actions": ((n, *self.action_shape), self.action_dtype),
                "next_seeds": ((n,), "int64"),
                "active": ((n,), "uint8"),
            },
        )
        reply, end = _place(
            0,
            {
                "rows": ((n, self.row_bytes), "uint8"),
                "final_rows": ((n if self.resets_within_step else 0, self.row_bytes), "uint8"),
                "rewards": ((n,), "float64"),
                "flags": ((4, n), "uint8"),
                "busy_with": ((1,), "int64"),
            },
        )
        for name, value in {
            "request": request,
            "reply": reply,
            "reply_start": offset,
            "reply_bytes": end,
            "total_bytes": offset + end,
        }.items():
            object.__setattr__(self, name, value)
        if self.total_bytes > MAX_FRAME_BYTES:
            raise ValueError(
                f"{n} environments with observations of {self.row_bytes} bytes need a frame of {self.total_bytes} bytes; "
                f"expected at most {MAX_FRAME_BYTES}: use fewer environments a worker or smaller observations"
            )

    def request_views(self, buffer: Any) -> dict[str, NDArray[Any]]:
        """The request's fields as arrays over the bytes of the whole frame."""
        return _views(buffer, self.request, 0)

    def reply_views(self, buffer: Any, start: int) -> dict[str, NDArray[Any]]:
        """The reply's fields as arrays over `buffer`, in which the reply begins at byte `start`."""
        return _views(buffer, self.reply, start)


class Frame:
    """A mapped frame, as either side sees it.

    Args:
        buffer: The mapping, `layout.total_bytes` long.
        layout: Where the fields are.
    """

    def __init__(self, buffer: Any, layout: FrameLayout) -> None:
        self.words = memoryview(buffer).cast("Q")
        self.requested = layout.request_views(buffer)
        self.replied = layout.reply_views(buffer, layout.reply_start)


class Busy(NamedTuple):
    """What a worker is doing, as it says.

    Attributes:
        env: The trainer's row of the environment that it is calling; None if it is calling none.
        in_next_reset: Whether that is the reset that follows a step.
    """

    env: int | None
    in_next_reset: bool


def busy(rows: range, replied: Mapping[str, NDArray[Any]]) -> Busy:
    """What stands in `busy_with`.

    Args:
        rows: Rows of the worker's environments.
        replied: The reply's arrays; empty if there is no frame.
    """
    number = int(replied["busy_with"][0]) if replied else 0
    if not 0 < number <= 2 * len(rows):
        return Busy(None, False)
    return Busy(rows[(number - 1) % len(rows)], number > len(rows))


def _place(
    offset: int, fields: dict[str, tuple[tuple[int, ...], str]]
) -> tuple[dict[str, tuple[int, tuple[int, ...], str]], int]:
    placed = {}
    for name, (shape, dtype) in fields.items():
        placed[name] = (offset, shape, dtype)
        size = math.prod(shape) * np.dtype(dtype).itemsize
        offset += -(-size // CACHE_LINE) * CACHE_LINE
    return placed, offset


def _views(buffer: Any, fields: dict[str, tuple[int, tuple[int, ...], str]], start: int) -> dict[str, NDArray[Any]]:
    return {
        name: np.frombuffer(buffer, dtype, math.prod(shape), start + offset).reshape(shape)
        for name, (offset, shape, dtype) in fields.items()
    }
