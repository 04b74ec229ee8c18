"""Scores of artifact and teacher for the same things, side by side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdpipe.stages.quality.estimate import Estimate
from kdpipe.stages.statistics import Groups, mean_score, paired_drop


@dataclass(frozen=True)
class Paired:
    """Scores from 0 to 1 of both (M,), and which of them belong together."""

    own: NDArray[np.floating]
    teacher: NDArray[np.floating]
    groups: Groups | None = None

    def to_dict(self, confidence: float, counted: str = "samples") -> dict[str, Any]:
        """Both means, and what the artifact loses, each with bounds and n; for JSON."""
        counted = counted if self.groups is None else "groups"
        means = {
            role: Estimate.of(mean_score(values, confidence, self.groups), counted).to_dict()
            for role, values in (("artifact", self.own), ("teacher", self.teacher))
        }
        drop = paired_drop(self.teacher, self.own, confidence, self.groups)
        return means | {"drop": Estimate.of(drop, counted).to_dict()}
