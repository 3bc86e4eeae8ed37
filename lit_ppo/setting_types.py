"""Names and types of the settings that a Python program gives; on the command line the parser checks them."""

import dataclasses
import numbers
import re
import types
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any, Final, Literal, Union, get_args, get_origin

from lit_ppo.errors import ConfigError, shown

_LONGEST_MESSAGE: Final = 1000
_NAMED_TYPES: Final = {
    "int": "an integer",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "NoneType": "null",
    "collections.abc.Sequence": "a list",
    "dict": "a mapping",
    "dict[str, int]": "a mapping to integers",
    "dict[str, lit_ppo.option_parser.Verbatim]": "a mapping",
    "list[lit_ppo.option_parser.Verbatim]": "a list",
    "dict[str, typing.Any]": "a mapping",
    "list[str | dict[str, typing.Any]]": "a list",
}
_WORDS: Final = {int: "a whole number", float: "a number", bool: "True or False", str: "text", type(None): "None"}


def kinds_of(settings: type) -> dict[str, Any]:
    """The annotated types of a dataclass's fields, by name."""
    return {field.name: field.type for field in dataclasses.fields(settings)}


def require_settings(given: Mapping[str, Any], kinds: Mapping[str, Any], section: str) -> None:
    """Refuse settings that do not exist, or whose value has another type.

    Args:
        given: Settings by name.
        kinds: Types of those that exist.
        section: What an error puts before the name: `model`, `data`.

    Raises:
        ConfigError: There is such a setting.
    """
    for name, value in given.items():
        if name not in kinds:
            similar = get_close_matches(name, kinds, n=1)
            advice = f"did you mean {similar[0]}?" if similar else "a setting of a subclass needs that subclass"
            raise ConfigError(f"{section}.{name}: there is no such setting; {advice}")
        if not _fits(value, kinds[name]):
            given_value = str(value) if _words_of(kinds[name]) else shown(value)  # with its quotes where it may be no text
            raise ConfigError(f"{section}.{name}={given_value}: expected {_in_words(kinds[name])}")


def _fits(value: object, kind: Any) -> bool:
    """Whether a value has a type; True for types that say nothing of plain data, such as callables."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return any(_fits(value, argument) for argument in arguments)
    if origin is Literal:
        return value in arguments
    if origin in (list, Sequence):
        is_union = get_origin(arguments[0]) in (Union, types.UnionType)  # what such items must be, the settings say themselves
        return isinstance(value, list | tuple) and (is_union or all(_fits(item, arguments[0]) for item in value))
    if origin is dict:
        return isinstance(value, Mapping) and all(_fits(item, arguments[1]) for item in value.values())
    if kind in (int, float):
        number = numbers.Integral if kind is int else numbers.Real
        return isinstance(value, number) and not isinstance(value, bool)
    return isinstance(value, kind) if kind in _WORDS else True


def _words_of(kind: Any) -> list[str]:
    """The words of which a value must be one, and null if it may be missing; empty for other types."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        return [str(argument) for argument in arguments]
    if origin in (Union, types.UnionType) and all(get_origin(kind) is Literal or kind is type(None) for kind in arguments):
        return [word for argument in arguments for word in _words_of(argument) or ["null"]]
    return []


def _in_words(kind: Any) -> str:
    origin, arguments = get_origin(kind), get_args(kind)
    if words := _words_of(kind):
        return " or ".join(filter(None, [", ".join(words[:-1]), words[-1]]))
    if origin in (Union, types.UnionType):
        return " or ".join(_in_words(argument) for argument in arguments)
    if origin in (list, Sequence):
        return f"a list, each item {_in_words(arguments[0])}"
    return str(_WORDS.get(kind, getattr(kind, "__name__", kind)))


# -- on the command line


def words_of_names(kinds: Sequence[str]) -> str:
    """The names of types in words: `null`, `an integer or null`, `warn, error or off`."""
    words: list[str] = []
    for kind in kinds:
        literal = re.fullmatch(r"Literal\[(.*)\]", kind)
        plain = _NAMED_TYPES.get(kind, re.sub(r"[\w.]+\.", "", kind))
        words += literal[1].replace("'", "").split(", ") if literal else [plain]
    *others, last = dict.fromkeys(words)
    return f"{', '.join(others)} or {last}" if others else last


def words_of_option(kind: Any) -> str:
    """The values that an option takes, in words."""
    names = [
        getattr(each, "__name__", "") if type(each) is type else str(each).removeprefix("typing.") for each in _branches(kind)
    ]
    return words_of_names(names)


def _branches(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)


def value_of_option(name: str, text: str, kind: Any) -> Any:
    """The value of an option that was typed, as `fit` reads and refuses it.

    Args:
        name: Of the option there: `data.python`.
        text: YAML; where text is expected, numbers and the like are text, too.
        kind: Type of the setting.

    Raises:
        ConfigError: The value has another type.
    """
    import yaml  # here, so that --help does not pay for it

    from lit_ppo import strict_yaml

    try:
        value = strict_yaml.load(text)
    except (yaml.YAMLError, ValueError):  # the latter of numbers with thousands of digits
        value = text
    if not isinstance(value, str) and _fits(value, kind):
        return float(value) if kind is float else value
    if _fits(text, kind):
        return text
    got = value if isinstance(value, list | dict) else text
    raise ConfigError(cut_short(f"{name}: expected {words_of_option(kind)}, got {got}"))


def cut_short(message: str) -> str:
    """A message whose quotations may be of any length."""
    return message if len(message) <= _LONGEST_MESSAGE else f"{message[:_LONGEST_MESSAGE]}..."
