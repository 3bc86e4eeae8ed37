"""Classes and functions of a user, named in a command line or passed from Python."""

from typing import Any

from torch import Tensor, nn


class Torso(nn.Module):
    """One layer."""

    def __init__(self, inputs: int, width: int = 64) -> None:
        super().__init__()
        self.layer = nn.Linear(inputs, width)

    def forward(self, features: Tensor) -> Tensor:
        return self.layer(features)


def torso(inputs: int) -> nn.Module:
    return nn.Linear(inputs, 8)


def unannotated(inputs):  # type: ignore[no-untyped-def]
    return nn.Linear(inputs, 8)


def loss(*args: Any, **settings: Any) -> Any: ...


class Loss:
    """Has an argument, which an import path does not bring back."""

    def __init__(self, weight: float = 1.0) -> None:
        self.weight = weight

    def __call__(self, *args: Any, **settings: Any) -> Any: ...
