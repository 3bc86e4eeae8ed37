"""The shared frame: every byte of it has its place, and the place is pinned."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_ppo.bridge.frame import (
    CACHE_LINE,
    HEADER_BYTES,
    MAGIC,
    MAGIC_WORD,
    MAX_FRAME_BYTES,
    REPLY_WORD,
    REQUEST_WORD,
    STATUS_WORD,
    Frame,
    FrameLayout,
)

DTYPES = st.sampled_from(["float32", "float64", "int8", "int64"])


@given(st.integers(1, 70), st.integers(1, 300), st.lists(st.integers(1, 9), max_size=3).map(tuple), DTYPES, st.booleans())
def test_fields_of_the_frame_are_aligned_and_never_overlap(
    num_envs: int, row_bytes: int, action_shape: tuple[int, ...], dtype: str, within_step: bool
) -> None:
    layout = FrameLayout(num_envs, row_bytes, action_shape, dtype, within_step)
    frame = bytearray(layout.total_bytes)
    views = layout.request_views(frame) | layout.reply_views(frame, layout.reply_start)
    assert {name: (view.shape, str(view.dtype)) for name, view in views.items()} == {
        "actions": ((num_envs, *action_shape), dtype),
        "next_seeds": ((num_envs,), "int64"),
        "active": ((num_envs,), "uint8"),
        "rows": ((num_envs, row_bytes), "uint8"),
        "final_rows": ((num_envs if within_step else 0, row_bytes), "uint8"),
        "rewards": ((num_envs,), "float64"),
        "flags": ((4, num_envs), "uint8"),
        "busy_with": ((1,), "int64"),
    }
    begin = np.frombuffer(frame, np.uint8).__array_interface__["data"][0]
    taken = np.zeros(layout.total_bytes, int)
    taken[:HEADER_BYTES] += 1
    for view in views.values():
        offset = view.__array_interface__["data"][0] - begin
        assert offset % CACHE_LINE == 0 or not view.size
        taken[offset : offset + view.nbytes] += 1
    assert taken.max() == 1
    # the reply alone has the same layout, for a worker without a trainer
    assert layout.reply_bytes == layout.total_bytes - layout.reply_start
    assert layout.reply_views(bytearray(layout.reply_bytes), 0)["flags"].shape == (4, num_envs)


def test_golden_bytes_of_a_small_frame() -> None:
    """Another worker of protocol 5 must find all fields where they are here; a change of these bytes needs a new number."""
    layout = FrameLayout(2, 12)
    memory = bytearray(layout.total_bytes)
    frame = Frame(memory, layout)
    frame.words[MAGIC_WORD], frame.words[REQUEST_WORD], frame.words[REPLY_WORD], frame.words[STATUS_WORD] = MAGIC, 7, 6, 1
    frame.requested["actions"][:], frame.requested["next_seeds"][:], frame.requested["active"][:] = (0, 1), (2**40, 3), (1, 0)
    frame.replied["rows"][:] = np.arange(6, dtype=np.float32).reshape(2, 3).view(np.uint8)
    frame.replied["final_rows"][:] = np.arange(6, 12, dtype=np.float32).reshape(2, 3).view(np.uint8)
    frame.replied["rewards"][:], frame.replied["flags"][:] = (0.5, -2.0), [[1, 0], [0, 1], [1, 1], [0, 0]]
    frame.replied["busy_with"][:] = 2
    filled = {at: memory[at : at + 8].hex() for at in range(0, len(memory), 8) if any(memory[at : at + 8])}
    assert filled == {
        0: "316f70705f74696c",  # "lit_ppo1", its last letter first
        64: "0700000000000000",
        128: "0600000000000000",
        136: "0100000000000000",
        200: "0100000000000000",  # actions[1]
        256: "0000000000010000",  # next_seeds
        264: "0300000000000000",
        320: "0100000000000000",  # active
        384: "000000000000803f",  # rows: 0, 1
        392: "0000004000004040",
        400: "000080400000a040",
        448: "0000c0400000e040",  # final rows: from 6
        456: "0000004100001041",
        464: "0000204100003041",
        512: "000000000000e03f",  # rewards
        520: "00000000000000c0",
        576: "0100000101010000",  # terminated, truncated, reset, invalid
        640: "0200000000000000",  # busy with row 1
    }
    assert layout.total_bytes == 704


def test_frame_that_is_too_large_is_refused_with_its_size() -> None:
    with pytest.raises(ValueError, match=r"64 environments with observations of 16777216 bytes need a frame of"):
        FrameLayout(64, 1 << 24)
    assert FrameLayout(1, 1 << 24).total_bytes < MAX_FRAME_BYTES
