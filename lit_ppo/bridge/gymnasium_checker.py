"""What Gymnasium's own checker, `gymnasium.utils.env_checker.check_env`, says of an environment."""

import re
import warnings
from typing import Any, Final

import gymnasium

from lit_ppo.bridge.faults import message_of, raised
from lit_ppo.errors import EnvironmentRaised

_COLORS: Final = re.compile(r"\x1b\[[0-9;]*m")
_MAX_REMARKS: Final = 50


def remarks_on(environment: gymnasium.Env[Any, Any]) -> list[str]:
    """The checker's warnings in order, each once, and its error, which ends the check, as the last one: `error: ...`.

    Args:
        environment: It is checked without its wrappers, of which the checker would complain. Afterwards it is of no use.
    """
    from gymnasium.utils.env_checker import check_env  # here, so that a worker's start does not pay for it

    error = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            check_env(environment.unwrapped, skip_render_check=True)
        except BaseException as failure:  # the checker's AssertionError, or an exception of the environment
            fault = raised(0, "check", failure)
            error = [f"error: {fault.exception if isinstance(fault, EnvironmentRaised) else fault}"]
    said = [_COLORS.sub("", message_of(warning.message)).removeprefix("WARN: ") for warning in caught]  # type: ignore[arg-type]
    return [" ".join(text.split()) for text in [*list(dict.fromkeys(said))[:_MAX_REMARKS], *error]]
