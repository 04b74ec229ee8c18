"""What stands out among latencies: flagged, counted and kept; nothing is ever left out for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kdpipe.stages.statistics.intervals import Array

_FAR = 3.5
"""Modified z-score, as Iglewicz and Hoaglin (How to Detect and Handle Outliers, 1993) advise."""
_FENCE = 3.0
"""Interquartile ranges beyond the quartiles: Tukey's outer fence (Exploratory Data Analysis)."""


@dataclass(frozen=True)
class Outliers:
    """Numbers (from 0) of the `processes` that stand out, and how many `iterations` of `of` do."""

    processes: tuple[int, ...]
    iterations: int
    of: int


def latency_outliers(processes: Sequence[Array]) -> Outliers:
    """Which processes and how many iterations lie far from the others.

    Processes by the modified z-score of their mean log latency, `0.6745 (x - median) / MAD`, beyond
    3.5; where more than half are equal, so that the MAD is 0, by `(x - median) / (1.2533 mean
    absolute deviation)`. Iterations beyond Tukey's outer fences of their own process.
    """
    logs = np.array([np.log(samples).mean() for samples in processes])
    far = np.flatnonzero(np.abs(modified_z(logs)) > _FAR)
    beyond = sum(_beyond(samples) for samples in processes)
    total = sum(samples.size for samples in processes)
    return Outliers(tuple(int(number) for number in far), beyond, total)


def modified_z(values: Array) -> Array:
    """How many standard deviations each value is from the median, robustly; 0 for equal values."""
    distances = values - np.median(values)
    deviation = float(np.median(np.abs(distances))) / 0.6745
    if deviation == 0:
        deviation = 1.2533 * float(np.abs(distances).mean())
    scores: Array = distances / deviation if deviation > 0 else np.zeros_like(values)
    return scores


def _beyond(samples: Array) -> int:
    low, high = np.quantile(samples, [0.25, 0.75])
    reach = _FENCE * (high - low)
    return int(((samples < low - reach) | (samples > high + reach)).sum())
