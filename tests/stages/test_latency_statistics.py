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
from kdpipe.stages.statistics.latency import noise_floor
from kdpipe.stages.statistics.outliers import latency_outliers, modified_z


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


# --- noise floor, outliers ----------------------------------------------------------------------


@pytest.mark.parametrize("count", [10, 20])
def test_a_tie_lies_within_the_noise_floor(count: int) -> None:
    """A third measurement of the same artifact differs from the first by less, 97 times in 100."""
    rng = np.random.default_rng(13)
    inside = []
    for _ in range(1000):
        first, again, third = (_processes(rng, count) for _ in range(3))
        ratio = latency_ratio(first, third, 0.95).point
        floor = noise_floor(first, again, 0.95).floor
        inside.append(max(ratio, 1 / ratio) - 1 <= floor)

    assert np.mean(inside) >= 0.965


def test_the_noise_floor_shrinks_with_processes_and_not_with_iterations() -> None:
    """1 % between processes: under 2 % with 20 of them, and ten times the iterations change
    nothing. A difference of a fifth is far outside."""
    rng = np.random.default_rng(14)
    sides = [(_processes(rng, n), _processes(rng, n)) for n in (5, 20)]
    few, many = (noise_floor(*pair, 0.95) for pair in sides)
    longer = [[np.tile(samples, 10) for samples in side] for side in sides[1]]

    assert many.floor < few.floor
    assert many.floor < 0.02
    assert noise_floor(*longer, 0.95).floor == pytest.approx(many.floor)
    assert many.floor >= abs(many.ratio.point - 1)
    assert many.ratio.n == 20


def test_one_process_has_no_noise_floor() -> None:
    """Its spread is unknown, so any difference may be noise."""
    one = [np.linspace(1.0, 2.0, 1000)]

    assert noise_floor(one, one, 0.95).floor == math.inf


def test_the_noise_floor_looks_to_both_sides() -> None:
    """Whichever of the two measurements was slower by chance, the floor is the same."""
    rng = np.random.default_rng(15)
    first, again = _processes(rng, 10), _processes(rng, 10)

    forth, back = noise_floor(first, again, 0.95), noise_floor(again, first, 0.95)

    assert forth.floor == pytest.approx(back.floor)


def test_outliers_are_counted() -> None:
    """One process of ten a third slower, and three slow iterations in another, and no more."""
    rng = np.random.default_rng(16)
    processes = _processes(rng, 10, each=200)
    processes[4] = processes[4] * 1.33
    processes[7][[5, 50, 150]] *= 3

    found = latency_outliers(processes)

    assert found.processes == (4,)
    assert (found.iterations, found.of) == (3, 2000)


def test_outliers_of_equal_latencies() -> None:
    """Where all are equal none stands out; where nearly all are, the other one does."""
    same = [np.ones(50) for _ in range(9)]

    assert latency_outliers(same).processes == ()
    assert latency_outliers(same).iterations == 0
    assert latency_outliers([*same, np.full(50, 2.0)]).processes == (9,)


def test_modified_z_is_the_published_formula() -> None:
    """0.6745 (x - median) / MAD (Iglewicz and Hoaglin 1993), by scipy's MAD."""
    values = np.array([2.1, 2.6, 2.4, 2.5, 2.3, 2.1, 2.3, 2.6, 8.2, 8.3])
    deviation = stats.median_abs_deviation(values)

    assert modified_z(values) == pytest.approx(0.6745 * (values - np.median(values)) / deviation)
    assert np.flatnonzero(np.abs(modified_z(values)) > 3.5).tolist() == [8, 9]
