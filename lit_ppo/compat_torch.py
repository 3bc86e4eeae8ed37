"""Every use that lit_ppo makes of torch's private names, written against torch 2.13.

A new release of torch may change them without notice. `tests/test_compat.py` tests that each does what it is used for, and that
a run without it still trains, only slower.

`torch._dynamo` is the front end of torch.compile. Importing it takes a second or more, and a run that compiles nothing does not
need it: Lightning imports it for one class, which it uses in `isinstance` checks, and every optimizer imports it to exempt its
methods from compilation. `defer_dynamo` puts a stand-in in its place. As soon as something asks for more than that class and
those exemptions, the real package is imported and replaces the stand-in; only methods called before lack exemptions.
"""

import importlib
import sys
from collections.abc import Callable, Iterable, Sequence
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, Final, Self

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
    if _NAME in sys.modules or find_spec(_NAME) is None:
        return
    stand_in = _StandIn(_NAME)
    stand_in.__path__ = [str(Path(torch.__path__[0]) / "_dynamo")]
    stand_in.__spec__ = None
    sys.modules[_NAME] = stand_in
    torch._dynamo = stand_in
    sys.meta_path.insert(0, _SubmoduleFinder)


def weight_and_bias(layer: nn.Linear) -> tuple[Tensor, Tensor]:
    """What `layer.weight` and `layer.bias` are: those take half a microsecond each, a tenth of a small network's time."""
    try:
        parameters: Any = layer._parameters
    except AttributeError:
        return layer.weight, layer.bias
    return parameters["weight"], parameters["bias"]


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """What `torch.nn.utils.clip_grad_norm_` does, bit for bit, without its time for several devices and dtypes: a third.

    Args:
        parameters: All on one device; those without a gradient are passed over.
        max_norm: Largest norm of all gradients together.

    Returns:
        That norm, before clipping; scalar.
    """
    parameters = list(parameters)
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not (hasattr(torch, "_foreach_norm") and hasattr(torch, "_foreach_mul_")):
        return nn.utils.clip_grad_norm_(parameters, max_norm)
    with torch.no_grad():
        norm: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients, 2.0)), 2.0)
        torch._foreach_mul_(gradients, (max_norm / (norm + 1e-6)).clamp(max=1.0))
    return norm


def backward_hook_owner(module: nn.Module) -> str | None:
    """Name of the first parameter or layer with a backward hook; None if there is none.

    torch has public functions that add hooks and none that tells whether there are any. Where it keeps them under another name,
    there may be some.
    """

    def may_have(owner: Any, *names: str) -> bool:
        return any(getattr(owner, name, True) for name in names)

    for name, parameter in module.named_parameters():
        if may_have(parameter, "_backward_hooks", "_post_accumulate_grad_hooks"):
            return name
    return next(
        (name for name, layer in module.named_modules() if may_have(layer, "_backward_hooks", "_backward_pre_hooks")), None
    )


class Float64Buffers(nn.Module):
    """A module with buffers that stay float64 when it, or a module that contains it, is converted to another dtype.

    They follow the device. `Module.to`, `float`, `half` and the like all convert through `_apply`, and no public hook tells a
    module that it was converted as a part of another one.

    Attributes:
        float64_buffers: Names of these buffers.
    """

    float64_buffers: tuple[str, ...] = ()

    def after_conversion(self) -> None:
        """Called after every conversion, with the float64 buffers in place; for what a subclass derives from them."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        before = {name: self.get_buffer(name) for name in self.float64_buffers}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, buffer in before.items():
            converted = self.get_buffer(name)
            if converted.dtype != buffer.dtype:
                setattr(self, name, buffer.to(converted.device))
        self.after_conversion()
        return self
