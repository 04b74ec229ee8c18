"""What scores on corrupted pictures prove: the mean over all corruptions, and each for itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdpipe.stages.quality.paired import Paired
from kdpipe.stages.quality.robustness import chosen
from kdpipe.stages.statistics import Drop, Groups, Interval, mean_score, paired_drop

Scores = NDArray[np.floating]
Corrupted = Mapping[str, tuple[Scores, Scores]]
"""{"gaussian_noise/1": (score, teacher_score)}, as `Evidence.robustness` keeps them."""


def mean_scores(corrupted: Corrupted) -> tuple[Scores, Scores]:
    """(M,) each, of artifact and teacher: the mean of each sample over all corruptions.

    A sample that is corrupted 15 times is still one sample.
    """
    own, teacher = (np.mean([pair[role] for pair in corrupted.values()], axis=0) for role in (0, 1))
    return own, teacher


def groups_of(groups: Groups | None, samples: int) -> Groups | None:
    """The groups of the samples that were corrupted, from those of the whole eval split."""
    return None if groups is None else groups[chosen(groups.size, samples)]


def robust_score(corrupted: Corrupted, confidence: float, groups: Groups | None = None) -> Interval:
    """The artifact's mean score over all corruptions. `groups`: of the whole eval split."""
    own, _ = mean_scores(corrupted)
    return mean_score(own, confidence, groups_of(groups, own.size))


def robust_drop(corrupted: Corrupted, confidence: float, groups: Groups | None = None) -> Drop:
    """How much lower that is than the teacher's, sample by sample."""
    own, teacher = mean_scores(corrupted)
    return paired_drop(teacher, own, confidence, groups_of(groups, own.size))


def band(
    corrupted: Corrupted,
    score: Scores,
    teacher_score: Scores,
    confidence: float,
    groups: Groups | None = None,
) -> dict[str, Any] | None:
    """For JSON; null where nothing was corrupted. `score`, `teacher_score`, `groups`: of all eval.

    `clean` are the same samples as they are; `lowest` the corruption with the artifact's lowest
    mean score.
    """
    if not corrupted:
        return None
    own, teacher = mean_scores(corrupted)
    rows = chosen(score.size, own.size)
    members = groups_of(groups, own.size)
    each = {name: Paired(*pair, members).to_dict(confidence) for name, pair in corrupted.items()}
    return {
        "samples": own.size,
        "clean": Paired(score[rows], teacher_score[rows], members).to_dict(confidence),
        "mean": Paired(own, teacher, members).to_dict(confidence),
        "lowest": min(each, key=lambda name: float(each[name]["artifact"]["value"])),
        "corruptions": each,
    }
