"""Holm's correction by its definition, and p values that agree with bounds and with textbooks."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from kdpipe.stages.statistics import (
    Drop,
    Interval,
    LogSummary,
    holm,
    holm_adjusted,
    latency_ratio,
    mean_score,
    p_above,
    p_below,
    paired_drop,
    ratio_of,
    tango_bounds,
)


def closed(p_values: list[float], level: float) -> list[bool]:
    """Holm as a closed test: a test counts if Bonferroni rejects every set that holds it."""
    places = range(len(p_values))
    sets = [s for k in places for s in itertools.combinations(places, k + 1)]
    rejected = {s: min(p_values[i] for i in s) <= level / len(s) for s in sets}
    return [all(rejected[s] for s in sets if i in s) for i in places]


@pytest.mark.parametrize("seed", range(20))
def test_holm_is_the_closed_bonferroni_test(seed: int) -> None:
    """An independent definition by all subsets of tests gives the same answer."""
    p_values = np.random.default_rng(seed).beta(0.3, 3, 6).tolist()

    assert holm(p_values, 0.05) == closed(p_values, 0.05)


def test_holm_example() -> None:
    """Worked by hand: 0.005 x 4, then 0.01 x 3 and 0.03 x 2; 0.04 may not be below 0.03's."""
    assert holm_adjusted([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.01, 0.04, 0.03, 0.005], 0.05) == [True, False, False, True]
    assert holm([], 0.05) == []


@pytest.mark.parametrize("bad", [math.nan, -0.1, 1.1])
def test_only_p_values_are_corrected(bad: float) -> None:
    """A NaN is neither significant nor not: it is refused."""
    with pytest.raises(ValueError, match="no p value"):
        holm([0.01, bad], 0.05)


def test_six_tests_alarm_falsely_at_most_one_time_in_twenty() -> None:
    """Independent or correlated by 0.9: without correction it is 26 and 10 %."""
    rng = np.random.default_rng(0)
    for correlation in (0.0, 0.9):
        shared = math.sqrt(correlation) * rng.standard_normal((4000, 1))
        z = shared + math.sqrt(1 - correlation) * rng.standard_normal((4000, 6))
        p_values = stats.norm.sf(z)

        assert np.mean(p_values.min(axis=1) <= 0.05) > 0.09
        assert np.mean([any(holm(p, 0.05)) for p in p_values]) <= 0.055


def test_a_p_value_of_means_is_students() -> None:
    """Symmetric fractions: the t bound is inverted to the p value of scipy's t test."""
    logs = np.linspace(-0.1, 0.3, 9)
    processes = [np.full(3, math.exp(x)) for x in logs]
    other = [np.full(3, math.exp(x)) for x in np.linspace(-0.2, 0.2, 7)]
    welch = stats.ttest_ind(logs, np.linspace(-0.2, 0.2, 7), equal_var=False, alternative="greater")

    found = p_above(lambda c: latency_ratio(processes, other, c), 1.0)

    assert found == pytest.approx(welch.pvalue, rel=1e-6)


@pytest.mark.parametrize(("hits", "rate"), [(98, 0.9), (300, 0.98)])
def test_a_p_value_of_a_rate_is_the_exact_one(hits: int, rate: float) -> None:
    """That of the binomial test, as bounds of rates are Clopper and Pearson's."""
    n = hits + 2
    scores = np.repeat([1.0, 0.0], [hits, 2])
    exact = stats.binomtest(hits, n, rate, alternative="greater").pvalue

    found = p_above(lambda c: mean_score(scores, c), rate)

    assert found == pytest.approx(exact, rel=1e-6)


def test_a_p_value_of_tango_is_that_of_its_score() -> None:
    """At a drop of 0 the score is McNemar's: (losses - gains) / sqrt(losses + gains)."""

    def bounds(confidence: float) -> Interval:
        low, high = tango_bounds(30, 12, 1000, confidence)
        return Interval(0.018, low, high, 1000, 0.0)

    assert p_above(bounds, 0.0) == pytest.approx(stats.norm.sf(18 / math.sqrt(42)), rel=1e-6)


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("fractions", [False, True])
@pytest.mark.parametrize("margin", [0.0, 0.02])
def test_a_p_value_is_small_exactly_when_the_bound_excludes_the_margin(
    grouped: bool, fractions: bool, margin: float
) -> None:
    """For every kind of drop, side, margin and confidence."""
    rng = np.random.default_rng(1)
    groups = np.arange(600) // 5 if grouped else None
    for drop in (-0.12, 0.0, 0.03, 0.12):
        teacher, student = rng.random((2, 600)) + np.array([[drop / 2], [-drop / 2]])
        if not fractions:
            teacher, student = np.round(teacher), np.round(student)
        teacher, student = np.clip(teacher, 0, 1), np.clip(student, 0, 1)

        def bounds(confidence: float, t: np.ndarray = teacher, s: np.ndarray = student) -> Drop:
            return paired_drop(t, s, confidence, groups)

        above, below = p_above(bounds, margin), p_below(bounds, margin)
        for confidence in (0.51, 0.8, 0.9, 0.95, 0.99, 0.999, 0.99999):
            assert (above < 1 - confidence) == (bounds(confidence).low > margin)
            assert (below < 1 - confidence) == (bounds(confidence).high < margin)


def test_no_bounds_prove_nothing() -> None:
    """A single process has infinite bounds, and its p value is 1."""
    one = [np.array([1.0, 2.0])]

    assert p_above(lambda c: latency_ratio(one, one, c), 0.5) == 1.0


def test_p_values_have_a_floor() -> None:
    """What is beyond doubt gets 1e-12 and not 0, which no sample can show."""
    slow, fast = LogSummary(2.2, 1e-5, 3), LogSummary(0.0, 1e-5, 3)

    assert p_above(lambda c: ratio_of(slow, fast, c), 1.0) < 1e-4
    assert p_above(lambda c: paired_drop(np.ones(9999), np.zeros(9999), c), 0.01) == 1e-12


def test_a_p_value_on_the_level_counts() -> None:
    """As does a bound on the limit: "at most" is kept to the last bit."""
    assert holm([0.0025, 0.005], 0.005) == [True, True]
