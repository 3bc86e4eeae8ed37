"""`python -m lit_ppo`."""

import sys


def start_workers() -> None:
    """Start the environment processes that the command will want, before anything heavy is imported: they boot meanwhile."""
    from lit_ppo.bridge.process import start_ahead
    from lit_ppo.errors import ConfigError

    count = {"fit": 2, "validate": 1, "test": 1}.get(sys.argv[1] if len(sys.argv) > 1 else "", 0)
    if not {"-h", "--help", "--print_config"} & set(sys.argv):
        try:
            start_ahead(count)
        except ConfigError:
            pass  # it comes again, where it is told properly


if __name__ == "__main__":  # Lightning's launchers import this file again
    start_workers()

    from lit_ppo.compat_torch import defer_dynamo

    defer_dynamo()

    from lit_ppo.cli import main

    main()
