"""Latency statistics against scipy and simulated truths; scores are in test_statistics.py."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from kdpipe.stages.statistics import (
    latency_percentile,
    latency_ratio,
    mean_latency,
    needed_samples,
    order_bounds,
)


@pytest.mark.parametrize(
    ("n", "percentile", "expected"),
    [(100, 0.90, (84, 96)), (1000, 0.90, (881, 919)), (1000, 0.99, (983, 997))],
)
def test_order_statistics_bound_a_percentile_on_both_sides(
    n: int, percentile: float, expected: tuple[int, int]
) -> None:
    """Two bounds of 97.5 % each give the published indices of the 95 % interval."""
    assert order_bounds(n, percentile, 0.975) == expected


@pytest.mark.parametrize(("percentile", "expected"), [(0.90, 916), (0.95, 962), (0.99, 996)])
def test_order_statistics_bound_a_percentile_from_above(percentile: float, expected: int) -> None:
    """The upper 95 % index of 1,000 samples is the published one."""
    assert order_bounds(1000, percentile, 0.95)[1] == expected


@pytest.mark.parametrize("percentile", [0.5, 0.9, 0.95, 0.99])
def test_an_upper_bound_exists_exactly_from_the_floor_on(percentile: float) -> None:
    """One sample below the floor there is no bound; at the floor it is the maximum."""
    floor = needed_samples(percentile, 0.95)
    assert order_bounds(floor - 1, percentile, 0.95)[1] is None
    assert order_bounds(floor, percentile, 0.95)[1] == floor


def _processes(
    rng: np.random.Generator, count: int, scale: float = 1.0, effect: float = 0.01, each: int = 20
) -> list[NDArray[np.float64]]:
    """Log-normal latencies: `effect` between processes, 2 % inside one."""
    levels = scale * np.exp(effect * rng.standard_normal(count))
    return [level * np.exp(0.02 * rng.standard_normal(each)) for level in levels]


def test_a_ratio_gets_welchs_interval() -> None:
    """Bounds equal exp() of scipy's Welch interval over the processes' mean logs."""
    rng = np.random.default_rng(5)
    slow, fast = _processes(rng, 12, 3.0), _processes(rng, 7, effect=0.03)
    logs = [[float(np.log(x).mean()) for x in side] for side in (slow, fast)]
    expected = stats.ttest_ind(*logs, equal_var=False).confidence_interval(0.90)
    found = latency_ratio(slow, fast, 0.95)
    assert (found.low, found.high) == pytest.approx((np.exp(expected.low), np.exp(expected.high)))
    assert found.low < found.point < found.high
    assert found.n == 7


def test_the_same_model_twice_rarely_seems_faster() -> None:
    """A/A: 10 processes on each side claim a speedup in at most 6 % of 2,000 comparisons."""
    rng = np.random.default_rng(6)
    lows = [latency_ratio(_processes(rng, 10), _processes(rng, 10), 0.95).low for _ in range(2000)]
    assert np.mean(np.array(lows) > 1) <= 0.06


def test_a_slowdown_of_a_fifth_is_caught() -> None:
    """With 10 processes and 5 % between them, 20 % slower is seen in at least 99 of 100 runs."""
    rng = np.random.default_rng(7)
    highs = [
        latency_ratio(
            _processes(rng, 10, effect=0.05), _processes(rng, 10, 1.2, effect=0.05), 0.95
        ).high
        for _ in range(100)
    ]
    assert np.sum(np.array(highs) < 1) >= 99


def test_one_process_bounds_nothing() -> None:
    """However many iterations it made, its spread between processes is unknown."""
    one = [np.linspace(1.0, 2.0, 1000)]
    two = [*one, *one]
    unknown = (0.0, math.inf)
    for found in (latency_ratio(one, two, 0.95), latency_ratio(two, one, 0.95)):
        assert (found.low, found.high) == unknown
    for found in (mean_latency(one, 0.95), latency_percentile(one, 0.95, 0.95)):
        assert (found.low, found.high) == unknown


def test_a_mean_latency_is_bounded_by_its_processes() -> None:
    """Repeating each iteration a hundred times narrows nothing: the process is the sample."""
    rng = np.random.default_rng(8)
    processes = _processes(rng, 10, 2.0)
    more = [np.tile(samples, 100) for samples in processes]
    found, again = mean_latency(processes, 0.95), mean_latency(more, 0.95)
    assert (again.low, again.high) == pytest.approx((found.low, found.high))
    assert found.low < found.point < found.high


def test_too_few_iterations_bound_no_percentile() -> None:
    """298 iterations leave p99 open, 300 do not."""
    rng = np.random.default_rng(9)
    assert latency_percentile(_processes(rng, 2, each=149), 0.99, 0.95).high == math.inf
    assert latency_percentile(_processes(rng, 2, each=150), 0.99, 0.95).high < math.inf


@pytest.mark.parametrize("percentile", [0.50, 0.90, 0.99])
@pytest.mark.parametrize("effect", [0.0, 0.01, 0.05])
def test_the_bound_of_a_percentile_covers_the_truth(effect: float, percentile: float) -> None:
    """Whatever processes differ by, the upper bound of a typical one's percentile holds at 94 %."""
    truth = math.exp(stats.norm.ppf(percentile) * 0.02)
    rng = np.random.default_rng(10)
    highs = [
        latency_percentile(_processes(rng, 10, effect=effect, each=100), percentile, 0.95).high
        for _ in range(500)
    ]
    assert np.mean(np.array(highs) >= truth) >= 0.94


def test_the_bounds_of_a_percentile_hold_the_pooled_one() -> None:
    """One slow process of ten is the whole pooled tail, and the bound does not hide it."""
    rng = np.random.default_rng(12)
    processes = [*_processes(rng, 9, each=100), *_processes(rng, 1, 10.0, each=100)]
    found = latency_percentile(processes, 0.99, 0.95)
    assert found.point > 9
    assert found.high >= found.point
