"""What each level of the sandbox costs: `python -m benchmarks.sandbox_price`.

A start is timed from nothing to the first observations, as the command line starts: worker, interpreter, environments. Steps
are timed in short turns of bridges that all live at once. Each level is compared with `off` in the same round.
"""

import argparse
from time import perf_counter
from typing import get_args

import numpy as np

from benchmarks.report import Row, ratio, show
from benchmarks.stepping import Competitor, take_turns
from lit_ppo.bridge.client import EnvBridge
from lit_ppo.bridge.settings import BridgeSettings, SandboxLevel

LEVELS: tuple[SandboxLevel, ...] = get_args(SandboxLevel)
NUM_ENVS = 8


def started(level: SandboxLevel) -> EnvBridge:
    """CartPole in one worker, reset."""
    bridge = EnvBridge(
        "CartPole-v1", NUM_ENVS, lambda env, episode: 1000 * env + episode, settings=BridgeSettings(sandbox=level)
    )
    try:
        bridge.reset()
    except BaseException:
        bridge.close()
        raise
    return bridge


def starts(rounds: int) -> list[Row]:
    """Milliseconds until the first observations, after one round that does not count."""
    rows = {level: Row("sandbox, start", level, "ms", against=None if level == "off" else "off") for level in LEVELS}
    for turn in range(rounds + 1):
        for level in LEVELS[turn % len(LEVELS) :] + LEVELS[: turn % len(LEVELS)]:
            begin = perf_counter()
            bridge = started(level)
            elapsed = perf_counter() - begin
            bridge.close()
            if turn:
                rows[level].values.append(1000 * elapsed)
    return list(rows.values())


def steps(rounds: int, seconds: float) -> list[Row]:
    """Env steps per second."""
    rows = {level: Row("sandbox, steps", level, "env steps/s", against=None if level == "off" else "off") for level in LEVELS}
    bridges = [(level, started(level)) for level in LEVELS]
    made = [Competitor(level, bridge.step, bridge.close) for level, bridge in bridges]
    actions = np.random.default_rng(0).integers(2, size=(1024, NUM_ENVS))
    take_turns(made, rows, actions, rounds, seconds)
    return list(rows.values())


def prices(rows: list[Row]) -> list[Row]:
    """How much longer a step takes than without a sandbox; the ratios of the table are rounded too much for that."""
    found = [(row.who, ratio(row, rows)) for row in rows]
    return [
        Row("sandbox, price of a step", level, "%", [100 * (1 / share - 1)], target="<= 2")
        for level, share in found
        if share is not None
    ]


def main() -> None:
    """Print the table, and the price of a step in per cent."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sandbox_price", description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    of_steps = steps(5 if quick else 81, 0.1)
    show([*starts(3 if quick else 21), *of_steps, *prices(of_steps)])


if __name__ == "__main__":
    main()
