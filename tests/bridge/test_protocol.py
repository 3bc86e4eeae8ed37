"""Control messages: what is encoded comes back, and of everything else nothing but a ProtocolError."""

import json
import math
import zlib
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lit_ppo.bridge.protocol import MAX_DEPTH, MAX_DIGITS, MAX_LINE_BYTES, decode, encode, take
from lit_ppo.errors import ProtocolError


def refusal(line: bytes) -> str:
    """Why JSON without a checksum is refused; with its checksum it must be, too."""
    with pytest.raises(ProtocolError) as raised:
        decode(line, checksum=False)
    with pytest.raises(ProtocolError):
        decode(line + b" %08x" % zlib.crc32(line))
    return str(raised.value)


# -- messages

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=15,
)


def depth(value: object) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if inner is None else 1 + max(map(depth, inner), default=0)


@given(st.dictionaries(st.text(), VALUES, max_size=6).filter(lambda message: depth(message) <= MAX_DEPTH))
@example({"x": -0.0, "y": 5e-324, "z": 2**64, 'q"\\': "\u2028\n\x00", "": []})
def test_what_is_encoded_comes_back(message: dict[str, Any]) -> None:
    for checksum in (True, False):
        line = encode(message, checksum=checksum)
        assert line.endswith(b"\n") and line.count(b"\n") == 1
        arrived = decode(line, checksum=checksum)
        assert json.dumps(arrived, sort_keys=True) == json.dumps(message, sort_keys=True)  # tells 1 from 1.0 and True


def crc32(data: bytes) -> int:
    """Bit by bit: polynomial 0x04C11DB7, reflected (ISO 3309)."""
    remainder = 0xFFFFFFFF
    for byte in data:
        remainder ^= byte
        for _ in range(8):
            remainder = remainder >> 1 ^ (0xEDB88320 if remainder & 1 else 0)
    return remainder ^ 0xFFFFFFFF


def test_the_checksum_is_the_crc32_of_the_json() -> None:
    assert crc32(b"123456789") == 0xCBF43926  # the check value of every catalogue
    assert encode({"cmd": "close"}) == b'{"cmd":"close"} %08x\n' % crc32(b'{"cmd":"close"}')
    assert encode({"cmd": "close"}, checksum=False) == b'{"cmd":"close"}\n'


def test_a_message_without_its_checksum_or_with_one_that_is_not_due_is_refused() -> None:
    message = {"seq": 1}
    line, due = b'{"seq":1}', crc32(b'{"seq":1}')
    with pytest.raises(ProtocolError) as raised:
        decode(line + b" 12345678")
    assert str(raised.value) == f"message: expected the checksum b' {due:08x}' at the end of {line!r}, got b' 12345678'"
    with pytest.raises(ProtocolError, match="message: expected the checksum"):
        decode(encode(message, checksum=False))
    with pytest.raises(ProtocolError, match="message: expected one JSON object on a line"):
        decode(encode(message), checksum=False)


# -- damage: whatever happens to a message on its way, it is never taken for another one

MESSAGES = st.dictionaries(st.text(), VALUES, max_size=6).filter(lambda message: depth(message) <= MAX_DEPTH)
CONTROL = {"cmd": "reset", "seq": 12, "seeds": [1, None, 2**62], "x": {"y": 1.5e-7, "ok": True, "té": 'a"\\b 1a2b3c4d'}}


def is_refused(line: bytes) -> bool:
    try:
        decode(line)
    except ProtocolError:
        return True
    return False


@given(MESSAGES)
@example(CONTROL)
@example({})
def test_every_flipped_bit_is_found(message: dict[str, Any]) -> None:
    line = encode(message)[:-1]
    for bit in range(8 * len(line)):
        damaged = bytearray(line)
        damaged[bit // 8] ^= 1 << bit % 8
        assert is_refused(bytes(damaged)), damaged


@given(MESSAGES)
@example(CONTROL)
@example({})
def test_every_cut_is_found(message: dict[str, Any]) -> None:
    line = encode(message)[:-1]
    for length in range(len(line)):
        assert is_refused(line[:length]) and is_refused(line[len(line) - length :])


@given(MESSAGES, st.data())
@example(CONTROL, None)
def test_bytes_that_are_lost_doubled_or_slipped_in_are_found(message: dict[str, Any], data: st.DataObject | None) -> None:
    line = encode(message)[:-1]
    inserted = b" 0\x00}" if data is None else data.draw(st.binary(min_size=1, max_size=4))
    for at in range(len(line)):
        assert is_refused(line[:at] + line[at + 1 :])
        assert is_refused(line[: at + 1] + line[at:])
        assert is_refused(line[:at] + inserted + line[at:])
        assert is_refused(line[:at] + line[at + 4 :]) and is_refused(line[: at + 4] + line[at:])
    assert is_refused(line + inserted) or inserted == b"\n"  # which is a doorbell after the message


@given(MESSAGES, st.data())
def test_a_message_that_is_overwritten_in_places_is_the_same_or_refused(message: dict[str, Any], data: st.DataObject) -> None:
    line = bytearray(encode(message)[:-1])
    for at, byte in data.draw(st.lists(st.tuples(st.integers(0, len(line) - 1), st.integers(0, 255)), max_size=8)):
        line[at] = byte
    assert bytes(line) == encode(message)[:-1] or is_refused(bytes(line))


def test_digits_of_the_checksum_have_one_spelling() -> None:
    line = encode(CONTROL)[:-1]
    assert line[-8:] != line[-8:].upper()
    for wrong in (line[:-8] + line[-8:].upper(), line[:-9] + b"\t" + line[-8:], line[:-9] + line[-8:], line + b"\r"):
        assert is_refused(wrong), wrong


def test_two_messages_without_the_newline_between_them_are_none() -> None:
    line = encode(CONTROL)
    assert is_refused(line[:-1] + line[:-1]) and is_refused(line + line)


def test_numbers_that_are_none_are_not_sent() -> None:
    for value in (math.nan, math.inf, -math.inf):
        with pytest.raises(ValueError, match="Out of range float"):
            encode({"x": value})


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"x":NaN}', "message: expected finite numbers, got NaN"),
        (b'{"x":Infinity}', "message: expected finite numbers, got Infinity"),
        (b'{"x":[-Infinity]}', "message: expected finite numbers, got -Infinity"),
        (b'{"x":1e999}', f"message: expected finite numbers of at most {MAX_DIGITS} digits, got 1e999"),
        (b'{"x":-1e999}', f"message: expected finite numbers of at most {MAX_DIGITS} digits, got -1e999"),
        (
            b'{"x":0.' + b"1" * 5000 + b"}",
            "message: expected finite numbers of at most 400 digits, got 0.1111111111111111111111",
        ),
        (b'{"x":' + b"9" * 5000 + b"}", "message: expected integers of at most 400 digits, got 5000"),
        (b'{"x":1,"x":2}', "message: expected every key once, got ['x', 'x']"),
        (b'{"y":{"a":1,"\\u0061":2}}', "message: expected every key once, got ['a', 'a']"),
        (b"[1,2]", "message: expected a JSON object, got list"),
        (b"null", "message: expected a JSON object, got NoneType"),
        (b"7", "message: expected a JSON object, got int"),
        (b'"x"', "message: expected a JSON object, got str"),
    ],
)
def test_what_is_json_to_python_alone_is_refused(line: bytes, message: str) -> None:
    assert refusal(line) == message


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b" ",
        b"{",
        b"{}{}",
        b"{} x",
        b'{"x":"\xff"}',
        b'{"x":"\xc3"}',
        b"\xef\xbb\xbf{}",
        b'{"x":"\n"}',
        b"{'x':1}",
        b'{"x":01}',
    ],
)
def test_what_is_no_json_is_refused(line: bytes) -> None:
    assert refusal(line).startswith("message: expected one JSON object on a line, got b")


@pytest.mark.parametrize("opening", [b"[", b'{"x":', b'[{"x":'])
@pytest.mark.parametrize("tail", [b"", b'"]]]]', b"]" * 100_000])
def test_deep_nesting_is_refused_before_a_recursive_parser_sees_it(opening: bytes, tail: bytes) -> None:
    assert refusal(b'{"x":' + opening * 100_000 + tail) == f"message: expected a depth of at most {MAX_DEPTH}"


def test_depth_is_counted_outside_strings() -> None:
    deepest = b'{"x":' + b"[" * (MAX_DEPTH - 1) + b"]" * (MAX_DEPTH - 1) + b"}"
    assert depth(decode(deepest, checksum=False)) == MAX_DEPTH
    assert "depth" in refusal(deepest.replace(b"[]", b"[[]]"))
    in_string = b'{"x":"' + b"[" * 100 + b'\\"' + b"{" * 100 + b'\\\\"}'
    assert decode(in_string, checksum=False) == {"x": "[" * 100 + '"' + "{" * 100 + "\\"}
    assert "depth" in refusal(b'{"x":"\\\\","y":' + b"[" * MAX_DEPTH + b"]" * MAX_DEPTH + b"}")  # that string has ended
    assert len(decode(b'{"x":[' + b",".join([b"[]"] * 1000) + b"]}", checksum=False)["x"]) == 1000


def test_length_is_bounded() -> None:
    longest = b'{"x":"' + b"a" * (MAX_LINE_BYTES - 8) + b'"}'
    assert len(decode(longest, checksum=False)["x"]) == MAX_LINE_BYTES - 8
    assert refusal(longest + b" ") == f"message: expected at most {MAX_LINE_BYTES} bytes, got {MAX_LINE_BYTES + 1}"


@pytest.mark.parametrize("digits", [MAX_DIGITS, MAX_DIGITS + 1])
def test_digits_are_bounded(digits: int) -> None:
    line = b'{"x":' + b"9" * digits + b"}"
    if digits <= MAX_DIGITS:
        assert decode(line, checksum=False)["x"] == 10**digits - 1
    else:
        assert "digits" in refusal(line)


def test_json_that_is_cut_anywhere_is_refused() -> None:
    line = encode({"seq": 12, "obs": [[1.5, -2e-7], []], "x": {"y": None, "ok": True, "té": 'a"\\b'}}, checksum=False)[:-1]
    assert decode(line, checksum=False)["seq"] == 12
    for length in range(len(line)):
        refusal(line[:length])


JSON_LIKE = st.text('{}[]",:0123456789eE.+-\\untrfalsbNI ', max_size=60).map(str.encode)


@settings(max_examples=400)
@given(st.binary(max_size=60) | JSON_LIKE | JSON_LIKE.map(lambda text: b'{"x":' + text + b"}"))
def test_arbitrary_bytes_are_an_object_or_a_protocol_error(line: bytes) -> None:
    try:
        message = decode(line, checksum=False)
    except ProtocolError:
        return
    assert type(message) is dict and decode(encode(message)) == message


def test_take_demands_exactly_the_kind() -> None:
    message: dict[str, Any] = {"n": 1, "flag": True, "x": 1.0, "none": None}
    assert take(message, "n", int) == 1 and take(message, "none", int, type(None)) is None
    for key, kinds, text in (
        ("flag", (int,), "flag: expected int, got True"),
        ("n", (float,), "n: expected float, got 1"),
        ("x", (int, type(None)), "x: expected int or null, got 1.0"),
        ("none", (str, dict), "none: expected str or dict, got None"),
        ("other", (int, type(None)), "other: expected int or null, got nothing"),
        ("other", (type(None),), "other: expected null, got nothing"),
    ):
        with pytest.raises(ProtocolError) as raised:
            take(message, key, *kinds)
        assert str(raised.value) == text
