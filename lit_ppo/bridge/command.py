"""Command and environment of a worker process."""

import json
import os
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any, Final

from lit_ppo import PACKAGE

# The package is loaded from its own directory, so that another interpreter need not have it installed and does not see the
# trainer's site-packages; then the guard forks, before anything heavy is imported.
_BOOT: Final = """
import importlib.util, json, sys
package, path, own = sys.argv[1], json.loads(sys.argv[2]), sys.path[1:]
sys.path[:] = dict.fromkeys(entry for part in path for entry in (own if part is None else [part]))
spec = importlib.util.spec_from_file_location("lit_ppo", package + "/__init__.py", submodule_search_locations=[package])
sys.modules["lit_ppo"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules["lit_ppo"])
from lit_ppo.bridge.guard import split
confined = split(json.loads(sys.argv[3]))
from lit_ppo.bridge.worker import main
main(sys.argv[4:], confined)
"""
# What a worker may see of the trainer's environment: no tokens, keys or passwords.
_PASSED_ON: Final = ("PATH", "HOME", "USER", "LANG", "LANGUAGE", "TZ", "LD_LIBRARY_PATH", "DISPLAY", "VIRTUAL_ENV")
_PASSED_ON_PREFIXES: Final = ("LC_", "PYTHON", "SDL_", "MUJOCO_", "PYOPENGL_", "EGL_", "MESA_", "GYM_", "OMP_", "COVERAGE_")


def worker_command(python: str | None, confinement: dict[str, Any]) -> tuple[list[str], dict[str, str]]:
    """Command and environment variables of a worker that has no request yet.

    Args:
        python: Interpreter; None for this one.
        confinement: As in `guard.split`, and `env`: names of environment variables to let through. Defaults are an empty
            working directory, no limits, no sandbox, no further variables.
    """
    nothing: dict[str, Any] = {"cwd": None, "rlimits": {}, "level": "off", "read": [], "write": [], "modules": [], "env": []}
    confinement = nothing | confinement
    confinement["start"] = "" if confinement["level"] == "off" else os.getcwd()
    # absolute, since the worker has another working directory; None stands for the interpreter's own path
    path = [*map(os.path.abspath, sys.path), None] if python is None else [None, os.getcwd()]
    interpreter = sys.executable if python is None else os.path.abspath(python) if "/" in python else python
    command = [interpreter, "-c", _BOOT, str(Path(PACKAGE).resolve()), json.dumps(path), json.dumps(confinement)]
    return command, worker_environment(confinement["env"])


def worker_environment(named: Collection[str] = ()) -> dict[str, str]:
    """The environment variables that a worker is started with.

    Args:
        named: Those to let through besides the harmless ones.
    """
    passed_on = {
        name: value
        for name, value in os.environ.items()
        if name in _PASSED_ON or name.startswith(_PASSED_ON_PREFIXES) or name in named
    }
    if passed_on.get("PYTHONPATH"):  # absolute, as above
        passed_on["PYTHONPATH"] = ":".join(os.path.abspath(entry) for entry in passed_on["PYTHONPATH"].split(":"))
    # a worker steps small environments; threads of BLAS would only compete with the trainer
    return {
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "PYGAME_HIDE_SUPPORT_PROMPT": "1",
    } | passed_on
