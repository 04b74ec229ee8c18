"""Scores from 0 to 1, sample by sample: means, and drops against a model on the same samples."""

from __future__ import annotations

import math

import numpy as np

from kdpipe.stages.statistics.bounded import bounded_mean, gaffke_high, grouped_mean
from kdpipe.stages.statistics.clusters import group_values
from kdpipe.stages.statistics.distributions import (
    binomial_cdf,
    check_fraction,
    exact_high,
    normal_quantile,
    rate_bounds,
)
from kdpipe.stages.statistics.intervals import Array, Drop, Groups, Interval
from kdpipe.stages.statistics.means import variance


def paired_drop(
    teacher: Array, student: Array, confidence: float, groups: Groups | None = None
) -> Drop:
    """The drop mean(teacher) - mean(student) of paired scores (N,) from 0 to 1, with its bounds.

    Scores of 0 and 1 get `drop_bounds`, the differences of fractions `bounded_mean`; with `groups`
    (N,) both are widened to what so many groups can prove. Raises ValueError when there are no
    samples or the two are not paired.
    """
    check_fraction(confidence=confidence)
    if teacher.shape != student.shape or teacher.ndim != 1 or not teacher.size:
        raise ValueError(f"scores of shape {teacher.shape} and {student.shape} are not pairs")
    difference = teacher.astype(np.float64) - student.astype(np.float64)
    drop, n = float(difference.mean()), difference.size
    if _is_binary(teacher) and _is_binary(student):
        losses, gains = int((difference > 0).sum()), int((difference < 0).sum())
        low, high = drop_bounds(losses, gains, n, confidence)
    else:
        low, high = bounded_mean(difference, -1.0, 1.0, confidence)
    discordance = float(np.square(difference).mean())
    alone = Interval(drop, low, high, n, discordance - drop**2)
    found = alone if groups is None else _widened(alone, difference, groups, -1.0, confidence)
    return Drop(drop, found.low, found.high, found.n, found.variance, discordance)


def drop_bounds(losses: int, gains: int, n: int, confidence: float) -> tuple[float, float]:
    """Bounds of (losses - gains) / n: the wider of `tango_bounds` and `gaffke_high`.

    `losses`: pairs that only the teacher gets right, `gains`: only the student. With few of them
    Tango's lower bound of a loss misses 9 % and not 5 %: at 1 % disagreement and 450 pairs, say.
    """
    low, high = tango_bounds(losses, gains, n, confidence)
    differences = np.repeat([-1.0, 0.0, 1.0], [gains, n - losses - gains, losses])
    low = min(low, -gaffke_high(-differences, 1.0, confidence))
    return low, max(high, gaffke_high(differences, 1.0, confidence))


def tango_bounds(losses: int, gains: int, n: int, confidence: float) -> tuple[float, float]:
    """Bounds of (losses - gains) / n: Tango's score interval (Statist. Med. 17, 891, 1998).

    `losses`: pairs that only the teacher gets right, `gains`: only the student. With discordant
    pairs of one kind only, Tango's interval is Wilson's and too narrow; then the exact binomial
    bound counts. Without any it is 1 - (1 - confidence)^(1/n).
    """
    low = -_tango_high(gains, losses, n, confidence)
    return low, _tango_high(losses, gains, n, confidence)


def _tango_high(losses: int, gains: int, n: int, confidence: float) -> float:
    z = normal_quantile(confidence)
    inside, outside = (losses - gains) / n, 1.0
    for _ in range(60):
        middle = (inside + outside) / 2
        variance = _tango_variance(losses, gains, n, middle)
        if n * middle - (losses - gains) > z * math.sqrt(variance):
            outside = middle
        else:
            inside = middle
    return outside if gains else max(outside, exact_high(losses, n, confidence))


def _tango_variance(losses: float, gains: float, n: int, drop: float) -> float:
    """Variance of losses - gains if the true drop were `drop`: n (2 q + drop (1 - drop)).

    q is the likeliest rate of gains under that drop, the larger root of 2n q^2 + B q + C = 0.
    """
    b = (2 * n - losses + gains) * drop - losses - gains
    c = -gains * drop * (1 - drop)
    q = (math.sqrt(max(b * b - 8 * n * c, 0.0)) - b) / (4 * n)
    return max(n * (2 * q + drop * (1 - drop)), 0.0)


def drop_variance(drop: Drop, margin: float) -> float:
    """Variance of a pair's difference if the true drop were `margin`, by Tango's likeliest rates.

    For planning: with few disagreements it is far from the measured one.
    """
    losses, gains = (max(drop.discordance + sign * drop.drop, 0.0) / 2 for sign in (1, -1))
    return _tango_variance(losses, gains, 1, margin)


def mean_score(scores: Array, confidence: float, groups: Groups | None = None) -> Interval:
    """The mean of scores (N,) from 0 to 1, with its bounds.

    0 and 1: the exact interval (Clopper and Pearson 1934). Fractions: `bounded_mean`. With `groups`
    (N,) both are widened to what so many groups can prove. Raises ValueError when there are
    no samples.
    """
    check_fraction(confidence=confidence)
    if scores.ndim != 1 or not scores.size:
        raise ValueError(f"scores of shape {scores.shape} have no mean")
    values = scores.astype(np.float64)
    mean, n = float(values.mean()), values.size
    if _is_binary(values):
        low, high = rate_bounds(int(values.sum()), n, confidence)
    else:
        low, high = bounded_mean(values, 0.0, 1.0, confidence)
    alone = Interval(mean, low, high, n, float(values.var()))
    return alone if groups is None else _widened(alone, values, groups, 0.0, confidence)


def _widened(
    alone: Interval, values: Array, groups: Groups, least: float, confidence: float
) -> Interval:
    """The interval of a mean of values from `least` to 1, when only whole groups are independent.

    `grouped_mean`, and never narrower than if samples were independent. One group gives no bounds.
    """
    each = group_values(values, groups)
    if each.size < 2:
        return Interval(alone.point, -math.inf, math.inf, each.size, 0.0)
    low, high = grouped_mean(values, groups, least, 1.0, confidence)
    low, high = min(low, alone.low), max(high, alone.high)
    return Interval(alone.point, low, high, each.size, variance(each))


def mcnemar_midp(losses: int, gains: int) -> float:
    """Two-sided mid-p value of McNemar's test that losses and gains are equally likely.

    2 P(X < k) + P(X = k) with k the smaller count and X ~ Binomial(losses + gains, 1/2)
    (Fagerland, Lydersen and Laake 2013). Example: mcnemar_midp(1, 7) -> 0.0391
    """
    k, n = min(losses, gains), losses + gains
    if n == 0:
        return 1.0
    below, upto = binomial_cdf(np.array([k - 1, k]), n, 0.5)
    return float(min(1.0, below + upto))


def _is_binary(values: Array) -> bool:
    return bool(np.isin(values, (0.0, 1.0)).all())
