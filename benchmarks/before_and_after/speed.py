"""Is one checkout as fast as the other? Paired measurements, each in a fresh process; and the cost of a boundary.

The sides take turns, and every other pair begins with the other side, so that neither drift of the machine nor the order
favours one. A warm-up pair of each case does not count: it fills the caches of bytecode and compiled programs.
"""

import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, Final

import numpy as np

from benchmarks.before_and_after import driver
from benchmarks.before_and_after.checkout import Checkout, aligned, save, say

_TIMEOUT_S: Final = 600.0
_RESAMPLES: Final = 10_000
_BOUNDARY_NUM_ENVS: Final = (8, 64)
_BOUNDARY_WINDOW: Final = 20  # updates whose median is given
_BOUNDARY_MARKS: Final = 4  # windows that are printed: the first, the last, and between


# -- statistics


def median_interval(ratios: Sequence[float], resamples: int = _RESAMPLES, seed: int = 0) -> tuple[float, float]:
    """Bootstrap 95 % interval of the median: quantiles 0.025 and 0.975 of the medians of samples drawn with replacement.

    Args:
        ratios: One for each pair, shape (n,).
        resamples: Samples of n that are drawn.
        seed: Of the draws.
    """
    values = np.asarray(ratios, np.float64)
    picks = np.random.default_rng(seed).integers(len(values), size=(resamples, len(values)))
    low, high = np.quantile(np.median(values[picks], axis=1), (0.025, 0.975))
    return float(low), float(high)


def speed_ratios(before: Sequence[float], after: Sequence[float], is_rate: bool) -> list[float]:
    """How many times as fast the new side is, pair by pair: after / before of rates, before / after of durations."""
    return [y / x if is_rate else x / y for x, y in zip(before, after, strict=True)]


# -- measurements


@dataclass
class Case:
    """One row of the table.

    Attributes:
        name: What is measured.
        unit: Of the values; a rate is better when larger, seconds when smaller.
        call: What the driver is to measure; None to run the interpreter with `arguments` instead.
        arguments: Of the interpreter. The whole process is timed, as is a driver's if the unit is seconds.
        takes_options: Whether the options of a side are appended.
        values: Side -> one value for each pair.
    """

    name: str
    unit: str
    call: dict[str, Any] | None = None
    arguments: tuple[str, ...] = ()
    takes_options: bool = False
    values: dict[str, list[float]] = field(default_factory=lambda: {"before": [], "after": []})

    @property
    def is_rate(self) -> bool:
        return self.unit.endswith("/s")

    def measure(self, checkout: Checkout) -> float:
        """One value, from a process in an empty directory of its own."""
        with tempfile.TemporaryDirectory(prefix="before-and-after-") as name:
            start = perf_counter()
            if self.call is not None:
                rate: float = drive(checkout, Path(name), self.call)
                if self.is_rate:
                    return rate
            else:
                options = checkout.options if self.takes_options else ()
                checkout.run(Path(name), *self.arguments, *options, timeout_s=_TIMEOUT_S)
            return perf_counter() - start

    def row(self) -> tuple[str, ...]:
        """Of the table."""
        before, after = self.values["before"], self.values["after"]
        ratios = speed_ratios(before, after, self.is_rate)
        low, high = median_interval(ratios)
        places = 0 if self.is_rate else 3
        medians = (f"{median(before):,.{places}f}", f"{median(after):,.{places}f}")
        return (self.name, self.unit, *medians, f"{median(ratios):.3f}", f"{low:.3f} - {high:.3f}", str(len(ratios)))


def drive(checkout: Checkout, directory: Path, call: dict[str, Any]) -> Any:
    """The answer of the driver, run by a checkout's interpreter."""
    script = shutil.copy(driver.__file__, directory)
    output = checkout.run(directory, script, json.dumps(call), timeout_s=_TIMEOUT_S)
    return json.loads(output.splitlines()[-1])


def _training(num_envs: int, minibatch_size: int, compiled: bool, updates: int) -> Case:
    call = {"measure": "train", "num_envs": num_envs, "minibatch_size": minibatch_size}
    call |= {"compiled": compiled, "warm_up": 3, "updates": updates}
    return Case(f"training {num_envs} x 128, {'compiled' if compiled else 'eager'}", "env steps/s", call)


def _stepping(vectorization: str, num_envs: int, steps: int) -> Case:
    call = {"measure": "step", "vectorization": vectorization, "num_envs": num_envs, "steps": steps}
    return Case(f"bridge {vectorization} N={num_envs}", "env steps/s", call)


def all_cases(quick: bool) -> list[Case]:
    """The rows of the table; `quick` measures a tenth as long."""
    part = 10 if quick else 1
    one_update = ("fit", "--trainer.max_epochs=1", "--solved.threshold=.inf", "--curve.path=curve.json")
    first_updates = {"measure": "train", "num_envs": 8, "minibatch_size": 64, "compiled": False, "warm_up": 1, "updates": 1}
    return [
        *(_training(4, 128, compiled, 100 // part) for compiled in (False, True)),
        *(_training(64, 2048, compiled, 20 // part) for compiled in (False, True)),
        _stepping("sync", 8, 15_000 // part),
        _stepping("sync", 64, 3_000 // part),
        _stepping("native", 64, 12_672 // part),  # three times the 4,224 steps in which at least one snapshot falls
        Case("fit with one update, whole process", "s", arguments=("-m", "lit_ppo", *one_update), takes_options=True),
        Case("Trainer.fit with two updates, whole process", "s", first_updates),
        Case("import lit_ppo; lit_ppo.PPOModule", "s", arguments=("-c", "import lit_ppo; lit_ppo.PPOModule")),
    ]


def main(before: Checkout, after: Checkout, wanted: str, pairs: int, quick: bool) -> int:
    """Print one row for each case whose name contains `wanted`."""
    cases = [case for case in all_cases(quick) if wanted in case.name]
    for pair in range(pairs + 1):
        for case in cases:
            for checkout in (after, before) if pair % 2 else (before, after):
                value = case.measure(checkout)
                if pair:
                    case.values[checkout.side].append(value)
        say(f"pair {pair} of {pairs}" if pair else "warm-up pair done")
        if pair:  # so that an interrupted comparison loses nothing
            path = save("speed", (before, after), {case.name: {"unit": case.unit, **case.values} for case in cases})
    header = ("case", "unit", "before", "after", "speed ratio", "95 % interval", "pairs")
    print(aligned([header, *(case.row() for case in cases)]))
    say(f"raw numbers: {path}; a ratio above 1 says that `after` is faster")
    return 0


# -- cost of a boundary


def window_medians(seconds: Sequence[float], horizon: int) -> dict[int, float]:
    """Steps under way -> median seconds of an update there, for the first and the last updates and some between.

    Args:
        seconds: Of each update but the first.
        horizon: Steps of each environment in an update.
    """
    width = min(_BOUNDARY_WINDOW, len(seconds))
    starts = np.linspace(0, len(seconds) - width, _BOUNDARY_MARKS).round().astype(int).tolist()
    return {horizon * (1 + start): median(seconds[start : start + width]) for start in starts}


def boundary(before: Checkout, after: Checkout, steps: int, horizon: int) -> int:
    """Print the time of an update while episodes grow to `steps` steps, for 8 and 64 environments."""
    updates = -(-steps // horizon) + _BOUNDARY_WINDOW
    raw: dict[str, list[float]] = {}
    rows: list[tuple[str, ...]] = []
    for num_envs in _BOUNDARY_NUM_ENVS:
        for checkout in (before, after):
            say(f"boundary: {num_envs} environments, {checkout.side}")
            with tempfile.TemporaryDirectory(prefix="before-and-after-") as name:
                call = {"measure": "boundary", "num_envs": num_envs, "horizon": horizon, "updates": updates}
                seconds: list[float] = drive(checkout, Path(name), call)
            raw[f"{checkout.side}, N={num_envs}"] = seconds
            windows = window_medians(seconds, horizon)
            if not rows:
                rows.append(("environments", "side", *(f"from step {start:,}" for start in windows), "last / first"))
            medians = list(windows.values())
            cells = [f"{1000 * value:.1f} ms" for value in medians]
            rows.append((f"N={num_envs}", checkout.side, *cells, f"{medians[-1] / medians[0]:.2f}"))
    print(aligned(rows))
    save("boundary", (before, after), {"horizon": horizon, "seconds_of_an_update": raw})
    return 0
