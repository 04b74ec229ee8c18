"""Statistics against published numbers, independent solutions and simulated truths."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import optimize, stats

from kdpipe.stages.statistics import (
    Drop,
    central,
    drop_bounds,
    drop_variance,
    mcnemar_midp,
    mean_bounds,
    mean_score,
    needed_samples,
    paired_drop,
    samples_to_decide,
    samples_to_detect,
    samples_to_separate,
    tango_bounds,
)

SHARES = (0.01, 0.02, 0.05, 0.10, 0.20)


# --- how many samples ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("percentile", "confidence", "expected"),
    [
        (0.90, 0.95, 29),
        (0.90, 0.99, 44),
        (0.95, 0.95, 59),
        (0.95, 0.99, 90),
        (0.99, 0.95, 299),
        (0.99, 0.99, 459),
        (0.5, 0.75, 2),
    ],
)
def test_a_percentile_has_a_least_number_of_samples(
    percentile: float, confidence: float, expected: int
) -> None:
    """The floor is where the maximum first bounds the percentile, by the published table."""
    assert needed_samples(percentile, confidence) == expected
    assert 1 - percentile**expected >= confidence
    assert 1 - percentile ** (expected - 1) < confidence


@pytest.mark.parametrize("bad", [0.0, 1.0, 95.0, math.nan])
def test_a_percentile_is_a_fraction(bad: float) -> None:
    """95 instead of 0.95 is refused, not guessed."""
    with pytest.raises(ValueError, match="between 0 and 1"):
        needed_samples(bad, 0.95)


@pytest.mark.parametrize(
    ("discordance", "expected"), list(zip(SHARES, (619, 1237, 3092, 6183, 12366), strict=True))
)
def test_samples_to_decide_a_margin_of_one_point(discordance: float, expected: int) -> None:
    """Non-inferiority within 1 point at 95 % and power 0.8, by the published row."""
    assert samples_to_decide(0.0, discordance, 0.01, 0.95) == expected


def test_a_true_loss_of_half_the_margin_needs_four_times_the_samples() -> None:
    """Half the room costs four times as much."""
    assert samples_to_decide(0.005, 0.05, 0.01, 0.95) == 12359


def test_a_plan_reckons_with_the_spread_at_the_limit() -> None:
    """(1.645 x 0.02 + 0.842 x 0.01)^2 / 0.001^2; without the first spread, the second is both."""
    assert samples_to_separate(0.001, 1e-4, 0.95, at_limit=4e-4) == 1707
    assert samples_to_separate(0.001, 1e-4, 0.95) == samples_to_separate(
        0.001, 1e-4, 0.95, at_limit=1e-4
    )


@pytest.mark.parametrize(("losses", "gains"), [(0.03, 0.02), (0.005, 0.005), (0.0, 0.0), (0.02, 0)])
@pytest.mark.parametrize("margin", [0.01, -0.01])
def test_the_spread_at_a_margin_is_that_of_the_likeliest_rates(
    losses: float, gains: float, margin: float
) -> None:
    """The likelihood of losses, gains and ties at losses = gains + margin, maximised by number."""
    drop = Drop(losses - gains, 0.0, 0.0, 1, 0.0, losses + gains)
    q = np.linspace(max(0.0, -margin) + 1e-9, (1 - margin) / 2 - 1e-9, 2_000_001)
    likelihood = (1 - losses - gains) * np.log(1 - 2 * q - margin)
    likelihood += losses * np.log(q + margin) + gains * np.log(q)
    best = q[likelihood.argmax()]

    assert drop_variance(drop, margin) == pytest.approx(2 * best + margin - margin**2, abs=2e-6)


@pytest.mark.parametrize("drop", [0.01, 0.02])
def test_no_number_of_samples_shows_what_is_not_so(drop: float) -> None:
    """A true drop on or over the margin can never be proven to be under it."""
    assert samples_to_decide(drop, 0.05, 0.01, 0.95) is None


def test_without_disagreement_the_exact_bound_sets_the_number() -> None:
    """Zero disagreements prove a drop under 1 % from 299 samples on, and not with 298."""
    assert samples_to_decide(0.0, 0.0, 0.01, 0.95) == 299
    assert tango_bounds(0, 0, 299, 0.95)[1] < 0.01 < tango_bounds(0, 0, 298, 0.95)[1]


@pytest.mark.parametrize(
    ("confidence", "expected"),
    [
        (0.975, (783, 1568, 3923, 7847, 15696)),
        (0.95, (617, 1235, 3090, 6181, 12364)),
        (0.995, (1166, 2333, 5837, 11677, 23356)),
    ],
)
def test_samples_to_detect_a_drop_of_one_point(
    confidence: float, expected: tuple[int, ...]
) -> None:
    """McNemar's test at power 0.8, by the published table: two-sided, one-sided, two-sided 1 %."""
    found = tuple(samples_to_detect(0.01, share, confidence) for share in SHARES)
    assert found == expected


def test_nothing_is_planned_for_a_gap_of_zero() -> None:
    """A true value on the limit itself can be told from it by no number of samples."""
    assert samples_to_separate(0.0, 1.0, 0.95) is None
    assert samples_to_detect(0.0, 0.1, 0.95) is None


# --- paired scores ------------------------------------------------------------------------------


def test_tango_published_example() -> None:
    """Bentur et al. 2009 as in Fagerland, Lydersen and Laake 2014: -0.286 (-0.517 to -0.026)."""
    low, high = tango_bounds(1, 7, 21, 0.975)
    assert (round(low, 3), round(high, 3)) == (-0.517, -0.026)


def _likeliest_gains(losses: int, gains: int, n: int, drop: float) -> float:
    """Rate of gains that maximises the likelihood under a drop, by a numerical search."""

    def unlikeliness(q: float) -> float:
        rest = n - losses - gains
        return -float(
            losses * math.log(q + drop) + gains * math.log(q) + rest * math.log(1 - 2 * q - drop)
        )

    least, most = max(0.0, -drop), (1 - drop) / 2
    room = (most - least) * 1e-12
    found = optimize.minimize_scalar(
        unlikeliness, bounds=(least + room, most - room), method="bounded", options={"xatol": 1e-13}
    )
    return float(found.x)


@pytest.mark.parametrize(("losses", "gains", "n"), [(5, 2, 60), (2, 9, 100), (30, 30, 450)])
def test_tango_equals_an_independent_numerical_solution(losses: int, gains: int, n: int) -> None:
    """A searched likelihood and a root finder give the bounds of the closed formula."""
    z = stats.norm.ppf(0.95)

    def statistic(drop: float) -> float:
        q = _likeliest_gains(losses, gains, n, drop)
        return (losses - gains - n * drop) / math.sqrt(n * (2 * q + drop * (1 - drop)))

    drop = (losses - gains) / n
    low = optimize.brentq(lambda d: statistic(d) - z, -0.9, drop)
    high = optimize.brentq(lambda d: statistic(d) + z, drop, 0.9)
    assert tango_bounds(losses, gains, n, 0.95) == pytest.approx((low, high), abs=1e-5)


def test_tango_is_symmetric() -> None:
    """Exchanging teacher and student mirrors the interval."""
    low, high = tango_bounds(11, 3, 200, 0.95)
    assert tango_bounds(3, 11, 200, 0.95) == pytest.approx((-high, -low))


@pytest.mark.parametrize(("n", "expected"), [(300, 0.0099), (1000, 0.0030)])
def test_zero_disagreements_still_leave_doubt(n: int, expected: float) -> None:
    """The bound is 1 - 0.05^(1/n) on both sides, never a width of zero."""
    low, high = tango_bounds(0, 0, n, 0.95)
    assert high == pytest.approx(1 - 0.05 ** (1 / n))
    assert round(high, 4) == expected
    assert low == -high


@cache
def _high(losses: int, gains: int, n: int) -> float:
    return tango_bounds(losses, gains, n, 0.95)[1]


@pytest.mark.parametrize(
    ("n", "margin", "ratio"),
    [(270, 0.01, 1.0), (450, 0.01, 1.0), (450, 0.01, 3.0), (100, 0.01, 5.0), (350, 0.03, 5.0)],
)
def test_a_drop_of_exactly_the_margin_rarely_passes(n: int, margin: float, ratio: float) -> None:
    """Over all outcomes, weighed exactly, at most 5.6 % pass; n = 270 and 450 undo plain Tango."""
    share = margin * ratio
    loss, gain = (share + margin) / 2, (share - margin) / 2
    most = int(stats.binom.ppf(1 - 1e-9, n, share))
    total = stats.binom.pmf(np.arange(most + 1), n, share)
    passing = 0.0
    for discordant, weight in enumerate(total):
        losses = np.arange(discordant + 1)
        kept = [_high(int(b), int(discordant - b), n) <= margin for b in losses]
        split = stats.binom.pmf(losses, discordant, loss / (loss + gain))
        passing += weight * float(split[kept].sum())
    assert passing <= 0.056


@pytest.mark.parametrize(("drop", "share"), [(0.0, 0.02), (0.01, 0.05), (0.03, 0.20)])
def test_the_upper_bound_of_a_drop_covers_the_truth(drop: float, share: float) -> None:
    """In 4,000 simulated evaluations of 600 samples the bound holds at least 94 % of the time."""
    rates = [(share + drop) / 2, (share - drop) / 2, 1 - share]
    counts = np.random.default_rng(1).multinomial(600, rates, size=4000)
    covered = [drop <= _high(int(b), int(c), 600) for b, c, _ in counts]
    assert np.mean(covered) >= 0.94


def _pairs(losses: int, gains: int, n: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    teacher, student = np.ones(n, np.float32), np.ones(n, np.float32)
    student[:losses] = 0
    teacher[losses : losses + gains] = 0
    return teacher, student


def test_paired_drop_counts_losses_and_gains() -> None:
    """0/1 scores: the drop, its share of discordant samples, and bounds that hold Tango's."""
    found = paired_drop(*_pairs(7, 1, 21), 0.975)
    assert found.drop == pytest.approx(6 / 21)
    assert found.discordance == pytest.approx(8 / 21)
    assert (found.low, found.high) == drop_bounds(7, 1, 21, 0.975)
    assert found.low <= 0.026
    assert found.high >= 0.517
    assert found.n == 21


@pytest.mark.parametrize(
    ("n", "share", "drop"),
    [(450, 0.01, 0.005), (200, 0.02, 0.015), (1000, 0.005, 0.0037)],
)
def test_few_disagreements_do_not_show_a_loss_too_often(n: int, share: float, drop: float) -> None:
    """Over all outcomes, weighed exactly: Tango's lower bound misses 8 to 9 %, this one 5 %."""
    loss = (share + drop) / 2
    tango = missed = 0.0
    for discordant in range(int(stats.binom.ppf(1 - 1e-7, n, share)) + 1):
        losses = np.arange(discordant + 1)
        weights = stats.binom.pmf(discordant, n, share) * stats.binom.pmf(
            losses, discordant, loss / share
        )
        for b, weight in zip(losses.tolist(), weights, strict=True):
            tango += weight * (tango_bounds(b, discordant - b, n, 0.95)[0] > drop)
            missed += weight * (drop_bounds(b, discordant - b, n, 0.95)[0] > drop)
    assert missed <= 0.05
    assert tango > 0.055


def test_a_two_point_drop_is_seen_on_two_thousand_samples() -> None:
    """At 3 % disagreement a true loss of 2 points is told from none in at least 99 of 100 runs."""
    counts = np.random.default_rng(2).multinomial(2000, [0.025, 0.005, 0.97], size=100)
    lows = [tango_bounds(int(b), int(c), 2000, 0.95)[0] for b, c, _ in counts]
    assert sum(low > 0 for low in lows) >= 99


def test_equal_fractional_differences_still_leave_doubt() -> None:
    """Without any spread, 1 - 0.05^(1/n) of the samples may be as different as can be."""
    scores = np.full(50, 0.5)
    found = paired_drop(scores, scores, 0.95)
    assert found.high == pytest.approx(1 - 0.05 ** (1 / 50))
    assert found.low == -found.high


@pytest.mark.parametrize(("first", "second"), [(0, 0), (3, 4)])
def test_a_drop_needs_pairs(first: int, second: int) -> None:
    """No samples, or two different numbers of them, are refused."""
    with pytest.raises(ValueError, match="not pairs"):
        paired_drop(np.ones(first), np.ones(second), 0.95)


@pytest.mark.parametrize(
    ("losses", "gains", "expected"), [(1, 7, 0.0391), (7, 1, 0.0391), (5, 5, 1.0), (0, 0, 1.0)]
)
def test_mcnemar_midp(losses: int, gains: int, expected: float) -> None:
    """Fagerland's example (1 and 7: 0.039), symmetry, and no evidence at all."""
    assert round(mcnemar_midp(losses, gains), 4) == expected


def test_mcnemar_midp_keeps_its_size() -> None:
    """At 1 % disagreement and 1,000 samples it alarms falsely in 4.1 % of runs, weighed exactly."""
    size = 0.0
    for discordant in range(40):
        losses = np.arange(discordant + 1)
        alarms = [mcnemar_midp(int(b), int(discordant - b)) <= 0.05 for b in losses]
        split = stats.binom.pmf(losses, discordant, 0.5)
        size += stats.binom.pmf(discordant, 1000, 0.01) * float(split[alarms].sum())
    assert round(size, 3) == 0.041


# --- proportions --------------------------------------------------------------------------------


@pytest.mark.parametrize(("hits", "n"), [(0, 30), (30, 30), (29, 30), (437, 450), (225, 450)])
@pytest.mark.parametrize("confidence", [0.95, 0.9975])
def test_a_proportion_gets_the_exact_interval(hits: int, n: int, confidence: float) -> None:
    """Scipy's two-sided interval of 90 % is 95 % on each side."""
    expected = stats.binomtest(hits, n).proportion_ci(2 * confidence - 1, "exact")
    found = mean_score(np.repeat([1.0, 0.0], [hits, n - hits]), confidence)
    assert (found.low, found.high) == pytest.approx(tuple(expected), abs=1e-9)
    assert found.point == pytest.approx(hits / n)


@pytest.mark.parametrize(("n", "rate"), [(90, 0.97), (200, 0.97), (450, 0.99), (450, 0.95)])
def test_a_proportion_on_the_limit_passes_at_most_one_time_in_twenty(n: int, rate: float) -> None:
    """Over all outcomes, weighed exactly; Wilson's interval alone lets 6 % through."""
    hits = np.arange(n + 1)
    lows = [mean_score(np.repeat([1.0, 0.0], [k, n - k]), 0.95).low for k in hits]
    assert stats.binom.pmf(hits, n, rate)[np.array(lows) >= rate].sum() <= 0.05


def test_a_fractional_mean_stays_within_its_range() -> None:
    """Bounds are never narrower than scipy's t interval, and never leave 0 to 1."""
    values = np.array([0.9, 0.85, 0.8, 0.75, 0.7])
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.90)
    found = mean_score(values, 0.95)
    assert found.low <= expected.low < expected.high <= found.high
    assert mean_score(np.array([0.99, 0.5]), 0.95).high == 1.0


def test_no_scores_have_no_mean() -> None:
    """An empty evaluation is an error, not a NaN."""
    with pytest.raises(ValueError, match="no mean"):
        mean_score(np.empty(0), 0.95)


def test_a_plain_mean_gets_students_t_bounds() -> None:
    """They equal scipy's interval; one value has no spread to speak of."""
    gains = np.array([0.01, 0.03, 0.02, 0.035])
    expected = stats.ttest_1samp(gains, 0).confidence_interval(0.90)
    assert mean_bounds(gains, 0.95) == pytest.approx((expected.low, expected.high))
    with pytest.raises(ValueError, match="no spread"):
        mean_bounds(gains[:1], 0.95)


@pytest.mark.parametrize("n", [5, 8, 30])
def test_a_median_is_bounded_by_sorted_values_too(n: int) -> None:
    """Each of the two holds in 95 %: the k-th value with P(Binomial(n, 1/2) < k) <= 5 %, and t."""
    values = np.random.default_rng(n).exponential(1, n)
    k = int(stats.binom.ppf(0.05, n, 0.5))
    k -= stats.binom.cdf(k - 1, n, 0.5) > 0.05
    low, high = mean_bounds(values, 0.95)
    found = central(values, 0.95)
    assert found.low == min(low, np.sort(values)[k - 1])
    assert found.high == max(high, np.sort(values)[-k])
    assert found.point == np.median(values)


def test_the_median_of_a_skewed_population_is_held() -> None:
    """Exponential, 30 processes: the lower bound holds in 94 %, that of the mean alone in 60."""
    runs = np.random.default_rng(8).exponential(1, (1000, 30))
    assert np.mean([central(x, 0.95).low <= math.log(2) for x in runs]) >= 0.94
    assert np.mean([mean_bounds(x, 0.95)[0] <= math.log(2) for x in runs]) < 0.7
