"""A user's own classes and functions as plain data: import path and arguments, for checkpoints.

A checkpoint never holds the callable itself, and what it holds is never imported: it may come from elsewhere. The description
is for information, and for the message that asks for the callable.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, NoReturn

import torch

from lit_ppo.errors import ConfigError

_KEYS = {"class_path", "init_args"}
_PLAIN = (type(None), bool, int, float, str, bytes, torch.Tensor, torch.Size, torch.dtype, torch.device)


def plain(value: Any, name: str) -> Any:
    """The same value as plain data, which `torch.load(weights_only=True)` reads: callables become their descriptions.

    Args:
        value: Data, or a mapping or sequence of data.
        name: What an error calls it.

    Raises:
        ConfigError: It contains a value that is neither plain data nor callable.
    """
    if type(value) in _PLAIN:
        return value
    if isinstance(value, Mapping):
        return {key: plain(item, f"{name}.{key}") for key, item in value.items()}
    if type(value) in (list, tuple, set):
        return type(value)(plain(item, name) for item in value)
    if isinstance(value, PartOfCheckpoint):
        return value.description
    if callable(value):
        return described(value)
    raise ConfigError(f"{name}: expected plain data, which a checkpoint can hold, got {type(value).__name__}")


def described(value: Any) -> dict[str, Any]:
    """Import path and arguments of a class, a function or a `functools.partial` of one.

    Returns:
        `class_path` and `init_args`; the latter is None for anything that an import path does not bring back: a lambda, a local
        function, an object, a partial with other arguments than plain keyword ones.
    """
    target: Any = value
    positional: tuple[Any, ...] = ()
    keywords: dict[str, Any] = {}
    if isinstance(value, partial):
        target, positional, keywords = value.func, value.args, value.keywords
        if str(getattr(target, "__module__", "")).startswith("jsonargparse."):  # its own function, called with the class
            target, positional = next(item for item in positional if isinstance(item, type)), ()
    is_named = hasattr(target, "__qualname__")
    named: Any = target if is_named else type(target)
    is_importable = is_named and "<" not in named.__qualname__ and not hasattr(target, "__self__")
    try:
        arguments = plain(keywords, "") if is_importable and not positional else None
    except ConfigError:
        arguments = None
    return {"class_path": f"{named.__module__}.{named.__qualname__}", "init_args": arguments}


def is_description(value: object) -> bool:
    """Whether a value is what `described` returns."""
    return isinstance(value, Mapping) and set(value) == _KEYS


def in_words(description: Mapping[str, Any]) -> str:
    """A description as it would be typed in Python: `my_package.MyTorso(width=128)`."""
    arguments = ", ".join(
        f"{name}={in_words(value) if is_description(value) else repr(value)}"
        for name, value in (description["init_args"] or {}).items()
    )
    return f"{description['class_path']}({arguments})" if arguments else str(description["class_path"])


class PartOfCheckpoint:
    """Stands for a callable of which a checkpoint has only the description; to call it is an error.

    Args:
        setting: Name of the setting, such as `optimizer`.
        description: What the checkpoint holds.
    """

    def __init__(self, setting: str, description: dict[str, Any]) -> None:
        self.setting, self.description = setting, description

    def error(self) -> ConfigError:
        """The error that asks for the callable."""
        return ConfigError(
            f"model.{self.setting}: the checkpoint was made with {in_words(self.description)}; "
            f"pass it: load_from_checkpoint(path, {self.setting}=...)"
        )

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Raise that error.

        Raises:
            ConfigError: Always.
        """
        raise self.error()
