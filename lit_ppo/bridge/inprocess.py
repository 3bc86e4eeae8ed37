"""A worker without a process: the same messages, contract and frame layout, answered inside the trainer.

For a debugger, a notebook, or tests. Nothing isolates the run: a crash of the environment is the run's, a hang has no deadline,
and what it changes in the interpreter stays changed. This file changes nothing there itself.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from numpy.typing import NDArray

from lit_ppo.bridge import protocol
from lit_ppo.bridge.faults import error_from_json
from lit_ppo.bridge.frame import MAGIC, MAGIC_WORD, REQUEST_WORD, STATUS_DONE, STATUS_WORD, Frame, FrameLayout, busy
from lit_ppo.errors import WorkerExited

if TYPE_CHECKING:
    from lit_ppo.bridge.worker import Worker

_NO_DESCRIPTOR: Final = -1


class InProcessWorker:
    """Answers as `process.WorkerProcess` does. Deadlines are not looked at: a call into the environment cannot be broken off.

    Args:
        name: How messages call it.
        rows: Which rows of the trainer's batch its environments are.
    """

    def __init__(self, name: str, rows: range) -> None:
        from lit_ppo.bridge.worker import Worker  # imports gymnasium, which a trainer with worker processes need not have

        self.name, self.rows = name, rows
        self._worker: Worker | None = Worker(_NO_DESCRIPTOR, _NO_DESCRIPTOR, _NO_DESCRIPTOR, {})
        self._sent: list[bytes] = []
        self._worker.send = self._sent.append  # type: ignore[method-assign, assignment]
        self._sequence = self._step_number = 0
        self._request = b""
        self.requested: dict[str, NDArray[Any]] = {}
        self.replied: dict[str, NDArray[Any]] = {}

    def ask(self, command: str, deadline_s: float, **fields: Any) -> dict[str, Any]:
        """Send one request and take its reply; errors as in `WorkerProcess.ask`."""
        self.post(command, deadline_s, **fields)
        return self.reply(command, deadline_s)

    def post(self, command: str, deadline_s: float, **fields: Any) -> None:
        """Keep a request until its reply is asked for."""
        self._sequence += 1
        self._request = protocol.encode({"cmd": command, "seq": self._sequence, **fields})

    def reply(self, command: str, deadline_s: float) -> dict[str, Any]:
        """Answer the request."""
        self._call(command, lambda worker: worker.answer(self._request))
        return self._received()

    def _call(self, request: str, function: Callable[["Worker"], object]) -> None:
        """Let the worker do something.

        Raises:
            WorkerExited: It was ended.
        """
        if self._worker is None:
            raise WorkerExited(f"{self.name} had ended before {request}")
        function(self._worker)

    def _received(self) -> dict[str, Any]:
        message = protocol.decode(self._sent.pop(0))
        if "error" in message:
            raise error_from_json(message["error"], self.rows, busy(self.rows, self.replied))
        return message

    def attach(self, layout: FrameLayout, deadline_s: float) -> None:
        """Share a frame in private memory."""
        frame = Frame(bytearray(layout.total_bytes), layout)
        self._words, self.requested, self.replied = frame.words, frame.requested, frame.replied
        self._words[MAGIC_WORD] = MAGIC
        self._call("attach", lambda worker: worker.use(frame))

    def ring(self, deadline: float) -> None:
        """Ask for the step that stands in the frame."""
        self._step_number += 1
        self._words[REQUEST_WORD] = self._step_number

    def await_step(self, deadline: float) -> None:
        """Make the step; afterwards `replied` holds the answer."""
        self._call("step", lambda worker: worker.step_frame())
        doorbell = self._sent.pop()
        assert doorbell == protocol.DOORBELL
        if self._words[STATUS_WORD] != STATUS_DONE:
            self._received()

    def printed(self) -> str:
        """Nothing: what the environments print has reached the user already."""
        return ""

    def show_printed(self, show: Callable[[str], None]) -> None:
        """As `printed`."""

    def close(self, deadline_s: float) -> None:
        """Close the environments."""
        if self._worker is not None:
            self.post("close", deadline_s)
            self._call("close", lambda worker: worker.answer(self._request))
            self.kill()

    def kill(self) -> None:
        """Forget the environments."""
        self._worker = None
        self.requested, self.replied = {}, {}


def started_in_process(python: str | None, name: str, rows: range, confinement: dict[str, Any]) -> InProcessWorker:
    """A worker without a process; the settings refuse all that needs one."""
    return InProcessWorker(name, rows)
