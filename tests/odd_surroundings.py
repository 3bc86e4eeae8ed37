"""`python -m tests.odd_surroundings SETTINGS COMMAND ...` runs a command of lit_ppo where something is missing.

SETTINGS is JSON: `refuses`: numbers of system calls that the kernel is made to refuse; `user`: user number to become; `full`: a
directory on a file system that has no room for another file; `temporary`: TMPDIR.
"""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

from lit_ppo.bridge import kernel, system_calls
from tests.bridge.under_attack import _let_everybody_reach

_NEW_MOUNTS, _PRIVATE, _RECURSIVE = 0x00020000, 1 << 18, 1 << 14
_LOAD_NUMBER, _ALLOW = (0x20, 0, 0, 0), (0x06, 0, 0, 0x7FFF0000)  # of a filter of system calls


def main() -> None:
    settings, command = json.loads(sys.argv[1]), sys.argv[2:]
    if (full := settings.get("full")) is not None:
        kernel.unshare(_NEW_MOUNTS)
        kernel.mount(None, "/", None, _PRIVATE | _RECURSIVE)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4096,nr_inodes=1", "tmpfs", full], check=True)
    if (user := settings.get("user")) is not None:
        _let_everybody_reach(Path(sys.base_prefix))
    for number in settings.get("refuses", []):
        if os.getuid() != 0:
            kernel.prctl(kernel.NO_NEW_PRIVILEGES, 1)
        refuse = [(0x15, 0, 1, number), (0x06, 0, 0, 0x00050000 | errno.EPERM)]
        system_calls._install([_LOAD_NUMBER, *refuse, _ALLOW])
    if user is not None:
        os.setgroups([])
        os.setgid(user)
        os.setuid(user)
    if settings.get("temporary") is not None:
        os.environ["TMPDIR"] = settings["temporary"]
    os.execv(sys.executable, [sys.executable, "-m", "lit_ppo", *command])


if __name__ == "__main__":
    main()
