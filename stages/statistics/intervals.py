"""What an estimate is: a point, its one-sided bounds, and how many replicates are behind it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

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
