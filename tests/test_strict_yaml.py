"""Tests of the YAML that is read and written."""

import math
from typing import Any, Final

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lit_ppo import strict_yaml

READERS: Final = (strict_yaml.load, strict_yaml.load_own)
# https://yaml.org/spec/1.2.2/#103-core-schema, row by row, and what version 1.1 made of similar text
CORE: Final[dict[str, Any]] = {
    **dict.fromkeys(("null", "Null", "NULL", "~", ""), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    "0": 0,
    "-19": -19,
    "+12": 12,
    "010": 10,
    "08": 8,
    "-010": -10,
    "0o7": 7,
    "0o10": 8,
    "0x3A": 58,
    "0x1f": 31,
    "0.": 0.0,
    "-0.0": -0.0,
    ".5": 0.5,
    "+12e03": 12000.0,
    "-2E+05": -2e5,
    "1e3": 1e3,
    "08.5": 8.5,
    "1.5e3": 1.5e3,
    ".inf": math.inf,
    "-.Inf": -math.inf,
    "+.INF": math.inf,
    ".nan": math.nan,
    ".NaN": math.nan,
    ".NAN": math.nan,
    **{
        text: text
        for text in (
            *("12:30", "1:30:00", "190:20:30.15", "1_000", "1_0.5", "0b11", "0o8", "-0o7", "0xG", "-0x1", "0X1F", "0B1"),
            *("yes", "No", "ON", "off", "y", "n", "nULL", "tRUE", "2001-12-14", "2001-12-14t21:59:43.10-05:00", "="),
            *(".", "-.", "+", "1e", "e3", "1e3.5", "-.nan", "inf", "nan", "Infinity", "1.2.3", "٣", "\uff11\uff12"),
        )
    },
}
CONFUSABLE: Final = st.text("0123456789_:.+-eExXobBinfaNA~=<yY ", max_size=8) | st.sampled_from(sorted(CORE))
SCALARS: Final = (
    st.none() | st.booleans() | st.integers() | st.floats() | CONFUSABLE | st.text(st.characters(codec="utf-8"), max_size=8)
)
KEYS: Final = st.booleans() | st.integers() | CONFUSABLE | st.text(st.characters(codec="utf-8"), max_size=8)
DATA: Final = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(CONFUSABLE | KEYS, inner, max_size=4)
)


@pytest.mark.parametrize("text", CORE)
def test_plain_scalars_are_those_of_the_core_schema(text: str) -> None:
    for read in READERS:
        assert repr(read(text)) == repr(CORE[text])
        assert repr(read(f"{{key: [{text}]}}")) == repr({"key": [CORE[text]] if text else []})


@given(CONFUSABLE)
def test_both_readers_agree_on_any_plain_scalar(text: str) -> None:
    outcomes = []
    for read in READERS:
        try:
            outcomes.append(repr(read(text)))
        except yaml.YAMLError:
            outcomes.append("refused")
    assert outcomes[0] == outcomes[1]


@settings(max_examples=300)
@given(DATA)
@example("0o10")
@example("1.5e3")
@example("08")
@example({"12:30": ["12:30", "010", "yes", "null", "~", ".inf", "1e3", "<<", "=", "1_000"]})
def test_what_is_written_is_read_as_it_was_by_us_and_as_version_1_1(data: Any) -> None:
    text = strict_yaml.dump(data)
    for read in (*READERS, yaml.safe_load):
        assert repr(read(text)) == repr(data)


@pytest.mark.parametrize("text", ["{a: 1, 'a': 2}", "{10: a, 010: b}", "{1: a, 0x1: b}", "{1: a, 1.0: b}", "{~: a, null: b}"])
def test_keys_that_are_one_value_are_refused(text: str) -> None:
    with pytest.raises(yaml.YAMLError, match=r"expected every key once, got .* twice"):
        strict_yaml.load(text)


@pytest.mark.parametrize("tag", ["int", "float", "bool", "timestamp", "set", "omap", "pairs"])
@pytest.mark.parametrize("text", ["", "x", "'\u00e9'"])
def test_tag_that_its_value_does_not_fit_is_refused(tag: str, text: str) -> None:
    with pytest.raises(yaml.YAMLError):
        strict_yaml.load(f"{{key: !!{tag} {text}}}")
