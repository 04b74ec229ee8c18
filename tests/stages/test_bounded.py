"""Means of values from a known range: Gaffke's bound by drawn weights, and rare large losses."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from kdpipe.stages.statistics import mean_bounds, mean_score, paired_drop
from kdpipe.stages.statistics.bounded import gaffke_high


def _uniform_weights(values: NDArray[np.float64], most: float, confidence: float) -> float:
    """Gaffke's bound by two hundred thousand draws of its weights."""
    ends = np.append(values, most)
    weights = np.random.default_rng(0).dirichlet(np.ones(ends.size), 200_000)
    return float(np.quantile(weights @ ends, confidence))


@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
@pytest.mark.parametrize("n", [3, 12, 41])
def test_fractional_scores_get_gaffkes_bounds(n: int, confidence: float) -> None:
    """Bounds equal quantiles of drawn weights, or scipy's t test where that is wider."""
    teacher, student = np.full(n, 0.9), np.linspace(0.6, 0.95, n) ** 2
    difference = teacher - student
    t = stats.ttest_1samp(difference, 0).confidence_interval(2 * confidence - 1)
    low = -_uniform_weights(-difference, 1.0, confidence)
    high = _uniform_weights(difference, 1.0, confidence)

    found = paired_drop(teacher, student, confidence)

    assert found.low == pytest.approx(max(min(low, t.low), -1.0), abs=0.004)
    assert found.high == pytest.approx(min(max(high, t.high), 1.0), abs=0.004)
    assert found.discordance == pytest.approx(np.mean((teacher - student) ** 2))


@pytest.mark.parametrize("hits", [0, 1, 7, 29])
def test_gaffkes_bound_of_zeros_and_ones_is_the_exact_one(hits: int) -> None:
    """Clopper and Pearson's, to within half a percent and never below it."""
    exact = stats.beta.ppf(0.95, hits + 1, 30 - hits)
    found = gaffke_high(np.repeat([1.0, 0.0], [hits, 30 - hits]), 1.0, 0.95)
    assert exact * (1 - 1e-6) <= found <= exact * 1.005


def test_a_worse_score_never_makes_a_mean_more_certain() -> None:
    """Each value moves the bound its own way, however far it lies from the others."""
    values = np.random.default_rng(3).random(20)
    for place in range(20):
        worse = values.copy()
        worse[place] += 0.5 * (1 - worse[place])
        assert gaffke_high(worse, 1.0, 0.95) > gaffke_high(values, 1.0, 0.95)


def test_a_rare_total_loss_is_reckoned_with_before_it_is_seen() -> None:
    """One image in fifty lost whole: 100 samples bound the drop in 94 % of cases, plain t in 87."""
    rng = np.random.default_rng(5)
    teacher = rng.beta(8, 2, (600, 100))
    student = np.where(rng.random((600, 100)) < 0.02, 0.0, teacher - 0.01 * rng.random((600, 100)))
    truth = 0.02 * 0.8 + 0.98 * 0.005
    runs = list(zip(teacher, np.clip(student, 0, 1), strict=True))

    found = np.mean([paired_drop(t, s, 0.95).high >= truth for t, s in runs])
    plain = np.mean([mean_bounds(t - s, 0.95)[1] >= truth for t, s in runs])

    assert found >= 0.94
    assert plain < 0.9


def test_the_bound_of_a_fractional_drop_covers_the_truth() -> None:
    """In 1,000 simulated evaluations of 200 skewed scores the bound holds 94 % of the time."""
    rng = np.random.default_rng(4)
    teacher = rng.beta(8, 2, (1000, 200))
    student = teacher * rng.beta(9, 1, (1000, 200))
    highs = [paired_drop(t, s, 0.95).high for t, s in zip(teacher, student, strict=True)]
    assert np.mean(np.array(highs) >= 0.8 * 0.1) >= 0.94


def test_the_bound_of_a_rare_fractional_loss_covers_the_truth() -> None:
    """5 % of the samples lose a half on average: 600 of them are bounded 94 % of the time."""
    rng = np.random.default_rng(11)
    losses = (rng.random((1000, 600)) < 0.05) * rng.random((1000, 600))
    highs = [paired_drop(np.ones(600), 1 - loss, 0.95).high for loss in losses]
    assert np.mean(np.array(highs) >= 0.025) >= 0.94


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("confidence", [0.5, 0.95, 1 - 1e-12])
@pytest.mark.parametrize("spread", [1e-15, 1e-9, 1e-3])
@pytest.mark.parametrize("n", [2, 3, 500])
def test_values_nearly_alike_are_bounded_without_a_warning(
    n: int, spread: float, confidence: float
) -> None:
    """Near the end of the range or inside it, one by one or in unlike groups."""
    groups = np.arange(n) ** 2 // 7 if n > 3 else np.arange(n)
    for middle in (1 - spread, 0.5):
        scores = middle + spread * np.random.default_rng(n).random(n)
        for found in (mean_score(scores, confidence), mean_score(scores, confidence, groups)):
            assert 0 <= found.low <= found.point + 1e-12
            assert found.point - 1e-12 <= found.high <= 1
