"""`python -m lit_ppo`, and the `lit_ppo` script."""

import os
import sys

if not sys.flags.safe_path:
    # Last, where `python -m` has it first: the user's own modules are found, but a file there, which an environment may have
    # written, never stands in for an installed module or one of Python's.
    sys.path[:] = [*(entry for entry in sys.path if entry not in ("", os.getcwd())), os.getcwd()]

from lit_ppo import allocator, exit_codes, interrupts, standard_streams

_ANYWHERE = {"-h", "--help", "--version", "plot", "presets", "runs"}  # commands that make no environment
_WORKERS = {"fit": 2, "validate": 1, "test": 1}  # of each command that trains or plays


def start_workers(command: str) -> None:
    """Start the environment processes that the command needs, before the heavy imports: they boot meanwhile."""
    from lit_ppo.bridge.process import start_ahead
    from lit_ppo.errors import ConfigError

    if not {"-h", "--help", "--print_config"} & set(sys.argv):
        try:
            start_ahead(_WORKERS[command])
        except ConfigError:
            pass  # raised again, and reported, when the bridge starts its workers


def main() -> None:
    """Run the command in `sys.argv`; a signal ends it in one line, also during the imports."""
    if sys.platform != "linux" and not _ANYWHERE & set(sys.argv[1:2]):
        exit_codes.fail(
            f"this system is {sys.platform}: expected Linux, whose processes confine the environments; use a Linux container, "
            "on Windows also WSL 2",
            exit_codes.USAGE,
        )
    standard_streams.prepare()
    interrupts.advise(interrupts.advice_at_start(sys.argv[1:]))
    interrupts.install()
    if len(sys.argv) > 1 and sys.argv[1] in _WORKERS:
        start_workers(sys.argv[1])
        allocator.keep_freed_memory()

        from lit_ppo.compat_torch import defer_dynamo

        defer_dynamo()

    from lit_ppo.cli import main as run

    run()


if __name__ == "__main__":  # Lightning's launchers import this file again
    main()
