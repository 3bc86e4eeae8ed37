"""Errors that cross the wire: the worker's half makes them plain data, the trainer's half makes exceptions of them again."""

import os
import traceback
from typing import Any, Final

from lit_ppo.bridge.frame import Busy
from lit_ppo.bridge.protocol import take
from lit_ppo.errors import ConfigError, ContractViolation, EnvironmentFault, EnvironmentRaised, ProtocolError, one_line, shown

_TRACEBACK_CHARACTERS: Final = 16_000
_MESSAGE_CHARACTERS: Final = 400
_ENVIRONMENT_PROCESS: Final = "LIT_PPO_ENVIRONMENT_PROCESS"  # its number, for itself and for all that it starts


class _RunInEnvironment(RuntimeError):
    """Code of an environment makes a run, or environments in other processes."""


def mark_environment_process() -> None:
    """Note that this process is for environments, before any of their code is imported."""
    os.environ[_ENVIRONMENT_PROCESS] = str(os.getpid())


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


def raised(env: int, during: str, error: BaseException) -> EnvironmentRaised | ValueError:
    """What environment code raised, with its own traceback; a setting's fault if it would have started a run.

    Args:
        env: Number of the environment in its worker.
        during: The call that raised.
        error: What it raised.
    """
    if isinstance(error, _RunInEnvironment):
        return ValueError(str(error))
    text = "".join(traceback.format_exception(error))[-_TRACEBACK_CHARACTERS:]
    return EnvironmentRaised(during, f"{type(error).__name__}: {message_of(error)}", text, env)


def call(env: int, during: str, function: Any, *args: Any, **kwargs: Any) -> Any:
    """Call into environment code.

    Raises:
        EnvironmentRaised: It raised an exception.
    """
    try:
        return function(*args, **kwargs)
    except Exception as error:
        raise raised(env, during, error) from None


def message_of(error: BaseException) -> str:
    """The message of any exception, however broken."""
    try:
        return str(error)[:_MESSAGE_CHARACTERS]
    except Exception:  # a broken __str__ must not hide the exception
        return "<message cannot be shown>"


def error_to_json(error: Exception) -> dict[str, Any]:
    """An error as the body of a reply."""
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
    else:
        body = {"kind": "refused", "message": message_of(error)}
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
    if kind != "refused" and env is not None:
        if type(env) is not int or not 0 <= env < len(rows):
            raise ProtocolError(f"env: expected 0 to {len(rows) - 1}, got {shown(env)}")
        env = rows[env]
    if kind == "violation":
        field, rule, value = (take(error, key, str) for key in ("field", "rule", "value"))
        fault: EnvironmentFault = ContractViolation(field, rule, value, env)
    elif kind == "raised":
        during, exception, text = (take(error, key, str) for key in ("during", "exception", "traceback"))
        fault = EnvironmentRaised(during, exception, text, take({"env": env}, "env", int))
    elif kind == "refused":
        return ConfigError(one_line(take(error, "message", str)))
    else:
        raise ProtocolError(f"error: unknown kind {shown(kind)}")
    fault.in_next_reset = at.in_next_reset and at.env == env
    return fault
