"""YAML as people type it here: that of version 1.2 in what is a number and a boolean, without what only an attack needs."""

import re
from typing import Any, Final

import yaml

_FLOAT: Final = re.compile(
    r"[-+]?(?:(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9_]+)(?:[eE][-+]?[0-9]+)?|\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
)
_MAX_NODES: Final = 100_000  # of a document, each counted as often as aliases repeat it


class _Loader(yaml.SafeLoader):
    """`off`, `on`, `yes`, `no` and dates are words, 1e3 is a number."""

    yaml_implicit_resolvers = {
        letter: [(tag, pattern) for tag, pattern in resolvers if tag.rpartition(":")[2] not in ("bool", "float", "timestamp")]
        for letter, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile("(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


def load(text: str) -> Any:
    """The value of YAML.

    Raises:
        yaml.YAMLError: The text is no YAML, or too large, nested too deeply, or has a key twice.
    """
    try:
        if not _is_plain(text):
            _require_sane(yaml.compose(text, Loader=_Loader), {})
        return yaml.load(text, Loader=_Loader)
    except RecursionError:
        raise yaml.YAMLError("expected YAML that is not nested as deeply") from None
    except (ValueError, OverflowError) as error:  # a number of thousands of digits
        raise yaml.YAMLError(str(error)) from None


def _is_plain(text: str) -> bool:
    """Whether a text is a single scalar for sure, as most values of options are."""
    return set(text).isdisjoint("[{&*:\n")


def _require_sane(node: yaml.Node | None, sizes: dict[int, int]) -> int:
    """Refuse what YAML allows and no configuration needs: a key twice, aliases that multiply, or that contain themselves.

    Args:
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
            known: set[str] = set()
            for key in (key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
                if key in known:
                    raise yaml.YAMLError(f"expected every key once, got {key} twice")
                known.add(key)
            children = [child for pair in node.value for child in pair]
        sizes[id(node)] = 1 + sum(_require_sane(child, sizes) for child in children)
    if not 0 < sizes[id(node)] < _MAX_NODES:
        raise yaml.YAMLError(f"expected at most {_MAX_NODES} values, and no alias within what it stands for")
    return sizes[id(node)]
