"""Time limits of the tests: guards against a hang, never a clock. Each grows with the load of the machine."""

import os


def patient(seconds: float) -> float:
    """A time limit for here and now.

    Args:
        seconds: Limit on an idle machine: several times what the thing takes there.

    Returns:
        The limit, longer by three times as much for each process that competes for a core, since load may still rise.
    """
    return seconds * (1 + 3 * os.getloadavg()[0] / (os.cpu_count() or 1))
