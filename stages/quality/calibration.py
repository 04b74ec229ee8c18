"""Whether a model is as often right as it says: expected calibration error and reliability."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdpipe.stages.evidence import Decisions
from kdpipe.stages.quality.estimate import Estimate
from kdpipe.stages.quality.f1 import resamples
from kdpipe.stages.statistics import Groups, Interval, mean_score
from kdpipe.stages.statistics.bootstrap import Resampled, Statistic, resample

BINS = 15
"""Of equal width, as in Guo et al. 2017 ("On calibration of modern neural networks", ICML)."""

Sureness = NDArray[np.floating]
"""(N,) the probability of what was predicted, 0 where nothing was, NaN where it is unknown."""


@dataclass(frozen=True)
class Bin:
    """The samples whose confidence lies in (`start`, `end`]."""

    start: float
    end: float
    confidence: float
    accuracy: Interval
    n: int

    def to_dict(self, counted: str = "samples") -> dict[str, Any]:
        """For JSON."""
        return {
            "from": self.start,
            "to": self.end,
            "mean_confidence": self.confidence,
            "samples": self.n,
            "accuracy": Estimate.of(self.accuracy, counted).to_dict(),
        }


def calibration_error(
    right: NDArray[np.floating],
    sure: Sureness,
    confidence: float,
    groups: Groups | None = None,
    seed: int = 0,
) -> Interval | None:
    """ECE: sum over bins of n_b / N |accuracy_b - confidence_b|, 0.0 to 1.0, with its bounds.

    `right` (N,): 1 where the prediction is. None where no confidence is known. The estimate is
    biased: differences of either sign count, so few samples make it too large, of a perfectly
    calibrated model by about 0.02 for 1,000 samples and half of that for 4,000. It is given as
    usual; the bounds are meant for the true value and so may begin far below it.
    """
    rows = answered(sure)
    if not rows.size:
        return None
    found = resample(
        error_of(right[rows], sure[rows]),
        rows.size,
        groups=None if groups is None else groups[rows],
        resamples=resamples(rows.size),
        seed=seed,
        span=(0.0, 1.0),
    )
    bounds = widest(found, confidence)
    return Interval(bounds.point, max(bounds.low, 0.0), bounds.high, bounds.n, bounds.variance)


def calibration_change(
    decisions: Decisions, confidence: float, groups: Groups | None = None, seed: int = 0
) -> Interval | None:
    """How much higher the artifact's ECE is than the teacher's, on the same resamples."""
    rows = answered(np.minimum(_known(decisions.confidence), _known(decisions.teacher_confidence)))
    if not rows.size:
        return None
    labels = decisions.labels
    own, teacher = (
        error_of((said == labels).astype(np.float64)[rows], known[rows])
        for said, known in (
            (decisions.prediction, decisions.confidence),
            (decisions.teacher_prediction, decisions.teacher_confidence),
        )
    )
    found = resample(
        lambda drawn: own(drawn) - teacher(drawn),
        rows.size,
        groups=None if groups is None else groups[rows],
        resamples=resamples(rows.size),
        seed=seed,
        span=(-1.0, 1.0),
    )
    return widest(found, confidence)


def reliability(
    right: NDArray[np.floating],
    sure: Sureness,
    confidence: float,
    groups: Groups | None = None,
) -> list[Bin]:
    """The bins that have samples: how sure, and how often right."""
    rows = answered(sure)
    bins = bin_of(sure[rows])
    return [
        _bin(number, rows[bins == number], right, sure, confidence, groups)
        for number in np.unique(bins)
    ]


def answered(sure: Sureness) -> NDArray[np.int64]:
    """Samples with a known confidence. An output that is not finite says nothing of how sure it
    is; it counts in accuracy, and not here."""
    rows: NDArray[np.int64] = np.flatnonzero(sure > 0)
    return rows


def bin_of(sure: Sureness) -> NDArray[np.int64]:
    """(N,) bin numbers: bin b holds confidences over b / 15 up to (b + 1) / 15."""
    numbers = np.ceil(sure.astype(np.float64) * BINS).astype(np.int64) - 1
    return np.clip(numbers, 0, BINS - 1)


def error_of(right: NDArray[np.floating], sure: Sureness) -> Statistic:
    """ECE of the samples at given rows. As n_b (accuracy_b - confidence_b) is the sum of
    right - confidence in a bin, one pass is enough."""
    bins, gaps = bin_of(sure), right.astype(np.float64) - sure

    def statistic(rows: NDArray[np.int64]) -> float:
        return float(np.abs(np.bincount(bins[rows], weights=gaps[rows])).sum() / rows.size)

    return statistic


def widest(found: Resampled, confidence: float) -> Interval:
    """The wider of BCa's, the percentile and the basic bootstrap's bounds, on either side.

    Resamples of a sum of absolute values lie too high, by as much as the estimate does, so that
    each method fails somewhere: over models from perfectly to badly calibrated and 200 to 4,000
    samples, BCa's upper bound missed up to 14 % at a nominal 5 %, the percentile's lower bound and
    the basic one's of a perfect model half and more. The wider one missed 8 % at most.
    """
    bounds = found.interval(confidence)
    values = found.values[np.isfinite(found.values)]
    if bounds.high == np.inf or not values.size:  # too few samples to say anything
        return bounds
    least, most = np.quantile(values, [1 - confidence, confidence])
    low = min(bounds.low, least, 2 * bounds.point - most)
    high = max(bounds.high, most, 2 * bounds.point - least)
    return Interval(bounds.point, float(low), float(high), bounds.n, bounds.variance)


def _known(sure: Sureness) -> Sureness:
    """The same, 0 where it is unknown."""
    return np.nan_to_num(sure, nan=0.0)


def _bin(
    number: int,
    rows: NDArray[np.int64],
    right: NDArray[np.floating],
    sure: Sureness,
    confidence: float,
    groups: Groups | None,
) -> Bin:
    return Bin(
        start=number / BINS,
        end=(number + 1) / BINS,
        confidence=float(sure[rows].mean(dtype=np.float64)),
        accuracy=mean_score(right[rows], confidence, None if groups is None else groups[rows]),
        n=rows.size,
    )
