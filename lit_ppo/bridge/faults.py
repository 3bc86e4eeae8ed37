"""Errors that cross the wire: the worker's half makes them plain data, the trainer's half makes exceptions of them again."""

import os
import re
import traceback
from typing import Any, Final

from lit_ppo.bridge.frame import Busy
from lit_ppo.bridge.protocol import take
from lit_ppo.errors import (
    ConfigError,
    ContractViolation,
    EnvironmentFault,
    EnvironmentRaised,
    ProtocolError,
    RunInterrupted,
    WorkerDefect,
    one_line,
    shown,
)

_TRACEBACK_CHARACTERS: Final = 80_000  # as JSON at most twelve bytes each, and a message has a megabyte
_MESSAGE_CHARACTERS: Final = 400
# What an exception says in which call (empty for any), and what its author may not know.
_CONVENTIONS: Final = (
    (
        "reset",
        "unexpected keyword argument '(seed|options)'",
        "Gymnasium calls reset(seed=..., options=...); begin it with super().reset(seed=seed) and draw from self.np_random, in "
        "place of a method seed(), or wrap an environment of the old gym with shimmy",
    ),
    (
        "step",
        r"not enough values to unpack \(expected 5, got 4\)",
        "Gymnasium's step returns (obs, reward, terminated, truncated, info); wrap an environment of the old gym with shimmy",
    ),
    ("", "^ModuleNotFoundError: ", "install it for the interpreter that runs the environments (data.python)"),
)
_ENVIRONMENT_PROCESS: Final = "LIT_PPO_ENVIRONMENT_PROCESS"  # its number, for itself and for all that it starts
is_environment_process = False  # this one; the environment may have changed the variable, and the handlers of signals


class _RunInEnvironment(RuntimeError):
    """Code of an environment makes a run, or environments in other processes."""


def mark_environment_process() -> None:
    """Note that this process is for environments, before any of their code is imported."""
    global is_environment_process
    os.environ[_ENVIRONMENT_PROCESS], is_environment_process = str(os.getpid()), True


def require_outside_environments(name: str) -> None:
    """Refuse what would start environment processes from within one, whose code would start more, without end.

    Args:
        name: Of what was made or called.

    Raises:
        ConfigError: This is a process that an environment has started.
    """
    if (number := os.environ.get(_ENVIRONMENT_PROCESS)) is not None:
        message = (
            f"env_id: {name} in an environment process, which imports the module that trains; put the run behind "
            "`if __name__ == '__main__':`, or the environment into a module of its own"
        )
        raise _RunInEnvironment(message) if number == str(os.getpid()) else ConfigError(message)


# -- the worker's half


def raised(env: int, during: str, error: BaseException) -> EnvironmentRaised | ConfigError:
    """Exception of environment code with its own traceback; a setting's fault if the code would have started a run.

    Args:
        env: Number of the environment in its worker.
        during: The call that raised.
        error: Exception of any class; the environment is at fault.

    Raises:
        KeyboardInterrupt, RunInterrupted: It was a signal to the process, which without a worker process is the trainer's.
    """
    if isinstance(error, _RunInEnvironment):
        return ConfigError(str(error))
    is_signal = isinstance(error, KeyboardInterrupt) and not is_environment_process
    if is_signal or isinstance(error, RunInterrupted):
        raise error
    return EnvironmentRaised(during, f"{type(error).__name__}: {message_of(error)}", _traceback_of(error), env)


def call(env: int, during: str, function: Any, *args: Any, **kwargs: Any) -> Any:
    """Call into environment code.

    Raises:
        EnvironmentRaised: It raised an exception.
    """
    try:
        return function(*args, **kwargs)
    except BaseException as error:
        raise raised(env, during, error) from None


def message_of(error: BaseException) -> str:
    """The message of any exception, however broken."""
    try:
        return str(error)[:_MESSAGE_CHARACTERS]
    except BaseException:  # a broken __str__ must not hide the exception
        return "<message cannot be shown>"


def _traceback_of(error: BaseException) -> str:
    """The traceback of any exception; the beginning and the end of a very long one."""
    try:
        text = "".join(traceback.format_exception(error))
    except BaseException:  # as above
        return "<traceback cannot be shown>"
    half = _TRACEBACK_CHARACTERS // 2
    return text if len(text) <= 2 * half else f"{text[:half]}\n[...]\n{text[-half:]}"


def error_to_json(error: Exception) -> dict[str, Any]:
    """An error as the body of a reply; an exception that no code raises on purpose is a defect."""
    if isinstance(error, ContractViolation):
        body = {"kind": "violation", "field": error.field, "rule": error.rule, "value": error.value, "env": error.env}
    elif isinstance(error, EnvironmentRaised):
        body = {
            "kind": "raised",
            "during": error.during,
            "exception": error.exception,
            "traceback": error.traceback,
            "env": error.env,
        }
    elif isinstance(error, ConfigError | ProtocolError):
        body = {"kind": "refused", "message": message_of(error)}
    else:
        body = {"kind": "defect", "message": f"{type(error).__name__}: {message_of(error)}", "traceback": _traceback_of(error)}
    return {"error": body}


# -- the trainer's half


def error_from_json(error: dict[str, Any], rows: range, at: Busy) -> Exception:
    """The exception for the body of an error reply.

    Args:
        error: What `error_to_json` made, or a worker that lies.
        rows: The trainer's numbers of the worker's environments, which it counts from 0.
        at: What the worker was doing.

    Raises:
        ProtocolError: The body is malformed.
    """
    kind, env = take(error, "kind", str), error.get("env")
    if kind in ("violation", "raised") and env is not None:
        if type(env) is not int or not 0 <= env < len(rows):
            raise ProtocolError(f"env: expected 0 to {len(rows) - 1}, got {shown(env)}")
        env = rows[env]
    if kind == "violation":
        field, rule, value = (take(error, key, str) for key in ("field", "rule", "value"))
        fault: EnvironmentFault = ContractViolation(field, rule, value, env)
    elif kind == "raised":
        during, exception, text = (take(error, key, str) for key in ("during", "exception", "traceback"))
        fault = EnvironmentRaised(during, exception + _advice(during, exception, text), text, take({"env": env}, "env", int))
    elif kind == "refused":
        return ConfigError(one_line(take(error, "message", str)))
    elif kind == "defect":
        return WorkerDefect(take(error, "message", str), take(error, "traceback", str))
    else:
        raise ProtocolError(f"error: unknown kind {shown(kind)}")
    fault.in_next_reset = at.in_next_reset and at.env == env
    return fault


def _advice(during: str, exception: str, text: str) -> str:
    """Advice for what an environment raised, if it is a known case: a file that is where the command was started, a convention.

    Args:
        during: The call that raised.
        exception: Its type and message.
        text: Its traceback.
    """
    for call, pattern, advice in _CONVENTIONS:
        if call in ("", during) and re.search(pattern, exception):
            return f"; {advice}"
    for line in re.findall(r"^.*(?:FileNotFoundError|No such file).*$", text, re.MULTILINE):
        message = line.replace("No such file or directory", "")
        for name in re.findall(r"(?<=')[^']+(?=')", message) + re.findall(r"[^\s'\":,;()]+", message):
            name = name.rstrip(".")
            if name and not os.path.isabs(name) and os.path.exists(name):
                return (
                    f"; {name} is where the command was started, but the worker runs in an empty directory: "
                    "use data.worker_cwd=. or an absolute path"
                )
    return ""
