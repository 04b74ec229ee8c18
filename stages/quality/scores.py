"""What can be said of any task from its scores alone: the drop, agreement, subgroups, the worst."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdpipe.stages.quality.compared import Compared
from kdpipe.stages.quality.estimate import Estimate
from kdpipe.stages.quality.paired import Paired
from kdpipe.stages.quality.worst import LEAST, MOST, group_drops, worst
from kdpipe.stages.statistics import mean_score

WORST = 20
"""Samples that are named."""


def scores(compared: Compared, agreement: NDArray[np.float32]) -> dict[str, Any]:
    """For JSON; `agreement` (N,) with the teacher, 0.0 to 1.0."""
    own, teacher = compared.own.score, compared.teacher.score
    groups, confidence = compared.groups, compared.confidence
    agreed = mean_score(agreement, confidence, groups)
    return {
        "confidence": confidence,
        "samples": own.size,
        "groups": None if groups is None else int(np.unique(groups).size),
        "score": Paired(own, teacher, groups).to_dict(confidence),
        "agreement": Estimate.of(agreed, compared.counted).to_dict(),
        "subgroups": _subgroups(compared),
        "worst_samples": worst_samples(compared),
    }


def worst_samples(compared: Compared) -> list[dict[str, Any]]:
    """The samples that lose most against the teacher, at most WORST; none that loses nothing.

    Of equal losses those come first on which the artifact was surest of itself.
    """
    own, teacher = compared.own, compared.teacher
    loss = teacher.score.astype(np.float64) - own.score
    sure = np.zeros(loss.size) if own.confidence is None else own.confidence
    order = np.lexsort((-sure, -loss))[:WORST]
    return [
        {
            "id": compared.ids[row],
            "score": float(own.score[row]),
            "teacher_score": float(teacher.score[row]),
            **_said(compared, int(row)),
        }
        for row in order
        if loss[row] > 0
    ]


def _said(compared: Compared, row: int) -> dict[str, Any]:
    """What was decided of a sample, where that is one class."""
    own, teacher = compared.own, compared.teacher
    if own.prediction.ndim > 1 or own.confidence is None:
        return {}
    label, said, taught = (
        _name(compared.classes, int(each[row]))
        for each in (compared.labels, own.prediction, teacher.prediction)
    )
    sure = float(own.confidence[row])
    return {"label": label, "predicted": said, "teacher_predicted": taught, "confidence": sure}


def _name(classes: tuple[str, ...], number: int) -> str | None:
    return classes[number] if number >= 0 else None


def _subgroups(compared: Compared) -> dict[str, Any] | None:
    """The drop of each group, and the worst; null where samples have no groups."""
    groups = compared.groups
    if groups is None:
        return None
    parts, left_out = group_drops(
        compared.own.score, compared.teacher.score, groups, compared.confidence
    )
    why = f"each needs {LEAST} samples, and there may be {MOST} groups at most"
    return {
        "worst": worst(parts, left_out).to_dict() if parts else None,
        "drops": [{"name": part.name, "drop": Estimate.of(part.drop).to_dict()} for part in parts],
        "left_out": {"groups": len(left_out), "why": why if left_out else ""},
    }
