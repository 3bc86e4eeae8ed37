"""One worker process: spawn it, talk to it with a deadline on every wait, end it.

Rules. What may follow what is a table (`_NEXT`): one request at a time, by message or through the frame. A worker that has
missed a deadline, broken the protocol or died is of no further use: its owner kills it and may start another. `kill` and
`close` never raise and never wait long.
"""

import fcntl
import os
import signal
from collections.abc import Callable
from mmap import mmap
from time import monotonic, perf_counter
from typing import Any, Final, NoReturn

from numpy.typing import NDArray

from lit_ppo.bridge import protocol
from lit_ppo.bridge.channel import Channel
from lit_ppo.bridge.child import Child
from lit_ppo.bridge.command import worker_command
from lit_ppo.bridge.doorbell import Doorbell
from lit_ppo.bridge.faults import error_from_json
from lit_ppo.bridge.frame import (
    MAGIC,
    MAGIC_WORD,
    REPLY_WORD,
    REQUEST_WORD,
    STATUS_DONE,
    STATUS_WORD,
    Frame,
    FrameLayout,
    busy,
)
from lit_ppo.errors import (
    BridgeError,
    ConfigError,
    ContractViolation,
    EnvironmentRaised,
    ProtocolError,
    WorkerDefect,
    WorkerExited,
    WorkerTimeout,
    shown,
)

STEPS_PER_DRAIN: Final = 2048  # doorbells that were polled for stay in the pipe until then
# What a shell, a supervisor or the kernel's killer for want of memory sends; a program that fails gets another signal.
_SENT_BY_OTHERS: Final = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_ANSWERED_ERRORS: Final = (ConfigError, ContractViolation, EnvironmentRaised, WorkerDefect)


# What a worker owes us. Strings rather than an Enum, whose hash is computed anew in each of the two look-ups of a step.
IDLE: Final = "is idle"
ASKED: Final = "owes a reply"
STEPPING: Final = "owes a step"
ENDED: Final = "has ended"

# The state that each order leads to. An order that a state does not have is an error of the caller, or follows a failed one.
_NEXT: Final[dict[str, dict[str, str]]] = {
    IDLE: {"post": ASKED, "ring": STEPPING},
    ASKED: {"reply": IDLE},
    STEPPING: {"await_step": IDLE},
    ENDED: {},
}


class WorkerProcess:
    """A worker process and its shared frame.

    Args:
        python: Interpreter to run it with; None for this one.
        name: How messages call it.
        rows: Which rows of the trainer's batch its environments are.
        confinement: As in `guard.split`; defaults are an empty working directory, no limits, no sandbox.

    Raises:
        ConfigError: The interpreter cannot be run, or this is not Linux.
    """

    def __init__(
        self,
        python: str | None = None,
        name: str = "worker",
        rows: range = range(1),
        confinement: dict[str, Any] | None = None,
    ) -> None:
        self.name, self.rows = name, rows
        self._sequence = self._step_number = 0
        self._post_failure: BridgeError | None = None
        self._calling: int | None = None  # the environment that had the newest deadline of `_wait`
        self._calls_left, self._call_s = 0, 0.0
        self.frame: Frame | None = None
        self.requested: dict[str, NDArray[Any]] = {}
        self.replied: dict[str, NDArray[Any]] = {}
        self.exit_status: int | None = None
        self._child = Child(python, confinement or {})
        self.channel = Channel(self._child.requests, self._child.replies, self._child.stderr, self._child.pidfd)
        self._doorbell: Doorbell
        self._words: memoryview[int]
        self._state = IDLE

    @property
    def guard_pid(self) -> int:
        """Process number of the guard, which is our child; the worker is the guard's."""
        return self._child.guard_pid

    def is_as(self, python: str | None, confinement: dict[str, Any]) -> bool:
        """Whether a worker that is started now with these arguments would be the same."""
        return self._child.command == worker_command(python, confinement)

    def _refuse(self, request: str) -> NoReturn:
        """Raise for an order that the table does not have in this state.

        Raises:
            WorkerExited: The worker was ended.
            BridgeError: It owes something else, which it will not give any more.
        """
        if self._state is ENDED:
            raise self._exited(request)
        raise BridgeError(f"{self.name}: {request} is not possible while it {self._state}")

    # -- control messages

    def ask(self, command: str, deadline_s: float, **fields: Any) -> dict[str, Any]:
        """Send one request and wait for its reply.

        Raises:
            ConfigError, ContractViolation, EnvironmentRaised: What the worker answered, if it was no success.
            WorkerExited, WorkerTimeout, ProtocolError: There was no proper answer.
        """
        deadline = monotonic() + deadline_s
        self.post(command, deadline_s, **fields)
        return self.reply(command, deadline - monotonic())

    def post(self, command: str, deadline_s: float, **fields: Any) -> None:
        """Send one request and go on; `reply` must come before the next one, and raises what fails here.

        A message that does not fit into the pipe (64 KiB) blocks until the worker reads it.
        """
        self._post_failure = None
        self._allow(len(self.rows) if command == "reset" else 0, deadline_s)
        try:
            self._state = _NEXT[self._state].get("post") or self._refuse(command)
            self._sequence += 1
            message = protocol.encode({"cmd": command, "seq": self._sequence, **fields})
            self._write(message, command, monotonic() + deadline_s)
        except BridgeError as failure:
            self._post_failure = failure

    def reply(self, command: str, deadline_s: float) -> dict[str, Any]:
        """Wait for the reply to `post`.

        Raises:
            As `ask`.
        """
        if self._post_failure is not None:
            raise self._post_failure
        body = self._read_reply(self._sequence, command, monotonic() + deadline_s)
        if "error" in body:
            raise self._error(body)
        return body

    def _write(self, data: bytes, request: str, deadline: float) -> None:
        try:
            self.channel.write(data, deadline)
        except (BrokenPipeError, EOFError):
            raise self._exited(request) from None
        except TimeoutError:
            raise self._late(request) from None

    def _read_reply(self, sequence: int, request: str, deadline: float) -> dict[str, Any]:
        """The next message, which must be the answer to `sequence`."""
        try:
            while (line := self.channel.next_line()) is None:
                deadline = self._wait(request, deadline)
            order = "reply" if sequence > 0 else "await_step"  # a refusal is an answer, too
            self._state = _NEXT[self._state].get(order) or self._refuse(request)
            message = protocol.decode(line)
        except ProtocolError as error:
            raise ProtocolError(f"{self.name}: {error}") from error
        if type(message.get("seq")) is not int or message["seq"] != sequence:
            raise ProtocolError(
                f"{self.name}: expected the reply to {request} (seq {sequence}), got seq {shown(message.get('seq'))}"
            )
        return message

    # -- steps

    def attach(self, layout: FrameLayout, deadline_s: float) -> None:
        """Lay out the shared frame and hand it over; from here on its size is sealed.

        Raises:
            As `ask`.
        """
        try:
            os.ftruncate(self._child.frame_fd, layout.total_bytes)
            # an unsealed file that the worker truncates would kill us with SIGBUS
            fcntl.fcntl(self._child.frame_fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
            mapping = mmap(self._child.frame_fd, layout.total_bytes)
        except (OSError, ValueError) as error:  # the worker has sealed it first, or cut it in between
            raise ProtocolError(f"{self.name}: expected a frame that can be sized and sealed: {error}") from error
        self.frame = Frame(mapping, layout)
        self._words = self.frame.words
        self._words[MAGIC_WORD] = MAGIC
        self.requested, self.replied = self.frame.requested, self.frame.replied
        self._doorbell = Doorbell(self._words, REPLY_WORD)
        self.ask("attach", deadline_s, bytes=layout.total_bytes)

    def ring(self, deadline: float) -> None:
        """Ask for the step that stands in the frame."""
        self._state = _NEXT[self._state].get("ring") or self._refuse("step")
        self._allow(2 * len(self.rows), deadline - monotonic())  # a reset may follow each step
        self._step_number += 1  # our own count: the worker can overwrite the one in the frame
        self._words[REQUEST_WORD] = self._step_number
        try:
            os.write(self._child.requests, protocol.DOORBELL)
        except BlockingIOError:
            self._write(protocol.DOORBELL, "step", deadline)
        except BrokenPipeError:
            raise self._exited("step") from None
        if self.channel.show is not None:
            self.channel.drain_printed()  # a step that is polled for does not look at the pipes

    def await_step(self, deadline: float) -> None:
        """Wait for the answer to `ring`; afterwards `replied` holds it.

        Raises:
            As `ask`.
        """
        number = self._step_number  # but no name for the words: a traceback would keep the frame mapped
        if not self._doorbell.poll(number):
            start = perf_counter()
            while (arrived := self._words[REPLY_WORD]) != number:
                if arrived != number - 1:
                    raise ProtocolError(f"{self.name}: expected {number} as the reply's number, got {arrived}")
                deadline = self._wait("step", deadline, for_message=False)
            self._doorbell.waited(perf_counter() - start)
        if self._words[STATUS_WORD] != STATUS_DONE:
            raise self._error(self._read_reply(-number, "step", deadline))
        self._state = _NEXT[self._state].get("await_step") or self._refuse("step")
        if number % STEPS_PER_DRAIN == 0 and (rest := self.channel.message_bytes()):
            raise ProtocolError(f"{self.name}: expected nothing but doorbells between steps, got {shown(rest[:80])}")

    # -- failures

    def _error(self, body: dict[str, Any]) -> Exception:
        """The error that a reply says."""
        return error_from_json(protocol.take(body, "error", dict), self.rows, busy(self.rows, self.replied))

    def _allow(self, calls: int, call_s: float) -> None:
        """Give a request this many seconds for each of its calls of environments."""
        self._calling, self._calls_left, self._call_s = None, calls, call_s

    def _wait(self, request: str, deadline: float, *, for_message: bool = True) -> float:
        """Sleep until something arrives, but not for long.

        When the worker has gone on to another environment, the deadline begins anew: many slow environments are not one that
        hangs. Their number bounds how long a worker that lies can put it off.

        Returns:
            The deadline from now on.
        """
        calling = busy(self.rows, self.replied).env
        if calling not in (None, self._calling) and self._calls_left:
            self._calling, self._calls_left = calling, self._calls_left - 1
            deadline = monotonic() + self._call_s
        try:
            self.channel.wait(deadline, for_message=for_message)
        except TimeoutError:
            raise self._late(request) from None
        except EOFError:
            raise self._exited(request) from None
        return deadline

    def _late(self, request: str) -> WorkerTimeout:
        at = busy(self.rows, self.replied)
        late = WorkerTimeout(f"{self.name} did not answer {request} in time", "did not answer in time", at.env)
        late.in_next_reset = at.in_next_reset
        late.printed = self.printed()
        return late

    def _exited(self, request: str) -> WorkerExited:
        at = busy(self.rows, self.replied)
        self.kill()
        status = self.exit_status
        if status is not None and status < 0:
            known = -status in set(signal.Signals)  # most real-time signals have no name
            outcome = f"was killed by {signal.Signals(-status).name if known else f'signal {-status}'}"
        else:
            outcome = f"exited with status {status}"
        exited = WorkerExited(f"{self.name} {outcome} while answering {request}", outcome, at.env)
        exited.in_next_reset = at.in_next_reset
        exited.is_killed = status is not None and -status in _SENT_BY_OTHERS
        exited.printed = self.printed()
        return exited

    # -- what its environments print

    def printed(self) -> str:
        """The end of what its environments have printed, safe to show."""
        if self._state is not ENDED:
            self.channel.drain_printed()
        return self.channel.printed()

    def show_printed(self, show: Callable[[str], None]) -> None:
        """Call `show` with each line that its environments print from now on."""
        self.channel.show = show

    # -- the end

    def close(self, deadline_s: float) -> None:
        """Let the environments close, then end the process; kill it if all that takes too long."""
        deadline = monotonic() + deadline_s
        self._calls_left = 0  # this deadline is for all that is still to be done
        try:
            self._settle(deadline)
            self.ask("close", deadline - monotonic())
            self._child.wait(max(0.0, deadline - monotonic()))
        except (*_ANSWERED_ERRORS, BridgeError, ProtocolError):
            pass  # it ends all the same
        self.kill()

    def _settle(self, deadline: float) -> None:
        """Wait for what the worker still owes."""
        try:
            if self._state is ASKED:
                self.reply("the request before close", deadline - monotonic())
            elif self._state is STEPPING:
                self.await_step(deadline)
        except _ANSWERED_ERRORS:
            pass

    def kill(self) -> None:
        """End the process and everything it started, now."""
        if self._state is ENDED:
            return
        self._state = ENDED
        self.exit_status = self._child.end()
        self.channel.drain_printed()
        self._child.release()
        # let go of the frame: an mmap keeps a descriptor of its own for as long as anything refers to it
        self.requested.clear()
        self.replied.clear()
        self.frame = None
        self._words = memoryview(bytearray(8)).cast("Q")
        self._doorbell = Doorbell(self._words, 0)


started_ahead: Final[list[WorkerProcess]] = []


def start_ahead(count: int) -> None:
    """Start workers with default settings, to boot while the caller imports and reads its own."""
    started_ahead.extend(WorkerProcess() for _ in range(count))


def started_worker(python: str | None, name: str, rows: range, confinement: dict[str, Any]) -> WorkerProcess:
    """A worker, started now or ahead; arguments and errors as for `WorkerProcess`."""
    if not started_ahead:
        return WorkerProcess(python, name, rows, confinement)
    worker = started_ahead.pop(0)
    if worker.is_as(python, confinement):
        worker.name, worker.rows = name, rows
        return worker
    for unwanted in (worker, *started_ahead):
        unwanted.kill()
    started_ahead.clear()
    return WorkerProcess(python, name, rows, confinement)
