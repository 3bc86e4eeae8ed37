"""YAML as people type it here: the core schema of version 1.2, without what only an attack needs.

`12:30`, `1_000`, `off` and dates are text, `010` is 10, `0o10` is 8, `1e3` is a number.

Source: https://yaml.org/spec/1.2.2/#103-core-schema
"""

import enum
import re
from typing import Any, ClassVar, Final

import yaml

_MAX_NODES: Final = 100_000  # of a document, each counted as often as aliases repeat it
_MAX_DIGITS: Final = 4000
_CORE: Final = [  # the first that matches a plain scalar is its tag
    (f"tag:yaml.org,2002:{name}", re.compile(rf"(?:{pattern})\Z"))
    for name, pattern in {
        "null": r"null|Null|NULL|~|",
        "bool": r"true|True|TRUE|false|False|FALSE",
        "int": r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+",
        "float": r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "merge": r"<<",  # of version 1.1
    }.items()
]


def _integer(loader: Any, node: yaml.ScalarNode) -> int:
    text = loader.construct_scalar(node)
    if len(text) > _MAX_DIGITS:  # base 16 has no limit of Python's, and the number could not be shown
        raise ValueError(f"expected numbers of at most {_MAX_DIGITS} digits")
    return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))


class _CoreSchema:
    yaml_implicit_resolvers: ClassVar[dict[Any, Any]] = {None: _CORE}  # whatever the first character is
    yaml_constructors: ClassVar[dict[Any, Any]] = {
        **yaml.SafeLoader.yaml_constructors,
        "tag:yaml.org,2002:int": _integer,
        "tag:yaml.org,2002:merge": yaml.SafeLoader.construct_yaml_str,  # where it merges nothing
    }


class _Loader(_CoreSchema, yaml.SafeLoader): ...


# Not for what others wrote: deep nesting ends the process.
class _OwnLoader(_CoreSchema, getattr(yaml, "CSafeLoader", yaml.SafeLoader)): ...  # type: ignore[misc]


class _Dumper(getattr(yaml, "CSafeDumper", yaml.SafeDumper)):  # type: ignore[misc]  # that of the C library: every start waits
    """Quotes the strings that version 1.1 or 1.2 would take for something else, so that both read the same."""


_Dumper.add_multi_representer(enum.Enum, lambda dumper, member: dumper.represent_data(member.value))  # defaults of Lightning's
for _tag, _pattern in _CORE:
    _Dumper.add_implicit_resolver(_tag, _pattern, None)


def load(text: str) -> Any:
    """The value of YAML.

    Raises:
        yaml.YAMLError: The text is no YAML, or too large, nested too deeply, or has a key twice.
    """
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _require_sane(loader, node, {})
        return loader.construct_document(node)
    except RecursionError:
        raise yaml.YAMLError("expected YAML that is not nested as deeply") from None
    except (ValueError, OverflowError, LookupError, AttributeError) as error:  # thousands of digits, !!bool x
        raise yaml.YAMLError(str(error)) from None
    finally:
        loader.dispose()


def load_own(text: str) -> Any:
    """The value of YAML that lit_ppo wrote or ships, by the C library if there is one: every start waits for it."""
    return yaml.load(text, Loader=_OwnLoader)


def dump(data: Any) -> str:
    """Plain data as YAML, from which `load` gives the same data."""
    text: str = yaml.dump(data, Dumper=_Dumper, default_flow_style=False, allow_unicode=True, sort_keys=False)
    return text


def _require_sane(loader: _Loader, node: yaml.Node, sizes: dict[int, int]) -> int:
    """Refuse what YAML allows and no configuration needs: a key twice, aliases that multiply, or that contain themselves.

    Args:
        loader: Of the text.
        node: Of the tree that the text describes.
        sizes: Of the nodes that were visited, by identity; 0 while a node is being visited.

    Returns:
        How many nodes there are, with all that aliases repeat.

    Raises:
        yaml.YAMLError: There is one of these.
    """
    if not isinstance(node, yaml.CollectionNode):
        return 1
    if id(node) not in sizes:
        sizes[id(node)] = 0
        children = node.value
        if isinstance(node, yaml.MappingNode):
            known: set[Any] = set()
            for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
                value = loader.construct_object(key)
                if value in known:
                    raise yaml.YAMLError(f"expected every key once, got {key.value} twice")
                known.add(value)
            children = [child for pair in node.value for child in pair]
        sizes[id(node)] = 1 + sum(_require_sane(loader, child, sizes) for child in children)
    if not 0 < sizes[id(node)] < _MAX_NODES:
        raise yaml.YAMLError(f"expected at most {_MAX_NODES} values, and no alias within what it stands for")
    return sizes[id(node)]
