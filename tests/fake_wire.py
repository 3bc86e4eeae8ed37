"""The worker without a process, whose every exchange a test can make fail."""

from collections.abc import Callable
from typing import Any

from lit_ppo.bridge.inprocess import InProcessWorker


class FakeWire(InProcessWorker):
    """Calls a test before each exchange.

    Args:
        name: How messages call the worker.
        rows: Which rows of the batch its environments are.
        before: Called with the name of each exchange (a command, or `step`) before it is answered; what it raises is raised.
    """

    def __init__(self, name: str, rows: range, before: Callable[[str], None] = lambda exchange: None) -> None:
        super().__init__(name, rows)
        self._before = before

    @property
    def is_open(self) -> bool:
        return self._worker is not None

    def _call(self, request: str, function: Callable[[Any], object]) -> None:
        if request != "close":
            self._before(request)
        super()._call(request, function)
