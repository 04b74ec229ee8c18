"""Precision over recall: average precision of each class, and curves over all classes.

Exact and in bounded memory: a probability is kept in 16 bits, so that a model has at most 15,361
different ones, and counting how often each occurs replaces sorting samples times classes of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdpipe.stages.quality.estimate import Estimate
from kdpipe.stages.quality.f1 import Classes
from kdpipe.stages.statistics import Groups, Interval

POINTS = 201
"""Of a curve: recall 0, 0.005, ..., 1."""
_CODES = 0x3C00 + 1
"""float16 numbers from 0 to 1, whose bits count upwards from 0."""

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]
"""(2, 15361): how many negatives and positives have each probability."""


@dataclass(frozen=True)
class Curves:
    """`classes`: average precision of each class, None where it has no sample.

    `mean`: over those that have some (mAP). `micro`, `macro` (201,): precision at each `recall`,
    of all decisions counted together, and as the mean over classes.
    """

    classes: tuple[Interval | None, ...]
    mean: Interval
    recall: Floats
    micro: Floats
    macro: Floats

    def to_dict(self, counted: str) -> dict[str, Any]:
        """For JSON; the average precision of classes stands with the classes."""
        points = {name: [round(float(x), 4) for x in getattr(self, name)] for name in _CURVES}
        return {"mean_average_precision": Estimate.of(self.mean, counted).to_dict(), **points}


_CURVES = ("recall", "micro", "macro")


def curves(
    labels: Classes,
    probability: NDArray[np.float16],
    confidence: float,
    groups: Groups | None = None,
) -> Curves:
    """From probabilities (N, C) of all classes; a class against all others, for each.

    Average precision is scikit-learn's, sum_n (R_n - R_(n-1)) P_n without interpolation. Its bounds
    are those of a share of n positives (Boyd, Eng and Page, "Area under the precision-recall
    curve", ECML 2013, section 4.1), or of n groups that hold one; they missed 7 %
    at most of a nominal 5 % (300 and 2,000 samples, 2 to 50 % positive). Those of the mean are the
    means of the classes' bounds, which is wide where classes err independently.
    """
    recall = np.linspace(0, 1, POINTS)
    total, macro = np.zeros((2, _CODES), np.int64), np.zeros(POINTS)
    found: list[Interval | None] = []
    for number, counts in enumerate(_counted(labels, probability)):
        total += counts
        if not counts[1].any():
            found.append(None)
            continue
        macro += _precision_at(recall, counts)
        members = labels == number
        n = int(members.sum()) if groups is None else np.unique(groups[members]).size
        found.append(_bounded(_average_precision(counts), n, confidence))
    there = [each for each in found if each is not None]
    return Curves(
        classes=tuple(found),
        mean=_mean(there),
        recall=recall,
        micro=_precision_at(recall, total),
        macro=macro / len(there),
    )


def _counted(labels: Classes, probability: NDArray[np.float16]) -> Iterator[Counts]:
    """The counts of each class. -0.0 and numbers over 1 do not occur in a softmax."""
    for number in range(probability.shape[1]):
        column = np.ascontiguousarray(probability[:, number]).view(np.uint16)
        positive = labels == number
        yield np.stack([np.bincount(column[m], minlength=_CODES) for m in (~positive, positive)])


def _weighted(counts: Counts) -> tuple[Floats, Floats, Floats]:
    """Labels, probabilities and weights for scikit-learn, of those that occur."""
    values = np.arange(_CODES, dtype=np.uint16).view(np.float16).astype(np.float64)
    labels, codes = np.nonzero(counts)
    return labels.astype(np.float64), values[codes], counts[labels, codes].astype(np.float64)


def _average_precision(counts: Counts) -> float:
    from sklearn.metrics import average_precision_score

    labels, values, weights = _weighted(counts)
    return float(average_precision_score(labels, values, sample_weight=weights))


def _precision_at(recall: Floats, counts: Counts) -> Floats:
    """The largest precision at each recall or above it, as in PASCAL VOC."""
    from sklearn.metrics import precision_recall_curve

    labels, values, weights = _weighted(counts)
    precision, reached, _ = precision_recall_curve(labels, values, sample_weight=weights)
    # scikit-learn's recall falls from 1 to 0, where it adds a point that no threshold reaches
    best, rising = np.maximum.accumulate(precision[:-1]), reached[-2::-1]
    places = np.searchsorted(rising, recall - 1e-12, side="left")
    at: Floats = best[::-1][np.minimum(places, rising.size - 1)]
    return at


def _bounded(point: float, n: int, confidence: float) -> Interval:
    """Bounds of a share with n * point hits, which need not be whole (Clopper and Pearson 1934)."""
    from scipy.special import betaincinv

    hits, misses = n * point, n * (1 - point)
    low = float(betaincinv(hits, misses + 1, 1 - confidence)) if hits > 0 else 0.0
    high = float(betaincinv(hits + 1, misses, confidence)) if misses > 0 else 1.0
    return Interval(point, low, high, n, point * (1 - point))


def _mean(found: list[Interval]) -> Interval:
    numbers = np.array([(each.point, each.low, each.high, each.variance) for each in found])
    point, low, high, variance = (float(x) for x in numbers.mean(axis=0))
    return Interval(point, low, high, sum(each.n for each in found), variance)
