"""Groups of samples as replicates: the published formula, simulated truths, and too few of them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from kdpipe.stages.statistics import mean_score, paired_drop
from kdpipe.stages.statistics.clusters import group_values

Scores = NDArray[np.float64]


def simulated(
    clips: int, frames: int, drop: float, rng: np.random.Generator
) -> tuple[Scores, Scores]:
    """0/1 scores of teacher and student: 10 % of the frames differ, mostly whole clips together."""
    shares = [(0.1 + drop) / 2, (0.1 - drop) / 2, 0.9]
    clip = rng.choice(3, size=(clips, 1), p=shares)
    frame = rng.choice(3, size=(clips, frames), p=shares)
    kind = np.where(rng.random((clips, frames)) < 0.6, clip, frame).ravel()
    return np.where(kind == 1, 0.0, 1.0), np.where(kind == 0, 0.0, 1.0)


def test_the_spread_of_groups_is_the_cluster_robust_one() -> None:
    """G / (G - 1) sum (sum of deviations)^2 / N^2, groups of different sizes; t never narrower."""
    groups = np.repeat(np.arange(20)[::-1], [2, 3, 3, 2] * 5)
    d = np.tile([0.3, 0.3, -0.3, -0.2, -0.1, 0.3, 0.2, 0.1, -0.3, -0.3], 5)
    sums = [0.6, -0.6, 0.6, -0.6] * 5
    error = 20 / 19 * sum(u * u for u in sums) / 50**2
    reach = stats.t.ppf(0.95, 19) * math.sqrt(error)

    found = paired_drop(0.5 + d, np.full(50, 0.5), 0.95, groups)

    assert found.variance / 20 == pytest.approx(error)
    assert found.low <= -reach
    assert found.high >= reach
    assert found.drop == pytest.approx(0)
    assert found.n == 20


def test_few_unlike_groups_are_bounded_by_uniform_weights() -> None:
    """Gaffke's bound for groups of unlike size, its weights drawn two hundred thousand times.

    Weights w of 6 groups and one more that is lost whole: the bound is where the sum of
    w size (mean - bound) is above 0 in one draw of twenty.
    """
    sizes, means = np.array([5, 10, 20, 5, 10, 10]), np.array([0.0, 0.1, 0.3, 0.2, 0.0, 0.5])
    groups = np.repeat(np.arange(6), sizes)
    losses = np.concatenate(
        [np.arange(n) < round(n * m) for n, m in zip(sizes, means, strict=True)]
    )
    weights = np.random.default_rng(0).exponential(size=(200_000, 7)) * [*sizes, sizes.mean()]

    high = paired_drop(np.ones(60), 1.0 - losses, 0.95, groups).high

    means = [losses[groups == g].mean() for g in range(6)]
    over = weights @ (np.array([*means, 1.0]) - high) > 0
    assert over.mean() == pytest.approx(0.05, abs=0.002)


def test_groups_of_one_are_samples() -> None:
    """A group value is then the value itself, and keeps the order of the groups' names."""
    values = np.array([0.1, 0.5, 0.4])

    assert group_values(values, np.array([2, 0, 1])) == pytest.approx([0.5, 0.4, 0.1])


@pytest.mark.parametrize("frames", [10, 30])
def test_frames_of_a_clip_are_not_independent(frames: int) -> None:
    """No true drop: samples alarm falsely 17 % of the time and more, clips 5 % at most."""
    rng, clips = np.random.default_rng(3), np.repeat(np.arange(60), frames)
    runs = [simulated(60, frames, 0.0, rng) for _ in range(400)]

    alone = [paired_drop(t, s, 0.95).low > 0 for t, s in runs]
    grouped = [paired_drop(t, s, 0.95, clips).low > 0 for t, s in runs]

    assert np.mean(alone) > 0.17
    assert np.mean(grouped) <= 0.05


def test_a_drop_of_exactly_the_margin_rarely_passes() -> None:
    """5 points lost, 5 allowed, 100 clips: the upper bound covers it 93 % of the time or more."""
    rng, clips = np.random.default_rng(5), np.repeat(np.arange(100), 10)
    runs = [simulated(100, 10, 0.05, rng) for _ in range(400)]

    assert np.mean([paired_drop(t, s, 0.95, clips).high >= 0.05 for t, s in runs]) >= 0.93
    assert np.mean([paired_drop(t, s, 0.95).high >= 0.05 for t, s in runs]) < 0.9


def test_the_lower_bound_of_a_score_covers_the_truth() -> None:
    """92.5 % right, 300 clips of 10: the bound by clips holds, the one by samples does not."""
    rng, clips = np.random.default_rng(6), np.repeat(np.arange(300), 10)
    scores = [simulated(300, 10, 0.05, rng)[1] for _ in range(400)]

    assert np.mean([mean_score(s, 0.95, clips).low <= 0.925 for s in scores]) >= 0.93
    assert np.mean([mean_score(s, 0.95).low <= 0.925 for s in scores]) < 0.9


def test_a_true_drop_is_seen() -> None:
    """10 points lost of 200 clips: at least 95 of 100 runs show that there is a loss."""
    rng, clips = np.random.default_rng(7), np.repeat(np.arange(200), 10)
    runs = [simulated(200, 10, 0.09, rng) for _ in range(100)]

    assert sum(paired_drop(t, s, 0.95, clips).low > 0 for t, s in runs) >= 95


def test_groups_never_narrow_an_interval() -> None:
    """Groups that look alike by chance do not make the samples say more than they do."""
    teacher, student = np.ones(200), np.ones(200)
    teacher[:10], student[10:20] = 0, 0
    alone = paired_drop(teacher, student, 0.95)
    found = paired_drop(teacher, student, 0.95, np.arange(200) % 10)

    assert found.low <= alone.low
    assert found.high >= alone.high


def test_groups_that_do_not_differ_count_as_one_sample_each() -> None:
    """Sums are equal but for rounding; 1 - 0.05^(1/50) of the groups may still differ unseen."""
    groups, unseen = np.repeat(np.arange(50), 30), 1 - 0.05 ** (1 / 50)
    teacher, student = np.tile(np.repeat([1.0, 0.0], [29, 1]), 50), np.ones(1500)

    agreeing = paired_drop(teacher, teacher, 0.95, groups)
    found = paired_drop(student, teacher, 0.95, groups)

    assert (agreeing.low, agreeing.high) == pytest.approx((-unseen, unseen))
    assert found.high == pytest.approx(1 / 30 + 29 / 30 * unseen)
    assert found.variance == 0


def test_one_more_disagreement_never_makes_a_drop_more_certain() -> None:
    """A single lost frame does not turn groups that proved too little into ones that prove it."""
    groups, student = np.repeat(np.arange(100), 30), np.ones(3000)
    highs = []
    for lost in range(4):
        student[30 * lost] = float(lost == 0)
        highs.append(paired_drop(np.ones(3000), student, 0.95, groups).high)

    assert highs == sorted(highs)


def test_one_group_proves_nothing() -> None:
    """A thousand frames of one clip have no spread between clips, so no bounds at all."""
    scores, clip = np.ones(1000), np.zeros(1000, np.int64)

    for found in (mean_score(scores, 0.95, clip), paired_drop(scores, scores, 0.95, clip)):
        assert (found.low, found.high, found.n) == (-math.inf, math.inf, 1)


def test_groups_that_are_more_alike_than_chance_prove_no_more_than_samples() -> None:
    """200 groups with one error in ten each: nothing promises that the next group has just one."""
    right = np.tile(np.arange(10) > 0, 200).astype(float)
    right[:10] = 1.0  # but for one, so that there is a spread
    groups = np.arange(2000) // 10
    alone, grouped = mean_score(right, 0.95), mean_score(right, 0.95, groups)

    assert grouped.n == 200
    assert grouped.high == alone.high
    assert grouped.low <= alone.low
