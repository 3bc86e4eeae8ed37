"""`python -m lit_ppo`, and the `lit_ppo` script."""

import os
import sys

if not sys.flags.safe_path:
    # Last, where `python -m` has it first: the user's own modules are found, but a file there, which an environment may have
    # written, never stands in for an installed module or one of Python's.
    sys.path[:] = [*(entry for entry in sys.path if entry not in ("", os.getcwd())), os.getcwd()]

from lit_ppo import PACKAGE, allocator, elastic, exit_codes, interrupts, standard_streams

_PACKAGES = {  # of every installation, by the name that is imported
    **{name: name for name in ("gymnasium", "jsonargparse", "lightning", "numpy", "torch", "torchmetrics", "tqdm")},
    "yaml": "PyYAML",
}
_ANYWHERE = {"-h", "--help", "--version", "plot", "presets", "runs"}  # commands that make no environment
_WORKERS = {"fit": 2, "validate": 1, "test": 1}  # of each command that trains or plays


def start_workers(command: str) -> None:
    """Start the environment processes that the command needs, before the heavy imports: they boot meanwhile."""
    from lit_ppo.bridge.faults import require_outside_environments
    from lit_ppo.bridge.process import start_ahead
    from lit_ppo.errors import ConfigError

    if not {"-h", "--help", "--print_config"} & set(sys.argv):
        try:
            require_outside_environments(command)
            start_ahead(_WORKERS[command])
        except ConfigError:
            pass  # raised again, and reported, when the bridge starts its workers


def main() -> None:
    """Run the command in `sys.argv`; a signal or a missing package ends it in one line, also during the imports."""
    try:
        _run()
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in _PACKAGES:
            raise  # of a user's own module, or a defect
        exit_codes.fail(f"{package} is not installed for {sys.executable}; use: {_installation_of(package)}", exit_codes.USAGE)


def _installation_of(package: str) -> str:
    """The command that installs all of a checkout, or a package in the version that an installed lit_ppo needs."""
    from importlib import metadata
    from pathlib import Path

    root, pip = Path(PACKAGE).parent, f"{sys.executable} -m pip install"
    if (root / "constraints.txt").is_file():
        return f"make fit, or {pip} -c {root}/constraints.txt -e {root}"
    needed = [needed for needed in metadata.requires("lit_ppo") or [] if needed.startswith(package)]
    return f"{pip} '{(needed or [_PACKAGES[package]])[0]}'"


def _run() -> None:
    if sys.platform != "linux" and not _ANYWHERE & set(sys.argv[1:2]):
        exit_codes.fail(
            f"this system is {sys.platform}: expected Linux, whose processes confine the environments; use a Linux container, "
            "on Windows also WSL 2",
            exit_codes.USAGE,
        )
    standard_streams.prepare()
    interrupts.advise(interrupts.advice_at_start(sys.argv[1:]))
    interrupts.install()
    elastic.end_with_launcher()
    if len(sys.argv) > 1 and sys.argv[1] in _WORKERS:
        start_workers(sys.argv[1])
        allocator.keep_freed_memory()

        from lit_ppo.compat_torch import defer_dynamo

        defer_dynamo()

    from lit_ppo.cli import main as run

    run()


if __name__ == "__main__":  # Lightning's launchers import this file again
    main()
