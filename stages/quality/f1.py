"""Macro F1, in which a rare class counts as much as a frequent one, with bounds by resampling."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kdpipe.stages.evidence import Decisions
from kdpipe.stages.statistics import Groups, Interval
from kdpipe.stages.statistics.bootstrap import Statistic, bootstrap_interval

Classes = NDArray[np.int64]
"""(N,) class numbers, -1 for none."""

RESAMPLES = 2000
_LEAST_RESAMPLES = 500
_DRAWS = 100_000_000
"""Samples drawn in all: a few seconds. From 50,000 samples on there are fewer resamples."""


def macro_f1(
    labels: Classes,
    prediction: Classes,
    classes: int,
    confidence: float,
    groups: Groups | None = None,
    seed: int = 0,
) -> Interval:
    """The mean F1 of all classes that have labelled samples, 0.0 to 1.0, with its bounds.

    F1 = 2 TP / (2 TP + FP + FN). Bounds by 2,000 BCa resamples of samples, or of whole groups.
    """
    return bootstrap_interval(
        f1_of(labels, prediction, classes),
        labels.size,
        confidence,
        groups=groups,
        resamples=resamples(labels.size),
        seed=seed,
        span=(0.0, 1.0),
        rarest=rarest(labels, groups),
    )


def macro_f1_drop(
    decisions: Decisions,
    classes: int,
    confidence: float,
    groups: Groups | None = None,
    seed: int = 0,
) -> Interval:
    """How much lower the artifact's macro F1 is than the teacher's, on the same resamples."""
    own = f1_of(decisions.labels, decisions.prediction, classes)
    teacher = f1_of(decisions.labels, decisions.teacher_prediction, classes)
    return bootstrap_interval(
        lambda rows: teacher(rows) - own(rows),
        decisions.labels.size,
        confidence,
        groups=groups,
        resamples=resamples(decisions.labels.size),
        seed=seed,
        span=(-1.0, 1.0),
        rarest=rarest(decisions.labels, groups),
    )


def f1_of(labels: Classes, prediction: Classes, classes: int) -> Statistic:
    """Macro F1 of the samples at given rows, over the classes that are among their labels.

    Counted here and not by scikit-learn, which takes a millisecond for a hundred samples.
    """
    none = classes
    said = np.where(prediction < 0, none, prediction)
    right = np.where(prediction == labels, labels, none)
    size = classes + 1  # three counts in one go, side by side
    codes = np.stack([labels, said + size, right + 2 * size])

    def statistic(rows: NDArray[np.int64]) -> float:
        counts = np.bincount(codes[:, rows].ravel(), minlength=3 * size).reshape(3, size)
        there, claimed, hits = counts[:, :classes]
        occurs = there > 0
        return float((2 * hits[occurs] / (there + claimed)[occurs]).mean())

    return statistic


def resamples(samples: int) -> int:
    """How many resamples of so many samples are affordable: 2,000, and never under 500."""
    return max(_LEAST_RESAMPLES, min(RESAMPLES, _DRAWS // samples))


def rarest(labels: Classes, groups: Groups | None) -> int:
    """Samples, or groups, of the class that has the fewest."""
    if groups is None:
        return int(np.unique(labels, return_counts=True)[1].min())
    pairs = np.unique(np.stack([labels, groups]), axis=1)
    return int(np.unique(pairs[0], return_counts=True)[1].min())
