"""All that quality says of one class per sample, put together for `quality.json`."""

from __future__ import annotations

from typing import Any

from kdpipe.stages.evidence import Decisions
from kdpipe.stages.quality.calibration import (
    calibration_change,
    calibration_error,
    reliability,
)
from kdpipe.stages.quality.classes import class_reports
from kdpipe.stages.quality.compared import Compared
from kdpipe.stages.quality.confusion import TOP, confusion_matrix, top_confusions
from kdpipe.stages.quality.curves import Curves, curves
from kdpipe.stages.quality.disagreement import disagreement
from kdpipe.stages.quality.estimate import Estimate
from kdpipe.stages.quality.f1 import macro_f1, macro_f1_drop
from kdpipe.stages.quality.worst import hits, worst_class
from kdpipe.stages.statistics import Interval


def classification(compared: Compared, decisions: Decisions) -> dict[str, Any]:
    """For JSON; `docs/quality.md` has its keys."""
    confidence, groups = compared.confidence, compared.groups
    own, teacher = _curves(compared, decisions)
    return {
        "decisions": disagreement(decisions, confidence, groups).to_dict(),
        "macro_f1": _macro_f1(compared, decisions),
        "calibration": _calibration(compared, decisions),
        "classes": _classes(compared, decisions, own, teacher),
        "worst_class": worst_class(decisions, compared.classes, confidence, groups).to_dict(
            compared.counted
        ),
        "confusions": _confusions(compared, decisions),
        "curves": {
            "artifact": own and own.to_dict(compared.counted),
            "teacher": teacher and teacher.to_dict(compared.counted),
        },
    }


def _macro_f1(compared: Compared, decisions: Decisions) -> dict[str, Any]:
    count, confidence, groups = len(compared.classes), compared.confidence, compared.groups
    found = {
        "artifact": macro_f1(
            decisions.labels, decisions.prediction, count, confidence, groups, compared.seed
        ),
        "teacher": macro_f1(
            decisions.labels, decisions.teacher_prediction, count, confidence, groups, compared.seed
        ),
        "drop": macro_f1_drop(decisions, count, confidence, groups, compared.seed),
    }
    return {name: _estimate(interval, compared) for name, interval in found.items()}


def _calibration(compared: Compared, decisions: Decisions) -> dict[str, Any]:
    """Of both, and how much higher the artifact's error is; null where confidence is unknown."""
    confidence, groups, seed = compared.confidence, compared.groups, compared.seed
    right = dict(zip(("artifact", "teacher"), hits(decisions), strict=True))
    sure = {"artifact": decisions.confidence, "teacher": decisions.teacher_confidence}
    errors = {
        role: calibration_error(right[role], sure[role], confidence, groups, seed) for role in sure
    }
    change = calibration_change(decisions, confidence, groups, seed)
    return {
        "ece": {
            **{role: _estimate(error, compared) for role, error in errors.items()},
            "change": _estimate(change, compared),
        },
        "bins": {
            role: [
                each.to_dict(compared.counted)
                for each in reliability(right[role], sure[role], confidence, groups)
            ]
            for role in sure
        },
    }


def _classes(
    compared: Compared, decisions: Decisions, own: Curves | None, teacher: Curves | None
) -> list[dict[str, Any]]:
    """The report of each class, with its average precision where probabilities were kept."""
    found = []
    reports = class_reports(decisions, compared.classes, compared.confidence, compared.groups)
    for number, report in enumerate(reports):
        plain = report.to_dict(compared.counted)
        for role, each in (("artifact", own), ("teacher", teacher)):
            average = each.classes[number] if each else None
            plain[role]["average_precision"] = _estimate(average, compared)
        found.append(plain)
    return found


def _confusions(compared: Compared, decisions: Decisions) -> dict[str, Any]:
    """The most frequent ones, and the whole matrices of few classes."""
    count = len(compared.classes)
    confidence, groups = compared.confidence, compared.groups
    top = top_confusions(decisions, compared.classes, confidence, groups)

    said = {"artifact": decisions.prediction, "teacher": decisions.teacher_prediction}
    whole = {
        role: confusion_matrix(decisions.labels, each, count).tolist() if count <= TOP else None
        for role, each in said.items()
    }
    return {"top": [each.to_dict(compared.counted) for each in top], **whole}


def _curves(compared: Compared, decisions: Decisions) -> tuple[Curves | None, Curves | None]:
    """Of artifact and teacher, as far as their probabilities were kept."""
    own, teacher = (
        None
        if probability is None
        else curves(decisions.labels, probability, compared.confidence, compared.groups)
        for probability in (compared.own.probability, compared.teacher.probability)
    )
    return own, teacher


def _estimate(found: Interval | None, compared: Compared) -> dict[str, Any] | None:
    return None if found is None else Estimate.of(found, compared.counted).to_dict()
