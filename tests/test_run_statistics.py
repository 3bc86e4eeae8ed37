"""Statistics over seeds: known answers, and those of scipy where it is installed."""

import itertools

import numpy as np
import pytest

from lit_ppo.run_statistics import bootstrap_interval, interquartile_mean, thinned

NINE = [3.0, -1.5, 7.25, 0.0, 2.0, 11.0, 4.5, -3.0, 5.0]


def test_interquartile_mean_leaves_out_a_quarter_at_each_end() -> None:
    assert interquartile_mean([8, 1, 2, 3, 4, 5, 6, 100]) == 4.5  # (3 + 4 + 5 + 6) / 4
    assert interquartile_mean([9, 1, 5, 6, 7]) == 6.0  # floor(5 / 4) = 1 at each end: (5 + 6 + 7) / 3
    assert interquartile_mean([1, 2, 9]) == 4.0  # floor(3 / 4) = 0: the mean


def test_interval_of_two_values_is_that_of_all_four_resamples() -> None:
    """Means 0, 1/2, 1/2, 1, each with probability 1/4: more than 2.5 % lie at each end."""
    assert bootstrap_interval([0.0, 1.0]) == (0.0, 1.0)


def test_interval_of_five_values_is_near_that_of_all_resamples() -> None:
    values = [1.0, 2.0, 4.0, 8.0, 16.0]
    means = [interquartile_mean(resample) for resample in itertools.product(values, repeat=5)]
    # the means have gaps, so the same quantile of a sample may lie at the other side of one
    assert bootstrap_interval(values) == pytest.approx(tuple(np.percentile(means, [2.5, 97.5])), abs=0.34)


def test_interval_of_one_value_is_that_value() -> None:
    assert bootstrap_interval([3.5]) == (3.5, 3.5)


def test_statistics_of_nothing_are_refused() -> None:
    for statistic in (interquartile_mean, bootstrap_interval):
        with pytest.raises(ValueError, match="at least one value"):
            statistic([])


@pytest.mark.parametrize("size", [2, 3, 4, 5, 8, 9])
def test_statistics_are_those_of_scipy(size: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    values = NINE[:size]
    assert interquartile_mean(values) == pytest.approx(stats.trim_mean(values, 0.25))
    found = stats.bootstrap(
        (values,),
        lambda sample, axis: stats.trim_mean(sample, 0.25, axis=axis),
        n_resamples=10_000,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    assert bootstrap_interval(values) == pytest.approx(tuple(found))


# What scipy 1.17.1 says, by the calls of the test above: mean, low and high end.
FROM_SCIPY = {
    2: (0.75, -1.5, 3.0),
    3: (2.9166666666666665, -1.5, 7.25),
    4: (1.5, -1.5, 7.25),
    5: (1.6666666666666667, -1.0, 5.833333333333333),
    8: (2.375, -0.75, 6.4375),
    9: (2.9, -0.2, 6.25),
}


@pytest.mark.parametrize("size", FROM_SCIPY)
def test_statistics_are_what_scipy_has_said(size: int) -> None:
    mean, low, high = FROM_SCIPY[size]
    assert interquartile_mean(NINE[:size]) == pytest.approx(mean)
    assert bootstrap_interval(NINE[:size]) == pytest.approx((low, high))


def test_curve_is_thinned_to_the_means_of_equal_spans() -> None:
    """Spans (0, 10], (10, 20] and so on; each value counts as often as it has episodes."""
    steps, values = thinned([2, 10, 14, 30, 36, 40], [1.0, 4.0, 7.0, 5.0, 6.0, 8.0], [1, 2, 1, 0, 1, 1], num_points=4)
    assert steps == [10, 14, 40]
    assert values == [3.0, 7.0, 7.0]  # (1 + 2 * 4) / 3, 7, (6 + 8) / 2; no episode ended in the third span


def test_short_curve_stays_as_it_is() -> None:
    assert thinned([5, 9], [1.0, 2.0], [1, 3]) == ([5, 9], [1.0, 2.0])
    assert thinned([], [], []) == ([], [])
