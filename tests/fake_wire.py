"""A wire that joins bridge and worker in one process: the same messages and the same frame, without pipes and deadlines."""

from collections.abc import Callable
from typing import Any

from numpy.typing import NDArray

from lit_ppo.bridge import protocol
from lit_ppo.bridge.faults import error_from_json
from lit_ppo.bridge.frame import MAGIC, MAGIC_WORD, REPLY_WORD, REQUEST_WORD, STATUS_DONE, STATUS_WORD, Frame, FrameLayout
from lit_ppo.bridge.worker import Worker


class _JoinedWorker(Worker):
    """A worker whose answers and frame stay in this process."""

    def __init__(self) -> None:
        super().__init__(-1, -1, -1, {})
        self.sent: list[bytes] = []
        self.memory = bytearray()

    def attach(self, request: dict[str, Any]) -> dict[str, Any]:
        assert request["bytes"] == len(self.memory) == self.layout.total_bytes
        self.use(Frame(self.memory, self.layout))
        return {"attached": len(self.memory)}

    def send(self, rest: bytes) -> None:
        self.sent.append(rest)


class FakeWire:
    """Answers as `WorkerProcess` does; a test can make any exchange fail.

    Args:
        name: How messages call the worker.
        rows: Which rows of the batch its environments are.
        before: Called with the name of each exchange (a command, or `step`) before it is answered; what it raises is raised.
    """

    def __init__(self, name: str, rows: range, before: Callable[[str], None] = lambda exchange: None) -> None:
        self.name, self.rows, self._before = name, rows, before
        self._worker = _JoinedWorker()
        self._sequence = self._steps = 0
        self.requested: dict[str, NDArray[Any]] = {}
        self.replied: dict[str, NDArray[Any]] = {}
        self.is_open = True

    def ask(self, command: str, deadline_s: float, **fields: Any) -> dict[str, Any]:
        self.post(command, deadline_s, **fields)
        return self.reply(command, deadline_s)

    def post(self, command: str, deadline_s: float, **fields: Any) -> None:
        self._sequence += 1
        self._line = protocol.encode({"cmd": command, "seq": self._sequence, **fields})

    def reply(self, command: str, deadline_s: float) -> dict[str, Any]:
        self._before(command)
        self._worker.answer(self._line[:-1])
        return self._answer(self._sequence)

    def _answer(self, sequence: int) -> dict[str, Any]:
        message = protocol.decode(self._worker.sent.pop(0))
        assert message["seq"] == sequence
        if "error" in message:
            raise error_from_json(message["error"], self.rows)
        return message

    def attach(self, layout: FrameLayout, deadline_s: float) -> None:
        self._worker.memory = bytearray(layout.total_bytes)
        frame = Frame(self._worker.memory, layout)
        self._words, self.requested, self.replied = frame.words, frame.requested, frame.replied
        self._words[MAGIC_WORD] = MAGIC
        self.ask("attach", deadline_s, bytes=layout.total_bytes)

    def ring(self, deadline: float) -> None:
        self._steps += 1
        self._words[REQUEST_WORD] = self._steps

    def await_step(self, deadline: float) -> None:
        self._before("step")
        self._worker.step_frame()
        assert self._words[REPLY_WORD] == self._steps
        if self._words[STATUS_WORD] != STATUS_DONE:
            self._answer(-self._steps)
        assert self._worker.sent.pop() == protocol.DOORBELL

    def close(self, deadline_s: float) -> None:
        self.kill()

    def kill(self) -> None:
        if self.is_open:
            self.is_open = False
            self.requested, self.replied = {}, {}
