"""Means of values from a known range, bounded also when large losses are too rare to be seen.

Student's t trusts the spread that was seen. Where one image or patient in fifty is lost whole, a
sample may hold none of them, and t misses far more often than it says. So the wider of two bounds
counts: t, and Gaffke's, which always reckons with one more value, as bad as can be.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from kdpipe.stages.statistics.clusters import group_means, group_values
from kdpipe.stages.statistics.distributions import t_quantile
from kdpipe.stages.statistics.intervals import Array, Groups
from kdpipe.stages.statistics.means import unseen, variance

_NEAR, _FAR = -25.0, 8.0
"""Logarithms of the least and most distance of the pole, in units of the range of the values."""


def bounded_mean(
    values: Array, least: float, most: float, confidence: float
) -> tuple[float, float]:
    """Bounds of the mean of independent values (N,) that lie from `least` to `most`.

    The wider of Student's t and Gaffke's bound. For 0 and 1 the latter is Clopper and Pearson's;
    for equal values it is `unseen`, and t has no width.
    """
    mean, n = float(values.mean()), values.size
    if np.ptp(values) == 0:
        return unseen(mean, n, least, most, confidence)
    t = _t_bounds(mean, values, confidence)
    high = gaffke_high(values, most, confidence)
    low = -gaffke_high(-values, -least, confidence)
    return max(min(t[0], low), least), min(max(t[1], high), most)


def grouped_mean(
    values: Array, groups: Groups, least: float, most: float, confidence: float
) -> tuple[float, float]:
    """The same of values (N,) of which only whole `groups` (N,), two or more, are independent.

    For groups of unlike size t has the cluster-robust variance of `group_values`, and Gaffke's
    weights go to a group's sum of (value - mean), one more group being as large as the others are
    on average.
    """
    each = group_values(values, groups)
    means, sizes = group_means(values, groups)
    if np.ptp(sizes) == 0 or np.ptp(means) == 0:
        return bounded_mean(each, least, most, confidence)
    t = _t_bounds(float(values.mean()), each, confidence)
    high = _gaffke_high_of_groups(means, sizes, most, confidence)
    low = -_gaffke_high_of_groups(-means, sizes, -least, confidence)
    return max(min(t[0], low), least), min(max(t[1], high), most)


def _t_bounds(mean: float, replicates: Array, confidence: float) -> tuple[float, float]:
    error = math.sqrt(variance(replicates) / replicates.size)
    reach = t_quantile(confidence, replicates.size - 1) * error
    return mean - reach, mean + reach


def gaffke_high(values: Array, most: float, confidence: float) -> float:
    """Upper bound of the mean of independent values (N,), none of them above `most`.

    The quantile of sum w_i x_i over weights w that are uniform on the simplex, x the values and
    `most` itself (Gaffke, Math. Methods Stat. 14, 451, 2005; Learned-Miller and Thomas 2019,
    arXiv:1905.06208). That it holds for every distribution is proven for 0 and 1 only, where it is
    the exact bound; nobody has found one where it fails. The tail is Lugannani and Rice's (Adv.
    Appl. Probab. 12, 475, 1980), within 0.5 % of it and on the safe side for 0 and 1.
    """
    top = max(most, float(values.max()))
    ends, counts = np.unique(np.append(values.astype(np.float64), top), return_counts=True)
    x = ends - top  # below 0, where the pole may come as near as numbers go
    span = -float(x[0])

    def excess(place: float) -> float:
        return _tail(x, counts, span * math.exp(place))[1] - (1 - confidence)

    if span == 0 or excess(_NEAR) >= 0:
        return top
    place = _FAR if excess(_FAR) <= 0 else _root(excess, _NEAR, _FAR)  # _FAR: confidence near 1/2
    return top + _tail(x, counts, span * math.exp(place))[0]


def _gaffke_high_of_groups(
    means: Array, sizes: NDArray[np.int64], most: float, confidence: float
) -> float:
    """The largest mean that weights, uniform on the simplex, of each group exceed often enough."""
    weight = np.append(sizes / sizes.mean(), 1.0)
    ends = np.append(means, most)
    inside = float(np.average(means, weights=sizes))

    def excess(mean: float) -> float:
        return _positive(weight * (ends - mean)) - (1 - confidence)

    if inside >= most or excess(inside) <= 0:
        return inside
    return _root(excess, inside, most)


def _positive(x: NDArray[np.float64]) -> float:
    """The probability that sum w_i x_i > 0, w uniform on the simplex."""
    top, span, counts = float(x.max()), float(np.ptp(x)), np.ones(x.size, np.int64)
    if top <= 0:
        return 0.0
    below = x - top

    def mean(place: float) -> float:
        return top + _tail(below, counts, span * math.exp(place))[0]

    if span == 0 or mean(_NEAR) <= 0:
        return float(span == 0)
    if mean(_FAR) >= 0:
        return 0.5
    return _tail(below, counts, span * math.exp(_root(mean, _NEAR, _FAR)))[1]


def _root(function: Callable[[float], float], low: float, high: float) -> float:
    from scipy.optimize import brentq

    return float(brentq(function, low, high, xtol=1e-9))


def _tail(x: NDArray[np.float64], counts: NDArray[np.int64], pole: float) -> tuple[float, float]:
    """A mean t, and the probability that uniform weights on the simplex give a larger one.

    That is P(sum (x_i - t) E_i > 0), E_i exponential. Its saddlepoint s solves
    sum (x_i - t) / (1 - (x_i - t) s) = 0; the `pole` t + 1 / s, larger than any x, tells t and s.
    """
    from scipy.special import ndtr

    distance = pole - x
    weights = counts / distance
    t = float((x * weights).sum() / weights.sum())
    u = math.sqrt(float((counts * np.square((x - t) / distance)).sum()))
    w = math.sqrt(max(2 * float((counts * np.log(distance / (pole - t))).sum()), 0.0))
    if min(u, w) == 0:
        return t, 0.5
    density = math.exp(-w * w / 2) / math.sqrt(2 * math.pi)
    return t, float(ndtr(-w)) + density * (1 / u - 1 / w)
