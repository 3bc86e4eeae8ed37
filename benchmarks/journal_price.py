"""What the journal costs: `python -m benchmarks.journal_price`.

Steps per second through `EnvBridge` with its journal and without, in alternating blocks of the same bridge, so that whatever
else the machine does meets both alike. Without: nothing is written down, and no digests are worked out.
"""

import argparse
from statistics import median
from time import perf_counter
from typing import Any
from unittest import mock

import numpy as np

from lit_ppo.bridge.client import EnvBridge
from lit_ppo.bridge.journal import Journal
from lit_ppo.bridge.restoration import Snapshots
from lit_ppo.bridge.settings import BridgeSettings, Vectorization

CASES: tuple[tuple[Vectorization, int], ...] = (("sync", 8), ("sync", 64), ("native", 64))
STEPS_OF_A_BLOCK = 4224  # native environments are saved once in each


def count_only(self: Journal, *args: Any) -> None:
    """In place of `Journal.append`: the bridge uses the number of steps for other things too."""
    self.steps += 1
    self.digested += 1
    self._base += 1  # nothing is kept, so that the journal can go on later


def block(bridge: EnvBridge, actions: np.ndarray) -> float:
    """Steps of all environments per second."""
    begin = perf_counter()
    for row in actions:
        bridge.step(row)
    return len(actions) * bridge.num_envs / (perf_counter() - begin)


def measure(vectorization: Vectorization, num_envs: int, pairs: int) -> tuple[float, float, float]:
    """Medians of steps per second with and without the journal, and of the ratio within each pair."""
    actions = np.random.default_rng(0).integers(0, 2, (STEPS_OF_A_BLOCK, num_envs))
    nothing = lambda *args: None  # noqa: E731
    without = [
        mock.patch.object(Journal, "append", count_only),
        mock.patch.object(Journal, "begin", nothing),
        mock.patch.object(Journal, "begin_all", nothing),
        mock.patch.object(Snapshots, "before_save", nothing),
    ]
    rates: dict[bool, list[float]] = {True: [], False: []}
    settings = BridgeSettings(vectorization=vectorization)
    with EnvBridge("CartPole-v1", num_envs, lambda env, episode: 1000 * env + episode, settings=settings) as bridge:
        bridge.reset()
        block(bridge, actions)
        for pair in range(pairs):
            for has_journal in (True, False) if pair % 2 else (False, True):
                bridge.reset()  # with a journal of its own
                if has_journal:
                    rates[True].append(block(bridge, actions))
                    continue
                for patch in without:
                    patch.start()
                try:
                    rates[False].append(block(bridge, actions))
                finally:
                    for patch in without:
                        patch.stop()
    ratio = median(on / off for on, off in zip(rates[True], rates[False], strict=True))
    return median(rates[True]), median(rates[False]), ratio


def main() -> None:
    """Print one line for each case."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.journal_price", description=__doc__.partition("\n")[0])
    parser.add_argument("--pairs", type=int, default=15)
    pairs = parser.parse_args().pairs
    for vectorization, num_envs in CASES:
        on, off, ratio = measure(vectorization, num_envs, pairs)
        print(
            f"{vectorization:<6} N={num_envs:<3} with {on:>10,.0f} steps/s  without {off:>10,.0f} steps/s  "
            f"price {100 * (1 - ratio):+.1f}%",
            flush=True,
        )


if __name__ == "__main__":
    main()
