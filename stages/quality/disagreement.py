"""Where artifact and teacher differ: who is right then, and whether that could be chance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from kdpipe.stages.evidence import Decisions
from kdpipe.stages.quality.estimate import Estimate
from kdpipe.stages.statistics import Groups, mcnemar_midp, mean_score


@dataclass(frozen=True)
class Disagreement:
    """How N samples fall apart, and McNemar's two-sided mid-p value that losses equal gains.

    `p` counts samples as independent. Where they come in groups it is too small, and None.
    """

    counts: dict[str, int]
    shares: dict[str, Estimate]
    p: float | None

    def to_dict(self) -> dict[str, Any]:
        """For JSON: {case: {"samples", "share"}}, "losses", "gains" and "p"."""
        cases: dict[str, Any] = {
            name: {"samples": count, "share": self.shares[name].to_dict()}
            for name, count in self.counts.items()
        }
        losses, gains = self.counts["only_teacher_right"], self.counts["only_artifact_right"]
        return {"cases": cases, "mcnemar": {"losses": losses, "gains": gains, "p": self.p}}


def disagreement(
    decisions: Decisions, confidence: float, groups: Groups | None = None
) -> Disagreement:
    """Five cases that together hold every sample; no class (-1) is wrong, and like nothing."""
    own, teacher = decisions.prediction, decisions.teacher_prediction
    right, teacher_right = own == decisions.labels, teacher == decisions.labels
    wrong = ~right & ~teacher_right
    same = (own == teacher) & (own >= 0)
    cases = {
        "both_right": right & teacher_right,
        "only_teacher_right": teacher_right & ~right,
        "only_artifact_right": right & ~teacher_right,
        "both_wrong_same": wrong & same,
        "both_wrong_differently": wrong & ~same,
    }
    counted = "samples" if groups is None else "groups"
    shares = {
        name: Estimate.of(mean_score(mask.astype(np.float32), confidence, groups), counted)
        for name, mask in cases.items()
    }
    counts = {name: int(mask.sum()) for name, mask in cases.items()}
    p = mcnemar_midp(counts["only_teacher_right"], counts["only_artifact_right"])
    return Disagreement(counts, shares, p if groups is None else None)
