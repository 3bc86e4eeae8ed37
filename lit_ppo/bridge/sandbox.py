"""The rights that a worker gives up before it loads any code of an environment.

Limits (`resource` module) as the user sets them, and a level, which is made of layers:

==============  ===========================================================================================
`off`           only `no_new_privileges`, and a mark by which the trainer knows what the worker leaves behind
`strict`        `no_new_privileges`, `capabilities`, `landlock`, `seccomp`
`isolated`      those of `strict`, in `namespaces` of its own
`best-effort`   those of `isolated` that this machine has
==============  ===========================================================================================

- `no_new_privileges`: no program gains rights (setuid, file capabilities);
- `capabilities`: none, not even for root, which else could read and change the trainer's memory;
- `landlock`: only some files (see `landlock`);
- `seccomp`: no sockets and no way into other processes (see `system_calls`);
- `namespaces`: no other processes, no network, mounts of its own (see `namespaces`).
"""

import resource
from collections.abc import Callable, Mapping
from typing import Any, Final

from lit_ppo.bridge import kernel, landlock, namespaces, system_calls
from lit_ppo.errors import shown

ON: Final = "on"
_LAYERS: Final = ("no_new_privileges", "capabilities", "landlock", "seccomp", "namespaces")
NEEDED: Final = ("strict", "isolated")  # levels of which no layer may be missing
WITH_NAMESPACES: Final = ("best-effort", "isolated")


def limit(limits: dict[str, int]) -> None:
    """Set resource limits by their names in the `resource` module without the prefix: `as`, `nofile`, `fsize`, ...

    Raises:
        ValueError: There is no such limit, or it may not be set; the message names it.
    """
    for name, value in limits.items():
        number = getattr(resource, f"RLIMIT_{name.upper()}", None)
        if number is None:
            known = sorted(key[7:].lower() for key in vars(resource) if key.startswith("RLIMIT_"))
            raise ValueError(f"rlimits: expected one of {', '.join(known)}, got {name!r}")
        try:
            resource.setrlimit(number, (value, value))
        except (OSError, ValueError, OverflowError) as error:
            raise ValueError(f"rlimits: {name}={value} cannot be set: {error}") from error


def confine(level: str, files: Mapping[str, Any], is_in_namespaces: bool) -> dict[str, str]:
    """Apply the layers of a level to this process, and to all that it starts.

    Args:
        level: One of the table above.
        files: Arguments of `landlock.confine`.
        is_in_namespaces: Whether this process is in namespaces of its own.

    Returns:
        `on` for each layer of the level but the namespaces, or why it is off.
    """
    layers = {"no_new_privileges": _outcome(lambda: kernel.prctl(kernel.NO_NEW_PRIVILEGES, 1))}
    if level == "off":
        _outcome(system_calls.mark)
        return {}
    own = namespaces.shared_memory() if is_in_namespaces else []  # no other process sees these
    layers["capabilities"] = _outcome(kernel.drop_capabilities)
    layers["landlock"] = _outcome(lambda: landlock.confine(**{**files, "write": [*files["write"], *own]}))
    layers["seccomp"] = _outcome(system_calls.confine)
    return layers


def missing(layers: Mapping[str, Any]) -> str:
    """Which layers are not on, and why, in words; empty if all are.

    Args:
        layers: As `confine` returns them; what a worker has sent may be anything.
    """
    return ", ".join(f"{layer} is {shown(layers[layer]).strip(chr(39))}" for layer in _LAYERS if layers.get(layer, ON) != ON)


def _outcome(apply: Callable[[], None]) -> str:
    try:
        apply()
    except OSError as error:
        return f"off ({error.strerror})"
    return ON
