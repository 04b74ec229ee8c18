"""Precision, recall and F1 of each class, of artifact and teacher, and what recall it loses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdpipe.stages.evidence import Decisions
from kdpipe.stages.quality.estimate import Estimate
from kdpipe.stages.quality.f1 import Classes
from kdpipe.stages.quality.worst import class_drops
from kdpipe.stages.statistics import Drop, Groups, Interval, mean_score

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class ClassScores:
    """How one model does on one class; None where there is nothing to count."""

    precision: Interval | None
    recall: Interval | None
    f1: Interval | None

    def to_dict(self, counted: str) -> dict[str, Any]:
        """For JSON."""
        return {
            name: None if found is None else Estimate.of(found, counted).to_dict()
            for name, found in vars(self).items()
        }


@dataclass(frozen=True)
class ClassReport:
    """One class: `support` samples have it as their label; `drop` in recall, None without any."""

    name: str
    support: int
    own: ClassScores
    teacher: ClassScores
    drop: Drop | None

    def to_dict(self, counted: str) -> dict[str, Any]:
        """For JSON."""
        return {
            "name": self.name,
            "support": self.support,
            "artifact": self.own.to_dict(counted),
            "teacher": self.teacher.to_dict(counted),
            "recall_drop": None if self.drop is None else Estimate.of(self.drop, counted).to_dict(),
        }


def class_reports(
    decisions: Decisions, classes: Sequence[str], confidence: float, groups: Groups | None = None
) -> list[ClassReport]:
    """One report per class, in their order."""
    labels = decisions.labels
    support = np.bincount(labels, minlength=len(classes))
    drops = iter(class_drops(decisions, classes, confidence, groups))
    return [
        ClassReport(
            name=name,
            support=int(support[number]),
            own=class_scores(labels, decisions.prediction, number, confidence, groups),
            teacher=class_scores(labels, decisions.teacher_prediction, number, confidence, groups),
            drop=next(drops).drop if support[number] else None,
        )
        for number, name in enumerate(classes)
    ]


def class_scores(
    labels: Classes,
    prediction: Classes,
    number: int,
    confidence: float,
    groups: Groups | None = None,
) -> ClassScores:
    """Of class `number`: each is a share of samples, with the bounds of a share.

    Recall is one of the samples labelled so, precision of those predicted so, and F1 of the samples
    that are either: of these TP / (TP + FP + FN) = J are both, and F1 = 2 J / (1 + J) rises with J,
    so that its bounds are those of J. No resampling is needed.
    """
    there, said = labels == number, prediction == number
    both = there & said
    jaccard = _share(both, there | said, confidence, groups)
    return ClassScores(
        precision=_share(both, said, confidence, groups),
        recall=_share(both, there, confidence, groups),
        f1=None if jaccard is None else _f1(jaccard),
    )


def _share(hits: Mask, among: Mask, confidence: float, groups: Groups | None) -> Interval | None:
    if not among.any():
        return None
    members = None if groups is None else groups[among]
    return mean_score(hits[among].astype(np.float32), confidence, members)


def _f1(jaccard: Interval) -> Interval:
    point, low, high = (
        2 * share / (1 + share) if np.isfinite(share) else share
        for share in (jaccard.point, jaccard.low, jaccard.high)
    )
    slope = 2 / (1 + jaccard.point) ** 2  # of the variance, to first order
    return Interval(point, low, high, jaccard.n, slope**2 * jaccard.variance)
