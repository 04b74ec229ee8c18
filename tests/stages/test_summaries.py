"""Intervals from a baseline's summaries: those of raw samples, or honestly wider ones."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from kdpipe.stages.statistics import (
    LogSummary,
    ScoreSummary,
    latency_ratio,
    log_mean,
    mean_score,
    paired_drop,
    ratio_of,
    score_summary,
    unpaired_drop,
)


def processes(rng: np.random.Generator, count: int) -> list[NDArray[np.float64]]:
    """Latencies of `count` processes that differ by 5 %."""
    return [level * rng.lognormal(0, 0.1, 40) for level in rng.lognormal(0, 0.05, count)]


@pytest.mark.parametrize("counts", [(10, 10), (5, 20), (2, 3), (1, 4)])
def test_a_remembered_ratio_is_that_of_the_samples(counts: tuple[int, int]) -> None:
    """Exactly the interval of `latency_ratio`, to the last bit, also for different numbers."""
    rng = np.random.default_rng(0)
    before, now = (processes(rng, count) for count in counts)

    assert ratio_of(log_mean(before), log_mean(now), 0.95) == latency_ratio(before, now, 0.95)


def test_bounds_may_be_beyond_all_numbers() -> None:
    """Two unlike processes on each side at 99.99 %: from near 0 up to infinity, and no overflow."""
    side = LogSummary(0.0, 4.0, 2)

    found = ratio_of(side, side, 0.999999)

    assert found.low == pytest.approx(0)
    assert found.high == math.inf


def test_a_ratio_survives_a_lock_file() -> None:
    """Six digits of mean and variance move the bounds by less than a millionth."""
    rng = np.random.default_rng(1)
    before, now = processes(rng, 10), processes(rng, 10)
    mean, variance, count = log_mean(before)
    kept = LogSummary(float(f"{mean:.8f}"), float(f"{variance:.6g}"), count)

    found, raw = ratio_of(kept, log_mean(now), 0.95), latency_ratio(before, now, 0.95)

    assert (found.low, found.high) == pytest.approx((raw.low, raw.high), rel=1e-6)


def test_a_difference_of_rates_is_newcombes() -> None:
    """Newcombe 1998, method 10: 56/70 - 48/80, 95 % two-sided, is 0.0524 to 0.3339 by Wilson.

    The exact bounds count here and are wider, by less than 0.02.
    """
    scores = [np.repeat([1.0, 0.0], counts) for counts in ((56, 14), (48, 32))]

    found = unpaired_drop(score_summary(scores[0]), score_summary(scores[1]), 0.975)

    assert found.point == pytest.approx(0.2)
    assert 0.0524 - 0.02 < found.low <= 0.0524
    assert 0.3339 <= found.high < 0.3339 + 0.02


def test_a_difference_of_plain_means_is_near_welchs() -> None:
    """Fractions of many samples: Welch's interval, and what one more sample might be."""
    rng = np.random.default_rng(2)
    first, second = rng.beta(8, 2, 3000), rng.beta(7, 3, 2000)
    welch = stats.ttest_ind(first, second, equal_var=False).confidence_interval(0.90)

    found = unpaired_drop(score_summary(first), score_summary(second), 0.95)

    assert welch.low - 0.001 < found.low < welch.low
    assert welch.high < found.high < welch.high + 0.001


def test_pairs_say_more_than_summaries() -> None:
    """The same scores, unpaired, leave the wider interval around the same drop."""
    rng = np.random.default_rng(3)
    teacher = (rng.random(1000) < 0.9).astype(float)
    student = np.where(rng.random(1000) < 0.03, 1 - teacher, teacher)

    paired = paired_drop(teacher, student, 0.95)
    found = unpaired_drop(score_summary(teacher), score_summary(student), 0.95)

    assert found.point == pytest.approx(paired.drop)
    assert found.low < paired.low
    assert found.high > paired.high


def test_groups_are_the_replicates_of_a_summary() -> None:
    """100 clips of 10 equal frames say what 100 frames say."""
    one = np.repeat([1.0, 0.0], [90, 10])
    frames, clips = np.repeat(one, 10), np.repeat(np.arange(100), 10)

    found = unpaired_drop(score_summary(frames, clips), score_summary(one), 0.95)
    alone = unpaired_drop(score_summary(one), score_summary(one), 0.95)

    assert found.n == 100
    assert (found.low, found.high) == pytest.approx((alone.low, alone.high))


def test_equal_scores_still_leave_doubt() -> None:
    """50 samples that all score 0.5 have no spread, and bounds that are not of width 0."""
    same = score_summary(np.full(50, 0.5))

    found = unpaired_drop(same, same, 0.95)

    assert found.high == pytest.approx(math.hypot(*[0.5 * (1 - 0.05 ** (1 / 50))] * 2), rel=0.01)


def test_one_replicate_bounds_nothing() -> None:
    """A single group leaves the difference open on both sides."""
    found = unpaired_drop(ScoreSummary(0.9, 0.0, 1), ScoreSummary(0.9, 0.1, 100), 0.95)

    assert (found.low, found.high) == (-math.inf, math.inf)


def test_a_summary_needs_scores() -> None:
    """No scores have no mean; a plain mean of 0/1 scores is that of `mean_score`."""
    with pytest.raises(ValueError, match="no mean"):
        score_summary(np.empty(0))
    scores = np.repeat([1.0, 0.0], [8, 2])
    assert score_summary(scores).mean == mean_score(scores, 0.95).point
