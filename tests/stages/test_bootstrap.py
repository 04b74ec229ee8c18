"""Bounds by resampling against a library, simulated truths, and the cases that they refuse."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from kdpipe.stages.statistics import bootstrap_interval, resample
from kdpipe.stages.statistics.bootstrap import LEAST, Resampled

Indices = NDArray[np.int64]


def test_bounds_are_near_scipys() -> None:
    """BCa bounds of a skewed statistic equal scipy's own to a tenth of their width."""
    values = np.random.default_rng(0).exponential(1, 400)
    theirs = stats.bootstrap(
        (values,), np.std, confidence_level=0.90, n_resamples=4000, method="BCa", rng=1
    ).confidence_interval

    found = bootstrap_interval(lambda rows: float(values[rows].std()), 400, 0.95, resamples=4000)

    room = 0.1 * (theirs.high - theirs.low)
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=room)
    assert found.point == values.std()
    assert found.n == 400


def test_the_levels_are_those_of_the_formula() -> None:
    """Bias by half of the ties, skewness by the jackknife, Student's quantile for the normal one.

    Values 0.001 to 0.999 once each, but 0.3 for the 200 above it; 40 replicates.
    """
    values = np.arange(1, 1000) / 1000
    values[300:500] = 0.3
    left_out = np.append(np.zeros(39), 1.0)
    found = Resampled(0.3, values, left_out, 40, None, 40).interval(0.9)

    bias = stats.norm.ppf((299 + 201 / 2) / 999)
    u = left_out.mean() - left_out
    skewness = (u**3).sum() / (6 * (u**2).sum() ** 1.5)
    for bound, probability, outwards in (
        (found.low, 0.1, math.floor),
        (found.high, 0.9, math.ceil),
    ):
        shifted = bias + stats.t.ppf(probability, 39) * math.sqrt(40 / 39)
        level = stats.norm.cdf(bias + shifted / (1 - skewness * shifted))
        assert bound == values[outwards(1000 * level) - 1]


def test_the_variance_of_a_replicate_is_that_of_a_sample() -> None:
    """Of a mean: the variance of the values, within what 2,000 resamples tell."""
    values = np.random.default_rng(1).normal(0, 3, 500)

    found = bootstrap_interval(lambda rows: float(values[rows].mean()), 500, 0.95)

    assert found.variance == pytest.approx(values.var(), rel=0.1)


def test_the_same_seed_gives_the_same_bounds() -> None:
    """And another seed nearly the same ones."""
    values = np.random.default_rng(2).random(200)
    first, again, other = (
        bootstrap_interval(lambda rows: float(values[rows].mean()), 200, 0.95, seed=seed)
        for seed in (3, 3, 4)
    )

    assert first == again
    assert first.low == pytest.approx(other.low, abs=0.01)
    assert first.low != other.low


def test_more_confidence_is_wider() -> None:
    """One set of resamples gives bounds at any confidence, wider ones for a higher."""
    values = np.random.default_rng(3).random(100)
    drawn = resample(lambda rows: float(values[rows].mean()), 100)
    found = [drawn.interval(confidence) for confidence in (0.6, 0.8, 0.95, 0.99)]

    assert [x.low for x in found] == sorted((x.low for x in found), reverse=True)
    assert [x.high for x in found] == sorted(x.high for x in found)


def test_the_difference_of_two_models_is_paired() -> None:
    """Models that fail on the same samples: the paired interval is far narrower than of one."""
    rng = np.random.default_rng(4)
    hard = rng.random(500)
    teacher, student = (hard < 0.8) * 1.0, (hard < 0.78) * 1.0

    alone = bootstrap_interval(lambda rows: float(teacher[rows].mean()), 500, 0.95)
    paired = bootstrap_interval(lambda rows: float((teacher - student)[rows].mean()), 500, 0.95)

    assert paired.high - paired.low < 0.5 * (alone.high - alone.low)


def test_groups_are_drawn_whole() -> None:
    """Every resample holds all samples of a group as often as one of them, sizes unlike."""
    groups = np.repeat(np.arange(40), np.arange(40) % 3 + 1)
    seen: list[bool] = []

    def statistic(rows: Indices) -> float:
        counts = np.bincount(rows, minlength=groups.size)
        seen.append(all(np.ptp(counts[groups == g]) == 0 for g in range(40)))
        return float(rows.mean())

    found = bootstrap_interval(statistic, groups.size, 0.95, groups=groups, resamples=50)

    assert all(seen)
    assert found.n == 40


def test_clips_widen_what_frames_say() -> None:
    """Ten equal frames a clip: bounds are those of the clips, three times as far apart."""
    clips = np.random.default_rng(5).random(60)
    frames, groups = np.repeat(clips, 10), np.repeat(np.arange(60), 10)
    statistic = lambda rows: float(frames[rows].mean())  # noqa: E731

    alone = bootstrap_interval(statistic, 600, 0.95)
    grouped = bootstrap_interval(statistic, 600, 0.95, groups=groups)
    one = bootstrap_interval(lambda rows: float(clips[rows].mean()), 60, 0.95)

    assert (grouped.low, grouped.high) == pytest.approx((one.low, one.high))
    assert grouped.high - grouped.low > 2.5 * (alone.high - alone.low)


def test_nothing_seen_to_vary_still_leaves_doubt() -> None:
    """No disagreement: up to 1 - 0.05^(1/n) may differ, of the rarest class when that is told."""
    statistic = lambda rows: 0.0  # noqa: E731

    found = bootstrap_interval(statistic, 300, 0.95, span=(-1.0, 1.0), resamples=50)
    rare = bootstrap_interval(statistic, 300, 0.95, span=(-1.0, 1.0), rarest=30, resamples=50)
    unknown = bootstrap_interval(statistic, 300, 0.95, resamples=50)

    assert found.high == pytest.approx(1 - 0.05 ** (1 / 300))
    assert found.low == -found.high
    assert rare.high == pytest.approx(1 - 0.05 ** (1 / 30))
    assert (unknown.low, unknown.high) == (-math.inf, math.inf)


def test_too_little_gives_no_bounds() -> None:
    """Few samples, few groups, or few resamples for the confidence: infinite, and a point."""
    values = np.random.default_rng(6).random(300)
    statistic = lambda rows: float(values[rows].mean())  # noqa: E731
    few = np.arange(300) % (LEAST - 1)

    for found in (
        bootstrap_interval(statistic, LEAST - 1, 0.95),
        bootstrap_interval(statistic, 300, 0.95, groups=few),
        bootstrap_interval(statistic, 300, 0.9999, resamples=200),
        bootstrap_interval(lambda rows: math.nan, 300, 0.95, resamples=50),
        bootstrap_interval(
            lambda rows: 0.5 if np.unique(rows).size == 300 else math.nan, 300, 0.95, resamples=50
        ),
    ):
        assert (found.low, found.high) == (-math.inf, math.inf)


def test_resamples_without_a_value_count_as_the_worst() -> None:
    """One sample in a hundred is of the class: often there is none, and no bound either."""
    positive, value = np.arange(100) == 7, np.random.default_rng(7).random(100)

    def statistic(rows: Indices) -> float:
        some = positive[rows]
        return float(value[rows][some].mean() - value[rows].mean()) if some.any() else math.nan

    found = bootstrap_interval(statistic, 100, 0.95, resamples=300)

    assert (found.low, found.high) == (-math.inf, math.inf)


@pytest.mark.parametrize(("n", "groups"), [(0, None), (3, np.arange(4))])
def test_samples_and_their_groups_have_to_fit(n: int, groups: Indices | None) -> None:
    """No samples, or groups of another number, are refused."""
    with pytest.raises(ValueError, match="cannot be resampled"):
        bootstrap_interval(lambda rows: 0.0, n, 0.95, groups=groups)
