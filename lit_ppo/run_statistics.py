"""Statistics of a few runs with different seeds, and curves with fewer points.

Written out here because scipy, where it is installed, is imported by torchmetrics and so by every command, for half a second.
"""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

_RESAMPLES: Final = 10_000
_RESAMPLES_OF_A_BAND: Final = 2_000  # at each point of a curve
_SEED: Final = 0  # of the resamples, so that a table can be made again


def interquartile_mean(values: Sequence[float]) -> float:
    """Mean of the values without the lowest and the highest quarter.

    Of S values floor(S / 4) are left out at each end, so of fewer than four it is the mean.

    Args:
        values: One for each seed, S of them.

    Raises:
        ValueError: There are no values.

    Source: Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of the Statistical Precipice",
    https://arxiv.org/abs/2108.13264; the same as `scipy.stats.trim_mean(values, 0.25)`.
    """
    return float(_interquartile_means(_vector(values)))


def bootstrap_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Percentile bootstrap interval of the interquartile mean; of one value, that value twice.

    Args:
        values: One for each seed, S of them.
        confidence: Coverage.

    Returns:
        Low and high end.

    Raises:
        ValueError: There are no values.

    Source: as `scipy.stats.bootstrap` with `method="percentile"`.
    """
    numbers = _vector(values)
    low, high = _percentiles(_interquartile_means(numbers[_draws(len(numbers), _RESAMPLES)]), confidence)
    return float(low), float(high)


def bootstrap_band(curves: NDArray[np.float64], confidence: float = 0.95) -> tuple[NDArray[Any], NDArray[Any]]:
    """Percentile bootstrap intervals of the mean of some curves, at each of their points.

    Args:
        curves: One for each seed, shape (S, P).
        confidence: Coverage.

    Returns:
        Low and high ends, shape (P,) each.

    Source: as `bootstrap_interval`, of the mean, and with the same seeds drawn at all points.
    """
    num_seeds = len(curves)
    draws = _draws(num_seeds, _RESAMPLES_OF_A_BAND)
    shares = np.stack([(draws == seed).mean(axis=1) for seed in range(num_seeds)], axis=1)  # (R, S)
    low, high = _percentiles(shares @ curves, confidence)
    return low, high


def _draws(num_seeds: int, num_resamples: int) -> NDArray[np.int64]:
    return np.random.default_rng(_SEED).integers(0, num_seeds, (num_resamples, num_seeds))


def _percentiles(statistics: NDArray[np.float64], confidence: float) -> NDArray[Any]:
    """Low and high end along the first axis."""
    tail = 100 * (1 - confidence) / 2
    ends: NDArray[Any] = np.percentile(statistics, [tail, 100 - tail], axis=0)
    return ends


def thinned(
    env_steps: Sequence[int], values: Sequence[float], counts: Sequence[int], num_points: int = 100
) -> tuple[list[int], list[float]]:
    """A curve with fewer points: the run is cut into equal spans of env steps, and each gets the mean of its values.

    Args:
        env_steps: Of each value, ascending.
        values: What was measured, such as the mean return of the episodes that ended in a rollout.
        counts: How many single values each of them is the mean of; 0 leaves it out.
        num_points: Largest number of points.

    Returns:
        Env steps of the last value of each span that has one, and the means.
    """
    steps, numbers, weights = np.asarray(env_steps), np.asarray(values, np.float64), np.asarray(counts, np.float64)
    kept = weights > 0
    steps, numbers, weights = steps[kept], numbers[kept], weights[kept]
    if len(steps) <= num_points:
        return steps.tolist(), numbers.tolist()
    spans = np.ceil(steps * num_points / steps[-1]).astype(np.int64).clip(1, num_points)
    points = [spans == span for span in np.unique(spans)]
    means = [float(np.average(numbers[point], weights=weights[point])) for point in points]
    return [int(steps[point][-1]) for point in points], means


def _interquartile_means(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of (..., S) values, along the last axis."""
    num_cut = values.shape[-1] // 4
    means: NDArray[np.float64] = np.sort(values)[..., num_cut : values.shape[-1] - num_cut].mean(axis=-1)
    return means


def _vector(values: Sequence[float]) -> NDArray[Any]:
    numbers = np.asarray(values, np.float64)
    if not len(numbers):
        raise ValueError("expected at least one value")
    return numbers
