"""Every use that lit_ppo makes of torch's private names, written against torch 2.13.

A new release of torch may change them without notice; `tests/test_compat.py` tests each of them.

`torch._dynamo` is the front end of torch.compile. Importing it takes a second or more, and a run that compiles nothing does not
need it: Lightning imports it for one class, which it uses in `isinstance` checks, and every optimizer imports it to exempt its
methods from compilation. `defer_dynamo` puts a stand-in in its place. As soon as something asks for more than that class and
those exemptions, the real package is imported and replaces the stand-in; only methods called before lack exemptions.
"""

import importlib
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any, Final, cast

import torch
from torch import Tensor, nn

_NAME: Final = "torch._dynamo"


class _StandIn(ModuleType):
    """Stands in `sys.modules` for the package."""

    class OptimizedModule:
        """Has no instances until something is compiled."""

    @staticmethod
    def disable(fn: Callable[..., Any], recursive: bool = True, **kwargs: Any) -> Callable[..., Any]:
        """Returns the function itself: nothing is compiled yet, so nothing needs an exemption."""
        return fn

    @staticmethod
    def graph_break(msg: str = "") -> None:
        """Does nothing: no graph is being recorded."""

    def __getattr__(self, name: str) -> Any:
        return getattr(_real_package(), name)


class _SubmoduleFinder:
    """Finds nothing itself, but imports the real package before the import system looks for one of its submodules."""

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
    """Put the stand-in in place, unless the real package is already imported."""
    if _NAME in sys.modules:
        return
    stand_in = _StandIn(_NAME)
    stand_in.__path__ = [str(Path(torch.__path__[0]) / "_dynamo")]
    stand_in.__spec__ = None
    sys.modules[_NAME] = stand_in
    torch._dynamo = stand_in
    sys.meta_path.insert(0, _SubmoduleFinder)


def weight_and_bias(layer: nn.Linear) -> tuple[Tensor, Tensor]:
    """What `layer.weight` and `layer.bias` are: those take half a microsecond each, a tenth of a small network's time."""
    parameters = cast(dict[str, Tensor], layer._parameters)
    return parameters["weight"], parameters["bias"]


def backward_hook_owner(module: nn.Module) -> str | None:
    """Name of the first parameter or layer with a backward hook; None if there is none.

    torch has public functions that add hooks and none that tells whether there are any.
    """
    for name, parameter in module.named_parameters():
        if parameter._backward_hooks or getattr(parameter, "_post_accumulate_grad_hooks", None):
            return name
    return next((name for name, layer in module.named_modules() if layer._backward_hooks or layer._backward_pre_hooks), None)
