"""YAML as people type it here: that of version 1.2 in what is a number and a boolean, without what only an attack needs."""

import re
from typing import Any, Final

import yaml

_FLOAT: Final = re.compile(
    r"[-+]?(?:(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9_]+)(?:[eE][-+]?[0-9]+)?|\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
)
_OwnLoader: Final = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # not for what others wrote: deep nesting ends the process
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
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _require_sane(node, {})
        return loader.construct_document(node)
    except RecursionError:
        raise yaml.YAMLError("expected YAML that is not nested as deeply") from None
    except (ValueError, OverflowError) as error:  # a number of thousands of digits
        raise yaml.YAMLError(str(error)) from None
    finally:
        loader.dispose()


def load_own(text: str) -> Any:
    """The value of YAML that lit_ppo wrote or ships, by the C library if there is one: every start waits for it."""
    return yaml.load(text, Loader=_OwnLoader)


def _require_sane(node: yaml.Node, sizes: dict[int, int]) -> int:
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
