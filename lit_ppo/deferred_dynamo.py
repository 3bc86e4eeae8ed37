"""Keeps `torch._dynamo`, the front end of torch.compile, from being imported by a run that compiles nothing.

Lightning imports it for one class, which it uses in `isinstance` checks, and every optimizer imports it to mark its methods as
not to be compiled: 2.8 s of a run that trains for one. Until something asks for more than that, a stand-in answers; then the
real package is imported in its place, and nothing is missing but those marks on methods that were called before.
"""

import importlib
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import torch

_NAME: Final = "torch._dynamo"


class _StandIn(ModuleType):
    """What stands in `sys.modules` for the package."""

    class OptimizedModule:
        """There is none as long as nothing was compiled."""

    @staticmethod
    def disable(fn: Callable[..., Any], recursive: bool = True, **kwargs: Any) -> Callable[..., Any]:
        """Nothing compiles, so nothing has to be kept from being compiled."""
        return fn

    @staticmethod
    def graph_break(msg: str = "") -> None:
        """There is no graph that could be broken."""

    def __getattr__(self, name: str) -> Any:
        return getattr(_real_package(), name)


class _SubmoduleFinder:
    """Finds nothing; sees that a submodule is wanted, and brings in the real package before it is looked for."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name.startswith(f"{_NAME}."):
            _real_package()
        return None


def _real_package() -> ModuleType:
    if isinstance(sys.modules.get(_NAME), _StandIn):
        sys.meta_path.remove(_SubmoduleFinder)
        del sys.modules[_NAME]
        del torch._dynamo
    return importlib.import_module(_NAME)


def defer_dynamo() -> None:
    """Put the stand-in in place, unless the package is there already."""
    if _NAME in sys.modules:
        return
    stand_in = _StandIn(_NAME)
    stand_in.__path__ = [str(Path(torch.__path__[0]) / "_dynamo")]
    stand_in.__spec__ = None
    sys.modules[_NAME] = stand_in
    torch._dynamo = stand_in
    sys.meta_path.insert(0, _SubmoduleFinder)
