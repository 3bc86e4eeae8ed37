"""Whether an interpreter can run a worker: looked at when one does not start, and when one says what it is."""

import json
import re
import subprocess
import sys
from collections.abc import Mapping
from typing import Any, Final

from lit_ppo.bridge.command import worker_environment

_OLDEST: Final = {"python": (3, 10), "numpy": (1, 26), "gymnasium": (0, 29)}
_NEEDED: Final = "Python 3.10, numpy 1.26 and Gymnasium 0.29, or newer"
_PROBE_S: Final = 30.0
# In words that every Python understands.
_PROBE: Final = """
import json, resource, sys
for name, value in LIMITS.items():
    resource.setrlimit(getattr(resource, "RLIMIT_" + name.upper()), (value, value))
versions = {"python": sys.version.split()[0]}
for name in ("numpy", "gymnasium"):
    try:
        versions[name] = __import__(name).__version__
    except Exception:
        versions[name] = None
print(json.dumps(versions))
"""


def refusal(python: str | None, versions: Mapping[str, Any]) -> str | None:
    """Why an interpreter with these versions cannot run a worker; None if it can.

    Args:
        python: Its path; None for that of this process.
        versions: Of `python`, `numpy` and `gymnasium`; None for a package that cannot be imported. One that is left out passes.
    """
    for name, oldest in _OLDEST.items():
        version = versions.get(name, "999")
        if version is None:
            found = f"no {name}"
        elif tuple(int(part) for part in re.findall(r"\d+", str(version))[:2]) >= oldest:
            continue
        else:
            found = f"{name} {version}"
        hint = "" if name == "python" else f"; run: {python or sys.executable} -m pip install 'gymnasium>=0.29' 'numpy>=1.26'"
        return f"data.python={python or sys.executable}: expected {_NEEDED}, got {found}{hint}"
    return None


def refusal_after_failure(python: str | None, rlimits: Mapping[str, int] | None = None) -> str | None:
    """Why an interpreter whose worker did not start cannot run one, by what it says of itself; None if it can.

    Args:
        python: Its path; None for that of this process.
        rlimits: The limits of the worker, as in `sandbox.limit`.
    """
    if rlimits and refusal_after_failure(python) is None and _refusal(python, rlimits) is not None:
        return f"data.rlimits={dict(rlimits)}: expected limits with which Python and Gymnasium start"
    return _refusal(python, {})


def _refusal(python: str | None, rlimits: Mapping[str, int]) -> str | None:
    try:
        answer = subprocess.run(
            [python or sys.executable, "-c", f"LIMITS = {dict(rlimits)!r}\n{_PROBE}"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=_PROBE_S,
            env=worker_environment(),
            check=False,
        )
        versions = json.loads(answer.stdout)
        return refusal(python, {name: versions[name] for name in _OLDEST})
    except (OSError, ValueError, LookupError, TypeError, subprocess.TimeoutExpired):
        return f"data.python={python or sys.executable}: expected a Python interpreter"
