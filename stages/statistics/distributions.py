"""Quantiles and bounds of the textbook distributions; the other files apply them to samples.

scipy is imported where it is needed, so that importing this costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def normal_quantile(probability: float) -> float:
    """Example: normal_quantile(0.95) -> 1.645"""
    from scipy.special import ndtri

    return float(ndtri(probability))


def t_quantile(probability: float, freedom: float) -> float:
    """Student's t. Example: t_quantile(0.95, 9) -> 1.833"""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, probability))


def binomial_cdf(k: NDArray[np.integer], n: int, p: float) -> NDArray[np.float64]:
    """P(X <= k) for X ~ Binomial(n, p), for each k; 0 below k = 0."""
    from scipy.special import bdtr

    values: NDArray[np.float64] = np.where(k < 0, 0.0, bdtr(np.maximum(k, 0), n, p))
    return values


def exact_high(hits: int, n: int, confidence: float) -> float:
    """Upper bound of a rate by Clopper and Pearson (Biometrika 26, 404, 1934).

    For 0 hits it is 1 - (1 - confidence)^(1/n).
    """
    from scipy.special import betaincinv

    return 1.0 if hits >= n else float(betaincinv(hits + 1, n - hits, confidence))


def rate_bounds(hits: int, n: int, confidence: float) -> tuple[float, float]:
    """Bounds of a rate by Clopper and Pearson, which never miss more often than they say.

    Wilson's interval (J. Am. Stat. Assoc. 22, 209, 1927) misses up to 9 % and not 5 % where hits,
    or the rest, are rare, and is wider there from 99 % confidence on.
    """
    return 1 - exact_high(n - hits, n, confidence), exact_high(hits, n, confidence)


def check_fraction(**values: float) -> None:
    """Raise ValueError, with the name, for a value that does not lie between 0 and 1."""
    for name, value in values.items():
        if not 0 < value < 1:
            raise ValueError(f"{name} must lie between 0 and 1, not {value}")
