"""One worker process: spawn it, talk to it with a deadline on every wait, end it.

Rules. Every wait has one monotonic deadline for all of it. A worker that has missed a deadline, broken the protocol or died is
of no further use: its owner kills it and may start another. `kill` and `close` never raise and never wait long. A worker that
its owner forgets is killed when the object is collected, or this process ends in its own time.
"""

import fcntl
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import weakref
from mmap import mmap
from pathlib import Path
from time import monotonic, perf_counter
from typing import Any, Final

from numpy.typing import NDArray

from lit_ppo.bridge import protocol
from lit_ppo.bridge.doorbell import Doorbell
from lit_ppo.contract import shown
from lit_ppo.errors import (
    BridgeError,
    ConfigError,
    ContractViolation,
    EnvironmentRaised,
    ProtocolError,
    WorkerExited,
    WorkerTimeout,
)

_STDERR_TAIL_BYTES: Final = 16_384
_MOST_CHARACTERS: Final = 20_000  # of one text from the other process
_STEPS_PER_DRAIN: Final = 2048
_KILL_WAIT_S: Final = 2.0
_LONGEST_SLEEP_S: Final = 0.5  # a signal that comes just before a sleep does not end it; its handler runs after the sleep
_PACKAGE: Final = Path(__file__).resolve().parents[1]
# The package is loaded from its own directory, so that another interpreter need not have it installed and does not see the
# trainer's site-packages; then the guard forks, before anything heavy is imported.
_BOOT: Final = """
import importlib.util, json, sys
package, path = sys.argv[1], json.loads(sys.argv[2])
sys.path[:1] = [entry for entry in path if entry not in sys.path]
spec = importlib.util.spec_from_file_location("lit_ppo", package + "/__init__.py", submodule_search_locations=[package])
sys.modules["lit_ppo"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules["lit_ppo"])
from lit_ppo.bridge.guard import split
confined = split(json.loads(sys.argv[3]))
from lit_ppo.bridge.worker import main
main(sys.argv[4:], confined)
"""
# What a worker may see of the trainer's environment: no tokens, keys or passwords.
_PASSED_ON: Final = ("PATH", "HOME", "USER", "LANG", "LANGUAGE", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "DISPLAY", "VIRTUAL_ENV")
_PASSED_ON_PREFIXES: Final = ("LC_", "PYTHON", "SDL_", "MUJOCO_", "PYOPENGL_", "EGL_", "MESA_", "GYM_", "OMP_", "COVERAGE_")


class WorkerProcess:
    """A worker process and its shared frame.

    Args:
        python: Interpreter to run it with; None for this one.
        name: How messages call it.
        confinement: As in `guard.split`; what is left out is an empty working directory, no limits, no sandbox.
        rows: Which rows of the trainer's batch its environments are.

    Raises:
        ConfigError: The interpreter cannot be run.
    """

    def __init__(
        self,
        python: str | None = None,
        name: str = "worker",
        rows: range = range(1),
        confinement: dict[str, Any] | None = None,
    ) -> None:
        self.name, self.rows = name, rows
        self._sequence = 0
        self._posted: str | None = None  # request whose reply nobody has waited for yet
        self._post_failure: BridgeError | None = None
        self._unread = b""
        self._stderr_tail = b""
        self._steps_since_drain = 0
        self._frame: mmap | None = None
        self.requested: dict[str, NDArray[Any]] = {}
        self.replied: dict[str, NDArray[Any]] = {}
        self.exit_status: int | None = None
        self.worker_pid: int | None = None  # once it has said so; our own child is its guard
        if not hasattr(os, "pidfd_open") or not hasattr(os, "memfd_create"):
            raise ConfigError("lit_ppo's bridge needs Linux (memfd_create, pidfd_open)")
        self._frame_fd = os.memfd_create("lit_ppo-frame", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        command, environment = self._kind = _kind(python, confinement or {})
        try:
            self._process = subprocess.Popen(
                [*command, "--frame-fd", str(self._frame_fd)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                env=environment,
                pass_fds=(self._frame_fd,),
                start_new_session=True,
            )
        except OSError as error:
            os.close(self._frame_fd)
            raise ConfigError(f"data.python={command[0]}: expected a Python interpreter: {error.strerror}") from error
        assert self._process.stdin is not None and self._process.stdout is not None and self._process.stderr is not None
        self._requests, self._replies = self._process.stdin.fileno(), self._process.stdout.fileno()
        self._stderr = self._process.stderr.fileno()
        descriptors = [self._frame_fd]
        self._end = weakref.finalize(self, _end, self._process, descriptors)  # before anything else can fail
        self._pidfd = os.pidfd_open(self._process.pid)
        descriptors.append(self._pidfd)
        for descriptor in (self._requests, self._replies, self._stderr):
            os.set_blocking(descriptor, False)
        self._poll = select.poll()
        for descriptor in (self._replies, self._stderr, self._pidfd):
            self._poll.register(descriptor, select.POLLIN)
        self._open = True

    def is_as(self, python: str | None, confinement: dict[str, Any]) -> bool:
        """Whether a worker that is started now with these arguments would be the same."""
        return self._kind == _kind(python, confinement)

    # -- control messages

    def ask(self, command: str, deadline_s: float, **fields: Any) -> dict[str, Any]:
        """Send one request and wait for its reply.

        Raises:
            ConfigError, ContractViolation, EnvironmentRaised: What the worker answered, if it was no success.
            WorkerExited, WorkerTimeout, ProtocolError: There was no proper answer.
        """
        deadline = monotonic() + deadline_s
        self._send(command, deadline, fields)
        return self._read_reply(self._sequence, command, deadline)

    def post(self, command: str, deadline_s: float, **fields: Any) -> None:
        """Send one request and go on; `reply` must come before the next one, and raises what fails here.

        What is too long for a pipe (64 KiB) is waited for: until the other side reads it.
        """
        self._posted, self._post_failure = command, None
        try:
            self._send(command, monotonic() + deadline_s, fields)
        except BridgeError as failure:
            self._post_failure = failure

    def reply(self, deadline_s: float) -> dict[str, Any]:
        """Wait for the reply to `post`.

        Raises:
            As `ask`.
        """
        assert self._posted is not None
        command, self._posted = self._posted, None
        if self._post_failure is not None:
            raise self._post_failure
        return self._read_reply(self._sequence, command, monotonic() + deadline_s)

    def _send(self, command: str, deadline: float, fields: dict[str, Any]) -> None:
        self._sequence += 1
        self._write(protocol.encode({"cmd": command, "seq": self._sequence, **fields}), command, deadline)

    def _write(self, data: bytes, request: str, deadline: float) -> None:
        if not self._open:  # its descriptors may be somebody else's by now
            raise self._exited(request)
        while data:
            try:
                data = data[os.write(self._requests, data) :]
            except BlockingIOError:
                self._block(request, deadline, writing=True)
            except BrokenPipeError:
                raise self._exited(request) from None

    def _read_reply(self, sequence: int, request: str, deadline: float) -> dict[str, Any]:
        while (line := self._next_line()) is None:
            self._block(request, deadline)
        try:
            message = protocol.decode(line)
        except ProtocolError as error:
            raise ProtocolError(f"{self.name}: {error}") from error
        if type(message.get("seq")) is not int or message["seq"] != sequence:
            raise ProtocolError(
                f"{self.name}: expected the reply to {request} (seq {sequence}), got seq {shown(message.get('seq'))}"
            )
        if "error" in message:
            raise _error_from_json(protocol.take(message, "error", dict), self.rows)
        return message

    def _next_line(self) -> bytes | None:
        """The next control message that has arrived, if any; doorbells between messages are skipped."""
        self._unread = self._unread.lstrip(b"\n")
        line, newline, rest = self._unread.partition(b"\n")
        if not newline:
            if len(self._unread) > protocol.MAX_LINE_BYTES:
                raise ProtocolError(f"{self.name}: expected a message of at most {protocol.MAX_LINE_BYTES} bytes")
            return None
        self._unread = rest
        return line

    # -- steps

    def attach(self, layout: protocol.FrameLayout, deadline_s: float) -> None:
        """Lay out the shared frame and hand it over; from here on its size is sealed."""
        os.ftruncate(self._frame_fd, layout.total_bytes)
        # an unsealed file that the worker truncates would kill us with SIGBUS
        fcntl.fcntl(self._frame_fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        self._frame = mmap(self._frame_fd, layout.total_bytes)
        self._words = memoryview(self._frame).cast("Q")
        self._words[protocol.MAGIC_WORD] = protocol.MAGIC
        self.requested = layout.request_views(self._frame)
        self.replied = layout.reply_views(self._frame, layout.reply_start)
        self._doorbell = Doorbell(self._words, protocol.REPLY_WORD)
        self.ask("attach", deadline_s, bytes=layout.total_bytes)

    def ring(self, deadline: float) -> None:
        """Ask for the step that stands in the frame."""
        self._words[protocol.REQUEST_WORD] += 1
        try:
            os.write(self._requests, protocol.DOORBELL)
        except BlockingIOError:
            self._write(protocol.DOORBELL, "step", deadline)
        except BrokenPipeError:
            raise self._exited("step") from None

    def await_step(self, deadline: float) -> None:
        """Wait for the answer to `ring`; afterwards `replied` holds it.

        Raises:
            As `ask`.
        """
        number = self._words[protocol.REQUEST_WORD]
        if not self._doorbell.poll(number):
            start = perf_counter()
            while self._words[protocol.REPLY_WORD] != number:
                self._block("step", deadline, for_message=False)
            self._doorbell.waited(perf_counter() - start)
        if self._words[protocol.STATUS_WORD] != protocol.STATUS_DONE:
            self._read_reply(-number, "step", deadline)
            raise ProtocolError(f"{self.name}: expected an error after a failed step")
        self._steps_since_drain += 1
        if self._steps_since_drain == _STEPS_PER_DRAIN:  # doorbells that were polled for are still in the pipe
            self._steps_since_drain = 0
            self._receive()
            self._unread = self._unread.lstrip(b"\n")
            if self._unread:
                raise ProtocolError(
                    f"{self.name}: expected nothing but doorbells between steps, got {shown(self._unread[:80])}"
                )

    # -- waiting

    def _block(self, request: str, deadline: float, *, writing: bool = False, for_message: bool = True) -> None:
        """Sleep until something arrives; read what there is. A message that a dead worker has left counts, if one is due."""
        remaining = deadline - monotonic()
        if remaining <= 0:
            raise WorkerTimeout(f"{self.name} did not answer {request} in time{self._stderr_text()}")
        if writing:
            self._poll.register(self._requests, select.POLLOUT)
        try:
            ready = dict(self._poll.poll(min(remaining, _LONGEST_SLEEP_S) * 1000))
        finally:
            if writing:
                self._poll.unregister(self._requests)
        ended = self._receive()
        if (self._pidfd in ready or ended) and not (for_message and b"\n" in self._unread.lstrip(b"\n")):
            raise self._exited(request)

    def _receive(self) -> bool:
        """Read what has arrived on both pipes, bounded; whether the replies have ended."""
        self._drain_stderr()
        while len(self._unread) <= protocol.MAX_LINE_BYTES:
            try:
                data = os.read(self._replies, 1 << 16)
            except BlockingIOError:
                return False
            if not data:
                return True
            self._unread += data
        return False

    def _drain_stderr(self) -> None:
        for _ in range(64):  # bounded: an environment that never stops printing must not keep us here
            try:
                data = os.read(self._stderr, 1 << 16)
            except BlockingIOError:
                return
            if not data:
                try:
                    self._poll.unregister(self._stderr)
                except KeyError:
                    pass
                return
            self._stderr_tail = (self._stderr_tail + data)[-_STDERR_TAIL_BYTES:]

    def _exited(self, request: str) -> BridgeError:
        self.kill()
        status = self.exit_status
        if status is not None and status < 0:
            known = -status in set(signal.Signals)  # most real-time signals have no name
            how = f"was killed by {signal.Signals(-status).name if known else f'signal {-status}'}"
        else:
            how = f"exited with status {status}"
        return WorkerExited(f"{self.name} {how} while answering {request}{self._stderr_text()}")

    def _stderr_text(self) -> str:
        """What the worker last wrote to standard error, safe to print."""
        if self._open:
            self._drain_stderr()
        text = printable(self._stderr_tail.decode("utf-8", "replace").strip())
        return f"; the end of its standard error:\n{text}" if text else ""

    # -- the end

    def close(self, deadline_s: float) -> None:
        """Let the environments close, then end the process; kill it if all that takes too long."""
        if self._open:
            deadline = monotonic() + deadline_s
            try:
                if self._posted:
                    self.reply(deadline_s)
                self.ask("close", deadline - monotonic())
                self._process.wait(max(0.0, deadline - monotonic()))
            except (BridgeError, ProtocolError, ContractViolation, EnvironmentRaised, ConfigError, subprocess.TimeoutExpired):
                pass  # it is to end one way or the other, and nobody wants its environments any more
        self.kill()

    def kill(self) -> None:
        """End the process and everything it started, now."""
        if not self._open:
            return
        self._open = False
        self.exit_status = _end_process(self._process)
        if self.exit_status == -signal.SIGKILL and self.worker_pid is not None:
            try:  # if it was the guard that was killed, what the worker had started is still there
                os.killpg(self.worker_pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                pass
        self._drain_stderr()
        self._end()
        # let go of the frame: an mmap keeps a descriptor of its own for as long as anything refers to it
        self.requested.clear()
        self.replied.clear()
        self._frame = None
        self._words = memoryview(bytearray(protocol.HEADER_BYTES)).cast("Q")
        self._doorbell = Doorbell(self._words, protocol.REPLY_WORD)


def _end_process(process: "subprocess.Popen[bytes]") -> int:
    """End a guard, and by it its worker; how the worker ended, as `Popen.returncode`."""
    assert process.stdin is not None
    process.stdin.close()  # the guard sees this, kills everything and ends
    try:
        return process.wait(_KILL_WAIT_S)
    except subprocess.TimeoutExpired:  # the guard itself hangs or is stopped; the kernel then kills the worker
        process.kill()
        return process.wait()


def _end(process: "subprocess.Popen[bytes]", descriptors: list[int]) -> None:
    """End a guard and its worker, and let go of all that this process has of them."""
    if _end_process(process) == -signal.SIGKILL:  # a guard that was killed could not remove the worker's directory
        for directory in Path(os.environ.get("TMPDIR", "/tmp")).glob(f"lit_ppo-{process.pid}-*"):
            shutil.rmtree(directory, ignore_errors=True)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    process.stderr.close()
    for descriptor in descriptors:
        os.close(descriptor)


def _kind(python: str | None, confinement: dict[str, Any]) -> tuple[list[str], dict[str, str]]:
    """Command and environment of a worker: what it is, as long as nobody has asked it for anything."""
    confinement = {"cwd": None, "rlimits": {}, "strict": False} | confinement
    path = [entry or os.getcwd() for entry in sys.path] if python is None else [os.getcwd()]
    command = [python or sys.executable, "-c", _BOOT, str(_PACKAGE), json.dumps(path), json.dumps(confinement)]
    return command, worker_environment()


_started_ahead: Final[list[WorkerProcess]] = []


def start_ahead(count: int) -> None:
    """Start workers as most runs want them: they boot while the caller imports and reads its settings."""
    _started_ahead.extend(WorkerProcess() for _ in range(count))


def started_worker(python: str | None, name: str, rows: range, confinement: dict[str, Any]) -> WorkerProcess:
    """A worker, started now or ahead; arguments and errors as for `WorkerProcess`."""
    if not _started_ahead:
        return WorkerProcess(python, name, rows, confinement)
    worker = _started_ahead.pop(0)
    if worker.is_as(python, confinement):
        worker.name, worker.rows = name, rows
        return worker
    for unwanted in (worker, *_started_ahead):
        unwanted.kill()
    _started_ahead.clear()
    return WorkerProcess(python, name, rows, confinement)


def worker_environment() -> dict[str, str]:
    """The environment variables that a worker is started with."""
    passed_on = {
        name: value for name, value in os.environ.items() if name in _PASSED_ON or name.startswith(_PASSED_ON_PREFIXES)
    }
    # a worker steps small environments; threads of BLAS would only compete with the trainer
    return {
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "PYGAME_HIDE_SUPPORT_PROMPT": "1",
    } | passed_on


def printable(text: str) -> str:
    """Text from the other process without anything that could steer a terminal; of a very long one, the end."""
    if len(text) > _MOST_CHARACTERS:
        text = f"[...]{text[-_MOST_CHARACTERS:]}"
    return "".join(c if c.isprintable() or c in "\n\t" else f"\\x{ord(c):02x}" for c in text)


def _error_from_json(error: dict[str, Any], rows: range) -> Exception:
    """The exception for the body of an error reply; the worker counts its environments from 0, the exception by `rows`."""
    kind, env = protocol.take(error, "kind", str), error.get("env")
    if kind != "refused" and env is not None:
        if type(env) is not int or not 0 <= env < len(rows):
            raise ProtocolError(f"env: expected 0 to {len(rows) - 1}, got {shown(env)}")
        env = rows[env]
    if kind == "violation":
        field, rule, value = (printable(protocol.take(error, key, str)) for key in ("field", "rule", "value"))
        return ContractViolation(field, rule, value, env)
    if kind == "raised":
        during, exception, trace = (printable(protocol.take(error, key, str)) for key in ("during", "exception", "traceback"))
        return EnvironmentRaised(during, exception, trace, protocol.take({"env": env}, "env", int))
    if kind == "refused":
        return ConfigError(printable(protocol.take(error, "message", str)))
    raise ProtocolError(f"error: unknown kind {shown(kind)}")
