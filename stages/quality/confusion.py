"""Which classes are taken for which others, and what of that is new against the teacher."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdpipe.stages.evidence import Decisions
from kdpipe.stages.quality.estimate import Estimate
from kdpipe.stages.quality.f1 import Classes
from kdpipe.stages.statistics import Drop, Groups, paired_drop

TOP = 20
"""Confusions that are listed; matrices of up to so many classes are given whole."""


@dataclass(frozen=True)
class Confusion:
    """Samples labelled `true` that are taken for `predicted`, None where for no class at all.

    `drop`: the share of that class's samples on which the teacher does so, less the artifact's.
    """

    true: str
    predicted: str | None
    count: int
    teacher_count: int
    support: int
    drop: Drop

    def to_dict(self, counted: str) -> dict[str, Any]:
        """For JSON: `change` is how much more often the artifact does so."""
        numbers = {name: value for name, value in vars(self).items() if name != "drop"}
        return numbers | {"change": Estimate.of_change(self.drop, counted).to_dict()}


def confusion_matrix(labels: Classes, prediction: Classes, classes: int) -> NDArray[np.int64]:
    """Samples by label and prediction: (C, C + 1), the last column for no class."""
    columns = np.where(prediction < 0, classes, prediction)
    counted = np.bincount(labels * (classes + 1) + columns, minlength=classes * (classes + 1))
    return counted.reshape(classes, classes + 1)


def top_confusions(
    decisions: Decisions, classes: Sequence[str], confidence: float, groups: Groups | None = None
) -> list[Confusion]:
    """The most frequent confusions of the artifact, at most TOP; of equals the new ones first."""
    count = len(classes)
    own = confusion_matrix(decisions.labels, decisions.prediction, count)
    teacher = confusion_matrix(decisions.labels, decisions.teacher_prediction, count)
    wrong = own.copy()
    np.fill_diagonal(wrong[:, :-1], 0)
    pairs = np.argwhere(wrong > 0)
    rows, columns = pairs.T
    order = np.lexsort((columns, rows, teacher[rows, columns], -wrong[rows, columns]))
    names = [*classes, None]
    found = []
    for true, predicted in pairs[order[:TOP]]:
        drop = _drop(decisions, int(true), int(predicted), count, confidence, groups)
        found.append(
            Confusion(
                true=classes[true],
                predicted=names[predicted],
                count=int(own[true, predicted]),
                teacher_count=int(teacher[true, predicted]),
                support=int(own[true].sum()),
                drop=drop,
            )
        )
    return found


def _drop(
    decisions: Decisions,
    true: int,
    predicted: int,
    classes: int,
    confidence: float,
    groups: Groups | None,
) -> Drop:
    labelled = decisions.labels == true
    said = -1 if predicted == classes else predicted
    own, teacher = (
        (each[labelled] == said).astype(np.float32)
        for each in (decisions.prediction, decisions.teacher_prediction)
    )
    return paired_drop(teacher, own, confidence, None if groups is None else groups[labelled])
