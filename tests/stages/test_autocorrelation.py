"""Latencies whose neighbours resemble one another: what they are worth, and that bounds hold."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from kdpipe.stages.statistics import latency_percentile, needed_samples, order_bounds
from kdpipe.stages.statistics.autocorrelation import autocorrelation_time, effective_iterations

Floats = NDArray[np.float64]


def _normal(rng: np.random.Generator, rho: float, *shape: int) -> Floats:
    """AR(1) along the last axis: standard normal, neighbours correlated by `rho`."""
    noise = rng.standard_normal(shape)
    values = np.empty(shape)
    values[..., 0] = noise[..., 0]
    for i in range(1, shape[-1]):
        values[..., i] = rho * values[..., i - 1] + math.sqrt(1 - rho * rho) * noise[..., i]
    return values


def _runs(rng: np.random.Generator, rho: float, effect: float, *shape: int) -> list[list[Floats]]:
    """Runs of processes of log-normal latencies: `effect` between processes, 2 % inside one."""
    levels = effect * rng.standard_normal((*shape[:2], 1))
    latencies = np.exp(levels + 0.02 * _normal(rng, rho, *shape))
    return [list(processes) for processes in latencies]


@pytest.mark.parametrize("rho", [0.3, 0.5, 0.9])
def test_the_time_of_an_autoregression_is_found(rho: float) -> None:
    """(1 + rho) / (1 - rho), to a sixth, from ten processes of 300 iterations."""
    rng = np.random.default_rng(1)
    found = [autocorrelation_time(list(_normal(rng, rho, 10, 300))) for _ in range(40)]

    assert np.mean(found) == pytest.approx((1 + rho) / (1 - rho), rel=1 / 6)


def test_a_short_series_is_not_taken_for_a_quick_one() -> None:
    """100 iterations centred by their own mean hide a fifth of the variance, which is given back:
    without that the time of rho = 0.9, which is 19, comes out at 12."""
    rng = np.random.default_rng(2)
    found = [autocorrelation_time(list(_normal(rng, 0.9, 10, 100))) for _ in range(100)]

    assert np.mean(found) == pytest.approx(19, rel=0.25)


def test_independent_iterations_all_count() -> None:
    """At least 19 times in 20 nothing is taken off, and never much."""
    rng = np.random.default_rng(3)
    found = np.array([
        effective_iterations(list(np.exp(0.02 * rng.standard_normal((10, 100)))), 0.95)
        for _ in range(200)
    ])  # fmt: skip

    assert np.mean(found == 1000) >= 0.9
    assert found.min() >= 600


def test_a_difference_between_processes_is_no_autocorrelation() -> None:
    """Processes at levels of their own, independent inside, are worth all their iterations."""
    rng = np.random.default_rng(4)
    (processes,) = _runs(rng, 0.0, 0.5, 1, 10, 200)

    assert effective_iterations(processes, 0.5) == 2000


def test_bursts_over_the_percentile_are_found() -> None:
    """One iteration in ten is slow, ten in a row: of 2,000 about a tenth are worth counting."""
    rng = np.random.default_rng(5)
    processes = []
    for _ in range(10):
        slow = np.repeat(rng.random(20) < 0.1, 10)
        processes.append(np.exp(0.02 * rng.standard_normal(200) + 0.05 * slow))

    assert effective_iterations(processes, 0.9) < 500
    assert effective_iterations([rng.permutation(p) for p in processes], 0.9) > 1500


@pytest.mark.parametrize("value", [np.ones(50), np.arange(1.0, 51.0)])
def test_it_is_never_worth_more_than_there_is_nor_less_than_a_process(value: Floats) -> None:
    """Equal latencies have no autocorrelation; a mere drift is worth one value for each process."""
    found = effective_iterations([value, value, value], 0.5)

    assert found == (150 if np.ptp(value) == 0 else 3)


def test_ties_are_not_taken_for_a_trend() -> None:
    """A clock that only knows two values: independent ones are worth what they are."""
    values = np.random.default_rng(6).integers(1, 3, 400).astype(float)

    assert effective_iterations([values[:200], values[200:]], 0.5) > 350


@pytest.mark.parametrize(("rho", "plain"), [(0.5, 0.94), (0.9, 0.75)])
def test_order_statistics_hold_at_the_effective_number(rho: float, plain: float) -> None:
    """Upper 95 % bounds of p90 from 20 processes of 100 iterations: at the ranks of all iterations
    they fail more often than they may, at those of the effective ones they hold."""
    rng = np.random.default_rng(7)
    truth = math.exp(0.02 * stats.norm.ppf(0.9))
    counted, thinned = [], []
    for processes in _runs(rng, rho, 0.0, 300, 20, 100):
        pooled = np.sort(np.concatenate(processes))
        for n, found in ((2000, counted), (effective_iterations(processes, 0.9), thinned)):
            last = order_bounds(n, 0.9, 0.95)[1]
            assert last is not None
            found.append(pooled[math.ceil(last * 2000 / n) - 1] >= truth)

    assert np.mean(counted) < plain
    assert np.mean(thinned) >= 0.94


@pytest.mark.parametrize("rho", [0.5, 0.9])
@pytest.mark.parametrize("effect", [0.0, 0.02])
@pytest.mark.parametrize("percentile", [0.5, 0.95])
def test_the_bound_of_a_percentile_covers_the_truth(
    percentile: float, effect: float, rho: float
) -> None:
    """Whatever processes differ by, and neighbours share, the upper bound holds at 94 %."""
    rng = np.random.default_rng(8)
    truth = math.exp(stats.norm.ppf(percentile) * 0.02)
    highs = [
        latency_percentile(processes, percentile, 0.95).high
        for processes in _runs(rng, rho, effect, 500, 10, 100)
    ]

    assert np.mean(np.array(highs) >= truth) >= 0.94


def test_too_few_effective_iterations_bound_nothing() -> None:
    """1,000 iterations would bound p99; at rho = 0.9 they are worth some 50, which do not."""
    rng = np.random.default_rng(9)
    (processes,) = _runs(rng, 0.9, 0.0, 1, 10, 100)

    assert effective_iterations(processes, 0.99) < needed_samples(0.99, 0.95) < 1000
    assert latency_percentile(processes, 0.99, 0.95).high == math.inf
