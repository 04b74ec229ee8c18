"""What samples can and cannot prove: intervals, tests and sample sizes; unlike `gate.py`, no rules.

Pure functions of arrays. Every bound is one-sided: each of `low` and
`high` alone holds with probability `confidence`, so both together hold with 2 x confidence - 1.
Where a textbook interval is too narrow (few or no events), the wider exact one is used: a gate
that passes a bad model is worse than one that asks for more samples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kdpipe.stages.clusters import FEW, differing, group_values
from kdpipe.stages.distributions import (
    binomial_cdf,
    check_fraction,
    exact_high,
    normal_quantile,
    t_quantile,
    wilson_high,
)

Array = NDArray[np.floating]
Groups = NDArray[np.int64]


@dataclass(frozen=True)
class Interval:
    """An estimate from `n` replicates and its bounds, infinite where n cannot give any.

    `variance`: of a single replicate, for planning; of its logarithm where `log` functions made it.
    """

    point: float
    low: float
    high: float
    n: int
    variance: float


@dataclass(frozen=True)
class Drop:
    """How much lower the student's mean score is than the teacher's, on the same samples.

    `n`: replicates, which are samples, or groups of them. `variance`: of a single replicate, for
    planning. `discordance`: mean squared difference of a pair; for 0/1 scores that is the share of
    samples which exactly one of the two gets right (b + c) / N.
    """

    drop: float
    low: float
    high: float
    n: int
    variance: float
    discordance: float


# --- how many samples ---------------------------------------------------------------------------


def needed_samples(percentile: float, confidence: float) -> int:
    """Fewest independent samples whose maximum is an upper bound of a percentile (0 to 1).

    n >= ln(1 - confidence) / ln(percentile). Example: needed_samples(0.95, 0.95) -> 59
    """
    check_fraction(percentile=percentile, confidence=confidence)
    # 1e-9: ln(0.25) / ln(0.5) may come out a hair above 2
    return math.ceil(math.log1p(-confidence) / math.log(percentile) - 1e-9)


def samples_to_separate(
    gap: float, variance: float, confidence: float, power: float = 0.8
) -> int | None:
    """Replicates that tell a true value from a limit `gap` away, or None when the gap is 0.

    n = (z_confidence + z_power)^2 variance / gap^2, the normal approximation.
    """
    check_fraction(confidence=confidence, power=power)
    if gap == 0:
        return None
    reach = normal_quantile(confidence) + normal_quantile(power)
    return max(1, math.ceil(reach**2 * variance / gap**2))


def samples_to_decide(
    drop: float, discordance: float, margin: float, confidence: float, power: float = 0.8
) -> int | None:
    """Samples that prove a drop to be under `margin`, or None when the true drop is not.

    n = (z_confidence + z_power)^2 (d - D^2) / (m - D)^2 (paired non-inferiority), and never fewer
    than zero disagreements need. Example: samples_to_decide(0.0, 0.05, 0.01, 0.95) -> 3092
    """
    if drop >= margin:
        return None
    planned = samples_to_separate(margin - drop, discordance - drop**2, confidence, power)
    return max(planned or 1, needed_samples(1 - margin, confidence))


def samples_to_detect(
    drop: float, discordance: float, confidence: float, power: float = 0.8
) -> int | None:
    """Samples for McNemar's test to see a true drop at all, or None when there is none to see.

    n = (z_confidence sqrt(d) + z_power sqrt(d - D^2))^2 / D^2 (Connor 1987). A two-sided test at
    5 % has confidence 0.975. Example: samples_to_detect(0.01, 0.05, 0.975) -> 3923
    """
    check_fraction(confidence=confidence, power=power)
    if drop == 0:
        return None
    null = normal_quantile(confidence) * math.sqrt(discordance)
    true = normal_quantile(power) * math.sqrt(discordance - drop**2)
    return math.ceil((null + true) ** 2 / drop**2)


# --- scores -------------------------------------------------------------------------------------


def paired_drop(
    teacher: Array, student: Array, confidence: float, groups: Groups | None = None
) -> Drop:
    """The drop mean(teacher) - mean(student) of paired scores (N,) from 0 to 1, with its bounds.

    Scores of 0 and 1 get `tango_bounds`, fractions a paired t interval; with `groups` (N,) both
    are widened to what so many groups can prove. Raises ValueError when there are no samples or
    the two are not paired.
    """
    check_fraction(confidence=confidence)
    if teacher.shape != student.shape or teacher.ndim != 1 or not teacher.size:
        raise ValueError(f"scores of shape {teacher.shape} and {student.shape} are not pairs")
    difference = teacher.astype(np.float64) - student.astype(np.float64)
    drop, n = float(difference.mean()), difference.size
    if _is_binary(teacher) and _is_binary(student):
        losses, gains = int((difference > 0).sum()), int((difference < 0).sum())
        low, high = tango_bounds(losses, gains, n, confidence)
    else:
        low, high = _t_bounds(difference, -1.0, 1.0, confidence)
    discordance = float(np.square(difference).mean())
    alone = Interval(drop, low, high, n, discordance - drop**2)
    found = alone if groups is None else _widened(alone, difference, groups, -1.0, confidence)
    return Drop(drop, found.low, found.high, found.n, found.variance, discordance)


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


def _tango_variance(losses: int, gains: int, n: int, drop: float) -> float:
    """Variance of losses - gains if the true drop were `drop`: n (2 q + drop (1 - drop)).

    q is the likeliest rate of gains under that drop, the larger root of 2n q^2 + B q + C = 0.
    """
    b = (2 * n - losses + gains) * drop - losses - gains
    c = -gains * drop * (1 - drop)
    q = (math.sqrt(max(b * b - 8 * n * c, 0.0)) - b) / (4 * n)
    return max(n * (2 * q + drop * (1 - drop)), 0.0)


def mean_score(scores: Array, confidence: float, groups: Groups | None = None) -> Interval:
    """The mean of scores (N,) from 0 to 1, with its bounds.

    0 and 1: the wider of Wilson's score interval (1927) and the exact one (Clopper and Pearson
    1934), as Wilson's alone misses 6 % and not 5 % near 0 and 1. Fractions: a t interval. With
    `groups` (N,) both are widened to what so many groups can prove. Raises ValueError when there
    are no samples.
    """
    check_fraction(confidence=confidence)
    if scores.ndim != 1 or not scores.size:
        raise ValueError(f"scores of shape {scores.shape} have no mean")
    values = scores.astype(np.float64)
    mean, n = float(values.mean()), values.size
    if _is_binary(values):
        hits = int(values.sum())
        high = max(wilson_high(hits, n, confidence), exact_high(hits, n, confidence))
        low = 1 - max(wilson_high(n - hits, n, confidence), exact_high(n - hits, n, confidence))
    else:
        low, high = _t_bounds(values, 0.0, 1.0, confidence)
    alone = Interval(mean, low, high, n, float(values.var()))
    return alone if groups is None else _widened(alone, values, groups, 0.0, confidence)


def _widened(
    alone: Interval, values: Array, groups: Groups, least: float, confidence: float
) -> Interval:
    """The interval of a mean of values from `least` to 1, when only whole groups are independent.

    A t interval over groups (`group_values`), and never narrower than if samples were independent
    or, while fewer than `FEW` groups differ, than if none did. One group gives no bounds. Where bad
    groups are rare the lower bound of a score still misses more than 5 %: in simulations 8 % with
    60 to 100 groups, and a third with 20 groups of which one is bad on average.
    """
    each = group_values(values, groups)
    if each.size < 2:
        return Interval(alone.point, -math.inf, math.inf, each.size, 0.0)
    bounds = [(alone.low, alone.high), _t_bounds(each, least, 1.0, confidence)]
    if differing(values, groups) < FEW:
        bounds.append(_unseen(alone.point, each.size, least, 1.0, confidence))
    low, high = min(b[0] for b in bounds), max(b[1] for b in bounds)
    return Interval(alone.point, low, high, each.size, _variance(each))


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


# --- latencies ----------------------------------------------------------------------------------


def order_bounds(n: int, percentile: float, confidence: float) -> tuple[int | None, int | None]:
    """Which sorted samples (1-based) bound a percentile (0 to 1) from below and from above.

    The largest l with F(l - 1) <= 1 - confidence and the smallest u with F(u - 1) >= confidence,
    F the Binomial(n, percentile) distribution; None where n is too small for that side.
    """
    check_fraction(percentile=percentile, confidence=confidence)
    cdf = binomial_cdf(np.arange(n), n, percentile)
    # 1e-12: with the fewest samples that suffice, F may equal the confidence to the last bit
    low = int((cdf <= 1 - confidence + 1e-12).sum())
    high = int((cdf < confidence - 1e-12).sum()) + 1
    return (low if low > 0 else None, high if high <= n else None)


def mean_latency(processes: Sequence[Array], confidence: float) -> Interval:
    """Mean of all iterations; bounds from the log means of the processes (the replicates)."""
    logs = np.log([samples.mean() for samples in processes])
    low, high = _process_bounds(logs, confidence)
    return _around(float(np.concatenate(processes).mean()), low, high, logs)


def latency_percentile(
    processes: Sequence[Array], percentile: float, confidence: float
) -> Interval:
    """Percentile (0 to 1) of all iterations, with bounds of that of a typical process.

    Two doubts count, the wider bound wins. Iterations of a process resemble one another: t
    interval over the logs of each process's percentile. The tail is thin: order statistics of the
    pooled iterations. The bounds always hold the pooled point, too, but they do not bound the
    percentile over all processes there may ever be: that takes `needed_samples` processes. With
    fewer iterations than `needed_samples`, or with a single process, there are no bounds.
    """
    pooled = np.sort(np.concatenate(processes))
    point = float(np.quantile(pooled, percentile))
    # type 8 of Hyndman and Fan (1996): numpy's default is biased low in the tail of one process
    each = [np.quantile(samples, percentile, method="median_unbiased") for samples in processes]
    logs = np.log(each)
    first, last = order_bounds(pooled.size, percentile, confidence)
    if last is None:
        return _around(point, 0.0, math.inf, logs)
    low, high = _process_bounds(logs, confidence)
    thin = float(pooled[first - 1]) if first else 0.0
    return _around(point, min(low, thin), max(high, float(pooled[last - 1])), logs)


def latency_ratio(
    reference: Sequence[Array], artifact: Sequence[Array], confidence: float
) -> Interval:
    """How many times faster `artifact` is than `reference`: ratio of geometric mean latencies.

    Welch's t interval (1947) on the mean log latency of each process, then exp(). `variance` is
    the sum of both sides, for as many processes on each. One process on a side gives no bounds.
    """
    slow = np.array([np.log(samples).mean() for samples in reference])
    fast = np.array([np.log(samples).mean() for samples in artifact])
    centre = float(slow.mean() - fast.mean())
    errors = (_variance(slow) / slow.size, _variance(fast) / fast.size)
    freedom = _welch_freedom(errors, (slow.size - 1, fast.size - 1))
    low, high = _exp_bounds(centre, sum(errors), freedom, confidence)
    variance = _variance(slow) + _variance(fast)
    return Interval(math.exp(centre), low, high, min(slow.size, fast.size), variance)


def _welch_freedom(errors: tuple[float, float], freedoms: tuple[int, int]) -> float:
    """Welch and Satterthwaite's degrees of freedom, 0 where a side has a single process."""
    smallest = min(freedoms)
    if smallest == 0 or sum(errors) == 0:  # without spread any freedom gives the same bounds
        return float(smallest)
    parts = sum(error**2 / freedom for error, freedom in zip(errors, freedoms, strict=True))
    return sum(errors) ** 2 / parts


def _process_bounds(logs: Array, confidence: float) -> tuple[float, float]:
    """Student's t bounds of exp(mean), one logarithm for each process."""
    error = _variance(logs) / logs.size
    return _exp_bounds(float(logs.mean()), error, logs.size - 1, confidence)


def _exp_bounds(
    centre: float, error: float, freedom: float, confidence: float
) -> tuple[float, float]:
    """exp(centre -+ t sqrt(error)), `error` a squared standard error; (0, inf) without freedom."""
    if freedom <= 0:
        return 0.0, math.inf
    reach = t_quantile(confidence, freedom) * math.sqrt(error)
    return math.exp(centre - reach), math.exp(centre + reach)


def _around(point: float, low: float, high: float, replicates: Array) -> Interval:
    """Bounds that hold the point: pooling weighs processes by length, their mean log does not."""
    variance = _variance(replicates)
    return Interval(point, min(low, point), max(high, point), replicates.size, variance)


# --- means ---------------------------------------------------------------------------------------


def mean_bounds(values: Array, confidence: float) -> tuple[float, float]:
    """Student's t bounds of the mean of independent values (N,), N >= 2, for example of seeds.

    For plain quantities that no range bounds. Raises ValueError for fewer than two values, whose
    spread is unknown.
    """
    check_fraction(confidence=confidence)
    if values.ndim != 1 or values.size < 2:
        raise ValueError(f"values of shape {values.shape} have no spread")
    reach = t_quantile(confidence, values.size - 1) * math.sqrt(_variance(values) / values.size)
    return float(values.mean() - reach), float(values.mean() + reach)


def central(values: Array, confidence: float) -> Interval:
    """The median of independent values (N,), one for each process, with `mean_bounds`.

    The bounds always hold the median, too. A single value gives none.
    """
    point, low, high = float(np.median(values)), -math.inf, math.inf
    if values.size > 1:
        low, high = mean_bounds(values, confidence)
    return _around(point, low, high, values)


def _t_bounds(values: Array, least: float, most: float, confidence: float) -> tuple[float, float]:
    """Bounds of the mean of values known to lie from `least` to `most`.

    Student's t, made wider on the side of the longer tail by Johnson's term for skewness (J. Am.
    Stat. Assoc. 73, 536, 1978), as few large losses make plain t miss too often. When all values
    are equal t has no width, and `_unseen` counts.
    """
    mean, n = float(values.mean()), values.size
    if np.ptp(values) == 0:
        return _unseen(mean, n, least, most, confidence)
    t = t_quantile(confidence, n - 1)
    skewness = float(((values - mean) ** 3).mean() / values.std() ** 3)
    tilt = skewness * (1 + 2 * t * t) / (6 * math.sqrt(n))
    error = math.sqrt(_variance(values) / n)
    low, high = mean - error * (t + max(-tilt, 0.0)), mean + error * (t + max(tilt, 0.0))
    return max(low, least), min(high, most)


def _unseen(
    mean: float, n: int, least: float, most: float, confidence: float
) -> tuple[float, float]:
    """Bounds of a mean from n values that are all equal.

    Up to p = 1 - (1 - confidence)^(1/n) of the population may differ unseen, as far as it can.
    """
    share = exact_high(0, n, confidence)
    return mean - share * (mean - least), mean + share * (most - mean)


def _variance(values: Array) -> float:
    """Unbiased; exactly 0 for equal values and for a single one, which its callers know of."""
    return float(values.var(ddof=1)) if np.ptp(values) > 0 else 0.0


def _is_binary(values: Array) -> bool:
    return bool(np.isin(values, (0.0, 1.0)).all())
