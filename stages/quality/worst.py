"""The class, or the group, that loses most against the teacher, with bounds that hold for it.

A mean hides it: 1 point lost over 100 classes may be all of one class.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdpipe.stages.evidence import Decisions
from kdpipe.stages.quality.estimate import Estimate
from kdpipe.stages.statistics import Drop, Groups, Interval, paired_drop

Scores = NDArray[np.floating]

LEAST = 30
"""Samples that a group has to have: even without a difference, fewer cannot bound a drop below
1 - 0.05^(1/30) = 9.5 points at 95 %."""
MOST = 100
"""Groups that are looked at one by one: of more, the worst one is mostly the unluckiest one."""


@dataclass(frozen=True)
class Part:
    """What some of the samples lose: those of one class, or of one group.

    `drop` at the confidence asked for, `safe_low`: its lower bound where all parts' hold together.
    """

    name: str
    drop: Drop
    safe_low: float


@dataclass(frozen=True)
class Worst:
    """The part with the largest drop.

    `interval`: bounds of the largest true drop of any part, whichever part that is. `name` and `n`:
    of the part with the largest measured drop. `widest` is the part whose upper bound is
    `interval.high`: more samples of it would help. `left_out`: parts with too few samples to say
    anything, and while there are any, `high` is infinite.
    """

    name: str
    interval: Interval
    widest: str
    parts: int
    left_out: tuple[str, ...]

    def to_dict(self, counted: str = "samples") -> dict[str, Any]:
        """For JSON; of what was left out the first 20 names and the number."""
        return {
            "name": self.name,
            "drop": Estimate.of(self.interval, counted).to_dict(),
            "widest": self.widest,
            "parts": self.parts,
            "left_out": list(self.left_out[:20]),
            "left_out_count": len(self.left_out),
        }


def part(
    name: str, teacher: Scores, own: Scores, confidence: float, parts: int, groups: Groups | None
) -> Part:
    """A part of so many `parts` that are tested together (Bonferroni); scores are paired."""
    drop = paired_drop(teacher, own, confidence, groups)
    safe = 1 - (1 - confidence) / parts
    return Part(name, drop, paired_drop(teacher, own, safe, groups).low)


def class_drops(
    decisions: Decisions, classes: Sequence[str], confidence: float, groups: Groups | None = None
) -> list[Part]:
    """The drop in recall of each class that has samples, in the order of `classes`.

    Drops of C classes are tested together: `safe_low` is at 1 - (1 - confidence) / C (Bonferroni).
    """
    right, teacher_right = hits(decisions)
    members = [decisions.labels == number for number in range(len(classes))]
    there = [(name, mask) for name, mask in zip(classes, members, strict=True) if mask.any()]
    return [
        part(name, teacher_right[mask], right[mask], confidence, len(there), _of(groups, mask))
        for name, mask in there
    ]


def worst_class(
    decisions: Decisions, classes: Sequence[str], confidence: float, groups: Groups | None = None
) -> Worst:
    """The class with the largest drop in recall; classes without samples are `left_out`."""
    present = np.bincount(decisions.labels, minlength=len(classes)) > 0
    absent = tuple(name for name, has in zip(classes, present, strict=True) if not has)
    return worst(class_drops(decisions, classes, confidence, groups), absent)


def group_drops(
    score: Scores, teacher_score: Scores, groups: Groups, confidence: float
) -> tuple[list[Part], tuple[str, ...]]:
    """The drop of the score in each group with LEAST samples, and the names of the others.

    Samples are the replicates: a drop says what this very group would show on more of its own
    samples, and nothing about further groups. None of more than MOST groups. Groups have numbers in
    the sorted order of their names, which data sets do not keep.
    """
    numbers, sizes = np.unique(groups, return_counts=True)
    if numbers.size > MOST:
        return [], tuple(f"group {number}" for number in numbers)
    enough = numbers[sizes >= LEAST]
    parts = []
    for number in enough:
        mask = groups == number
        own, teacher = score[mask], teacher_score[mask]
        parts.append(part(f"group {number}", teacher, own, confidence, enough.size, None))
    return parts, tuple(f"group {number}" for number in numbers[sizes < LEAST])


def worst_group(
    score: Scores, teacher_score: Scores, groups: Groups, confidence: float
) -> Worst | None:
    """The group with the largest drop, see `group_drops`; None where no group can be looked at."""
    parts, left_out = group_drops(score, teacher_score, groups, confidence)
    return worst(parts, left_out) if parts else None


def worst(parts: Sequence[Part], left_out: tuple[str, ...] = ()) -> Worst:
    """The worst of at least one part.

    Whichever part is truly the worst, its own upper bound misses it with 1 - confidence at most,
    and the largest of all upper bounds is no lower: `high` needs no correction. `low` does: the
    part that looks worst was chosen for it.
    """
    largest = max(parts, key=lambda each: each.drop.drop)
    widest = max(parts, key=lambda each: each.drop.high)
    drop = largest.drop
    high = math.inf if left_out else widest.drop.high
    low = max(each.safe_low for each in parts)
    interval = Interval(drop.drop, min(low, drop.drop), high, drop.n, drop.variance)
    named = left_out[0] if left_out else widest.name
    return Worst(largest.name, interval, named, len(parts), left_out)


def hits(decisions: Decisions) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(N,) each: 1 where the artifact, and where the teacher, is right."""
    own = (decisions.prediction == decisions.labels).astype(np.float32)
    return own, (decisions.teacher_prediction == decisions.labels).astype(np.float32)


def _of(groups: Groups | None, mask: NDArray[np.bool_]) -> Groups | None:
    return None if groups is None else groups[mask]
