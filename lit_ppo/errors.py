"""Every error that lit_ppo raises on purpose, by whose fault it is.

=====================  ==========================================================
the caller's           `ConfigError` (a `ValueError`): an invalid setting or combination of settings
the environment's      `EnvironmentFault`: `ContractViolation`, `EnvironmentRaised`
the worker's bytes     `ProtocolError`
the worker process's   `BridgeError`: `WorkerExited`, `WorkerTimeout`
the optimisation's     `NonFiniteUpdate`
the disk's             `CheckpointError`
another process's      `RankLost`, `RankFailed`: a rank of the same run
lit_ppo's own          `WorkerDefect`
=====================  ==========================================================
"""

from typing import Any, Final

_SHOWN_CHARACTERS: Final = 120
_PRINTED_CHARACTERS: Final = 20_000
_TRACEBACK_CHARACTERS: Final = 400_000  # escaped
_SHOWN_LINES: Final = 20  # at the beginning and at the end of a traceback


class _OneLine(Exception):
    """An error whose message is one line: text of a checkpoint, a file or an environment in it cannot begin another."""

    def __str__(self) -> str:
        return one_line(super().__str__())


class ConfigError(_OneLine, ValueError):
    """An invalid setting or combination of settings; the message names key, value and what is allowed."""


class _Fault(RuntimeError):
    """A failure in or of the environments.

    Attributes:
        where: Phase of the run, env, episode, step and seed, once the bridge knows them.
        report: What the fault can be replayed from, once the bridge knows it.
        in_next_reset: It happened in the reset that followed a step, of the episode after the one that was stepped.
        reason: Why the run does not go on after it, if it could have.
        printed: The end of what the worker's environments have printed.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.where: dict[str, Any] = {}
        self.report: dict[str, Any] = {}
        self.in_next_reset = False
        self.reason = self.printed = ""

    def __str__(self) -> str:
        text = str(self.args[0])
        if self.where:
            text += f" ({', '.join(f'{key} {value}' for key, value in self.where.items())})"
        if self.printed:
            text += f"\nthe end of what was printed in its process:\n{indented(self.printed)}"
        return f"{text}\n{self.reason}" if self.reason else text


class EnvironmentFault(_Fault):
    """The environment broke its contract or raised."""


class ContractViolation(EnvironmentFault):
    """A value at the trust boundary that the contract refuses.

    Text of the environment is escaped here, so it stays on one line wherever it is shown.

    Args:
        field: The value that was checked, with its indices: `obs[3, 1]`, `rewards[0]`.
        rule: What was expected, in words.
        value: What arrived, as text.
        env: Row of the environment at fault; None when the fault is not of one environment.
    """

    def __init__(self, field: str, rule: str, value: str, env: int | None = None) -> None:
        self.field, self.rule, self.value, self.env = one_line(field), one_line(rule), one_line(value), env
        super().__init__(f"{self.field}: expected {self.rule}, got {self.value}")


class EnvironmentRaised(EnvironmentFault):
    """The environment raised an exception; the message carries its own traceback, escaped, indented and shortened.

    Args:
        during: The call that raised: `make`, `reset`, `step` or `close`.
        exception: Type and message of the exception, one line.
        traceback: The environment's own traceback.
        env: Row of the environment at fault.
    """

    def __init__(self, during: str, exception: str, traceback: str, env: int) -> None:
        self.during, self.exception, self.traceback = (
            one_line(during),
            one_line(exception),
            printable(traceback, _TRACEBACK_CHARACTERS),
        )
        self.env = env
        super().__init__(f"env {env} raised in {self.during}: {self.exception}\n{indented(_shortened(self.traceback))}")


class ProtocolError(RuntimeError):
    """Bytes that are not a message of the bridge's protocol, or not the one that was due."""


class AnnouncementError(ProtocolError):
    """A well-formed answer to `make` that announces no environment: a defect, which another worker would repeat."""


class BridgeError(_Fault):
    """The worker process failed as a process.

    Attributes:
        outcome: What became of the process: `was killed by SIGSEGV`.
        env: Row of the environment that the worker was stepping or resetting; None if it was doing neither.
    """

    def __init__(self, message: str, outcome: str = "", env: int | None = None) -> None:
        super().__init__(message)
        self.outcome, self.env = outcome, env


class WorkerExited(BridgeError):
    """The worker process ended although it was still needed.

    Attributes:
        is_killed: By a signal that others send to a process: what the worker was doing then need not be the reason.
    """

    is_killed = False


class WorkerTimeout(BridgeError):
    """The worker process did not answer within its deadline.

    Attributes:
        is_start: It was still making its environments.
    """

    is_start = False


class WorkerDefect(RuntimeError):
    """The worker's own code raised an exception: a defect of lit_ppo, which keeps its traceback.

    Args:
        exception: Type and message.
        traceback: The worker's traceback.
    """

    def __init__(self, exception: str, traceback: str) -> None:
        super().__init__(
            f"a defect of lit_ppo, in a worker: {one_line(exception)}\n{indented(_shortened(printable(traceback)))}"
        )


class NonFiniteUpdate(RuntimeError):
    """A loss, gradient or parameter was NaN or infinite; of a loss or gradient it is raised before the optimizer step."""


class CheckpointError(_OneLine, RuntimeError):
    """A checkpoint cannot be written or read, or is not one of ours."""


class RunInterrupted(BaseException):
    """A wait for environments was interrupted by a signal; no `except Exception` around the wait stops it.

    Args:
        message: What was interrupted.
        code: The exit code after the signal.
    """

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class RankLost(RuntimeError):
    """Another rank of the run has ended, or cannot be reached."""


class RankFailed(RuntimeError):
    """Another rank of the run has failed, and said why.

    Args:
        message: Number of the rank, and the reason.
        code: The exit code of that failure.
    """

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


def indented(text: str) -> str:
    """Text of the environment, in which no line can be taken for one of ours."""
    return "\n".join(f"  {line}" for line in text.splitlines())


def _shortened(traceback: str) -> str:
    """The first and the last lines of a long traceback, none of them long."""
    lines = [
        line if len(line) <= 4 * _SHOWN_CHARACTERS else f"{line[: 4 * _SHOWN_CHARACTERS]}..." for line in traceback.splitlines()
    ]
    if (left_out := len(lines) - 2 * _SHOWN_LINES) > 0:
        lines[_SHOWN_LINES:-_SHOWN_LINES] = [f"[... {left_out} more lines, which the report of the fault has]"]
    return "\n".join(lines)


def shown(value: object) -> str:
    """`repr` of any value, however broken, on one line of bounded length."""
    try:
        text = repr(value)
    except Exception as error:  # a broken __repr__ must not hide the violation that is being reported
        text = f"<{type(value).__name__} whose repr raises {type(error).__name__}>"
    text = printable(text.replace("\n", " "))
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 3] + "..."


def one_line(text: str) -> str:
    """Printable text on one line: what follows a newline could be taken for a line of ours."""
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")


def printable(text: str, limit: int = _PRINTED_CHARACTERS) -> str:
    """Text of others without control characters, which could steer a terminal; the end of one above `limit` characters."""
    if len(text) > limit:
        text = f"[...]{text[-limit:]}"
    return "".join(c if c.isprintable() or c in "\n\t" else _escaped(ord(c)) for c in text)


def _escaped(code: int) -> str:
    return f"\\x{code:02x}" if code < 1 << 8 else f"\\u{code:04x}"
