"""p values of the tests behind the bounds, and Holm's correction when several are made at once.

    p = p_above(lambda c: paired_drop(teacher, student, c), 0.01)     # is the drop over 1 point?
    p = p_below(lambda c: latency_ratio(before, now, c), 0.95)        # is it 5 % slower?
    holm([p, ...], 0.05)                                              # which of them count

A p value is read off the bounds themselves, whichever they are: the smallest 1 - confidence at
which the bound still excludes the margin. So a test and a bound never contradict one another.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol

from kdpipe.stages.statistics.distributions import check_fraction

SMALLEST = 1e-12
"""A p value is given as this when it is smaller."""
LARGEST = 0.5
"""A p value above this is given as 1: the estimate itself is not beyond the margin."""
_STEPS = 44
"""Halvings of the logarithm: 2^-44 of ln(5e11) is a relative error of 2e-12."""


class Bounds(Protocol):
    """What has one-sided bounds: an `Interval` or a `Drop`."""

    @property
    def low(self) -> float:
        """Lower bound."""

    @property
    def high(self) -> float:
        """Upper bound."""


def holm(p_values: Sequence[float], level: float) -> list[bool]:
    """Which of the tests are significant when the chance of any false one shall be `level`.

    The smallest of k p values is compared with level / k, the next with level / (k - 1), and so on
    until one is not smaller (Holm, Scand. J. Stat. 6, 65, 1979). Holds however the tests depend on
    one another. Raises ValueError for a p value that is not one, NaN included.

    Example: holm([0.02, 0.001, 0.04], 0.05) -> [True, True, True]
    """
    check_fraction(level=level)
    return [adjusted <= level for adjusted in holm_adjusted(p_values)]


def holm_adjusted(p_values: Sequence[float]) -> list[float]:
    """Holm's p values: each is the smallest `level` at which `holm` finds that test significant.

    Example: holm_adjusted([0.02, 0.001, 0.04]) -> [0.04, 0.003, 0.04]
    """
    if bad := [p for p in p_values if not 0 <= p <= 1]:
        raise ValueError(f"{bad[0]} is no p value")
    adjusted, largest, left = [1.0] * len(p_values), 0.0, len(p_values)
    for place in sorted(range(len(p_values)), key=p_values.__getitem__):
        largest = max(largest, min(left * p_values[place], 1.0))
        adjusted[place], left = largest, left - 1
    return adjusted


def p_above(bounds: Callable[[float], Bounds], margin: float) -> float:
    """p value of the test that the true value is not above `margin`.

    `bounds` gives the interval at a confidence. p <= 1 - confidence exactly when its lower bound at
    that confidence is above the margin, for every confidence from 0.5 on.
    """
    return _p_value(lambda confidence: bounds(confidence).low > margin)


def p_below(bounds: Callable[[float], Bounds], margin: float) -> float:
    """p value of the test that the true value is not below `margin`; see `p_above`."""
    return _p_value(lambda confidence: bounds(confidence).high < margin)


def _p_value(excludes: Callable[[float], bool]) -> float:
    """Smallest level between SMALLEST and LARGEST at which the margin is excluded, else 1."""
    if not excludes(1 - LARGEST):
        return 1.0
    if excludes(1 - SMALLEST):
        return SMALLEST
    inside, outside = math.log(SMALLEST), math.log(LARGEST)
    for _ in range(_STEPS):
        middle = (inside + outside) / 2
        if excludes(1 - math.exp(middle)):
            outside = middle
        else:
            inside = middle
    return math.exp(outside)
