"""Names and types of the settings that a Python program gives; on the command line the parser checks them."""

import dataclasses
import numbers
import types
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any, Final, Literal, Union, get_args, get_origin

from lit_ppo.errors import ConfigError, shown

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
        return isinstance(value, list | tuple) and all(_fits(item, arguments[0]) for item in value)
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
