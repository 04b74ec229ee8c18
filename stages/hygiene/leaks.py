"""What is a leak, and what a run does about it: refuse, or go on with a mark on every number.

A leak is an eval sample that something was trained or calibrated on: its pixels, nearly its pixels
or their mirror image are in train or among the calibration samples, or its group is in train. What
one split has more than once is no leak.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kdpipe.stages.base import Work
from kdpipe.stages.hygiene.overlap import FILE, Overlap, write_pairs
from kdpipe.targets.errors import DataError, listing
from kdpipe.targets.lazy import np

ALLOW = "`data.allow_leak: true` goes on and marks every number"


def count_leaks(overlaps: Sequence[Overlap]) -> dict[str, Any]:
    """Eval samples with a leak: in all, as a share, by where else they are, and by kind.

    {} when there are none. `group` is the number of groups. Example: {"eval": 3, "share": 0.0067,
    "known_from": {"train": 3}, "exact": 1, "near": 2, "mirrored": 0, "group": 0}
    """
    found = [overlap for overlap in overlaps if _leaks(overlap)]
    if not found:
        return {}
    hit = np.unique(np.concatenate([overlap.hit for overlap in found]))
    every = [twins for overlap in found for twins in overlap.twins]
    kinds = {
        kind: [twins.rows[:, 1] for twins in every if twins.kind == kind]
        for kind in ("exact", "near", "mirrored", "group")
    }
    return {
        "eval": len(hit),
        "share": len(hit) / len(found[0].b),
        "known_from": {overlap.a.name: len(overlap.hit) for overlap in found},
        **{k: len(np.unique(np.concatenate(r))) if r else 0 for k, r in kinds.items()},
    }


def require_clean(
    overlaps: Sequence[Overlap], classes: Sequence[str], allowed: bool, work: Work
) -> None:
    """Raise DataError for leaks, with all pairs in a file that stays; `allowed` ones are told.

    The file lies in the stage's scratch folder: its output goes when it fails.
    """
    found = [overlap for overlap in overlaps if _leaks(overlap)]
    if not found:
        return
    leaks = count_leaks(found)
    told = wording(leaks)
    if allowed:
        work.observer.warn(f"{told}; data.allow_leak lets it pass, and every number is marked")
        return
    path = work.scratch / FILE
    write_pairs(path, (line for overlap in found for line in overlap.lines(classes)))
    pairs = sum(len(twins) for overlap in found for twins in overlap.twins)
    raise DataError(
        told,
        found=f"{listing([pair for o in found for pair in o.shown()], 5)};"
        f" {pairs} pair(s) in {path}",
        fix=_fix(found),
    )


def wording(leaks: Mapping[str, Any]) -> str:
    """Example: 3 eval sample(s), 0.668 %, are known from train: exact 1, near 2"""
    kinds = [f"{kind} {leaks[kind]}" for kind in ("exact", "near", "mirrored") if leaks[kind]]
    if leaks["group"]:
        kinds.append(f"{leaks['group']} group(s) in both splits")
    return (
        f"{leaks['eval']} eval sample(s), {100 * leaks['share']:.3g} %, are known from"
        f" {' and '.join(leaks['known_from'])}: {', '.join(kinds)}"
    )


def _leaks(overlap: Overlap) -> bool:
    return overlap.a is not overlap.b and bool(len(overlap.hit))


def _fix(found: Sequence[Overlap]) -> str:
    ways = []
    if any(o.a.name == "train" and 0 < len(np.unique(o.rows[:, 0])) < len(o.a) for o in found):
        ways.append("`data.drop_twins: true` leaves those samples of train out")
    if any(overlap.a.name == "calibration" for overlap in found):
        ways.append("take the samples out of data.calibration.source")
    if any(len(twins) for o in found for twins in o.twins if twins.kind == "group"):
        ways.append("keep each group in one split, or let kdpipe split one pool by groups")
    return "; ".join([*ways, ALLOW])
