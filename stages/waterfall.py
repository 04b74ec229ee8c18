"""The waterfall of one artifact: what each hop on its way loses, and which hop is guilty.

There are two ways from the teacher to a file that ships, and an artifact has come down one of them:

    teacher -> student -> onnx fp32 -> fp32 artifact
    teacher -> student -> quantized -> onnx int8 -> int8 artifact

`onnx int8` is the file for CPUs. A target that takes the other flavour has the difference between
the two files in its last hop.

Pure functions of scores; where in the guilty hop the loss is, `layer_snr.py` looks for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

from kdpipe.stages.bounds import bounds
from kdpipe.targets.errors import listing

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from kdpipe.stages.statistics import Drop, Groups

    Scores = NDArray[np.float32]

Source = Literal["fp32", "int8"]

_BEFORE: Mapping[Source, tuple[str, ...]] = {
    "fp32": ("teacher", "student", "onnx fp32"),
    "int8": ("teacher", "student", "quantized", "onnx int8"),
}
"""What may stand before an artifact, by the precision of the ONNX file it was compiled from."""
_STAGES = {
    "student": "distill",
    "quantized": "quantize",
    "onnx fp32": "export",
    "onnx int8": "export",
}
_DEEDS = {
    "distill": "as the student knows less than its teacher",
    "quantize": "by rounding to int8",
    "export": "by what was written as ONNX",
    "compile": "by what the runtime makes of the file",
}


@dataclass(frozen=True)
class Loss:
    """What one hop, from `previous` to `hop`, does to the score.

    `stage`: the stage that makes the hop, by its key in the YAML. `before` and `after`: mean
    scores. `drop`: against `previous`, with bounds of its own, each at `confidence`. `significant`:
    whether it loses at all, all hops of the way considered. `samples`: how many were scored.
    """

    hop: str
    previous: str
    stage: str
    before: float
    after: float
    drop: Drop
    confidence: float
    significant: bool
    samples: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values that JSON can hold: a bound that does not exist is None."""
        return {
            "hop": self.hop,
            "stage": self.stage,
            "previous": self.previous,
            "drop": {"mean": self.drop.drop, **bounds(self.drop)},
            "significant": self.significant,
            "samples": self.samples,
        }


def way(hops: Sequence[str], artifact: str, source: Source) -> list[str]:
    """The hops that `artifact` came down, in order, of those that there are.

    `source`: the precision of the ONNX file it was compiled from. A chain without a student, or
    without quantization, has fewer.
    """
    return [hop for hop in (*_BEFORE[source], artifact) if hop in hops]


def previous(hops: Sequence[str], hop: str, source: Source) -> str | None:
    """What stands right before `hop`; None for the teacher. `source` counts for artifacts alone."""
    if hop in _STAGES:
        source = "int8" if hop in _BEFORE["int8"] else "fp32"
    path = way(hops, hop, source)
    path = path[: path.index(hop)]
    return path[-1] if path else None


def losses(
    scores: Mapping[str, Scores],
    artifact: str,
    source: Source,
    confidence: float,
    groups: Groups | None = None,
) -> tuple[Loss, ...]:
    """What each hop on the way to `artifact` loses, in order; empty for fewer than two hops.

    `scores`: {hop: (N,) of each sample}, `groups` (N,) as in `paired_drop`. Drops are paired, each
    with the hop right before it. A hop is significant where its drop is above 0 by Holm's
    correction over all hops of the way, which together err with 1 - `confidence` at most. Raises
    ValueError when scores are not pairs.
    """
    from kdpipe.stages.statistics import paired_drop
    from kdpipe.stages.statistics.holm import holm

    steps = list(pairwise(way(list(scores), artifact, source)))
    drops = [paired_drop(scores[a], scores[b], confidence, groups) for a, b in steps]
    # A hop whose own bound is not above 0 is not significant among several either.
    p_values = [
        _p_value(scores[a], scores[b], groups) if drop.low > 0 else 1.0
        for (a, b), drop in zip(steps, drops, strict=True)
    ]
    return tuple(
        Loss(
            hop=after,
            previous=before,
            stage=_STAGES.get(after, "compile"),
            before=float(scores[before].mean(dtype=float)),
            after=float(scores[after].mean(dtype=float)),
            drop=drop,
            confidence=confidence,
            significant=significant,
            samples=len(scores[after]),
        )
        for (before, after), drop, significant in zip(
            steps, drops, holm(p_values, 1 - confidence), strict=True
        )
    )


def _p_value(before: Scores, after: Scores, groups: Groups | None) -> float:
    """Of the test that a hop loses nothing."""
    from kdpipe.stages.statistics import paired_drop
    from kdpipe.stages.statistics.holm import p_above

    def bounds(confidence: float) -> Drop:
        return paired_drop(before, after, confidence, groups)

    return p_above(bounds, 0.0)


def guilty(every: Sequence[Loss]) -> Loss | None:
    """The hop with the largest loss, of those that lose more than samples do by chance."""
    certain = [loss for loss in every if loss.significant]
    return max(certain, key=lambda loss: loss.drop.drop) if certain else None


def blame(every: Sequence[Loss], inside: str = "") -> str:
    """Which hop lost the score, in words for the reason of a rule that fails.

    `inside`: where in the guilty hop, in words, see `layer_snr.where`. Empty without any hop.
    """
    worst = guilty(every)
    if worst is None:
        return "no hop alone loses more than the samples can show" if every else ""
    whole = every[0].before - every[-1].after
    most = "most of it is lost" if worst.drop.drop >= whole / 2 else "the largest part is lost"
    sentence = f"{most} at `{worst.stage}`, {_DEEDS[worst.stage]} ({_numbers(worst)})"
    others = [f"`{x.stage}` ({_numbers(x)})" for x in every if x.significant and x is not worst]
    also = f"; some at {listing(others)}" if others else ""
    return f"{sentence}{', ' if inside else ''}{inside}{also}"


def _numbers(loss: Loss) -> str:
    """`student 0.9551 -> quantized 0.6120, drop 0.3431, 95 % bounds 0.3021 to 0.3850, 449 samples`

    Bounds are rounded outwards.
    """
    low, high = math.floor(loss.drop.low * 1e4) / 1e4, math.ceil(loss.drop.high * 1e4) / 1e4
    groups = f" in {loss.drop.n:,} groups" if loss.drop.n != loss.samples else ""
    return (
        f"{loss.previous} {loss.before:.4f} -> {loss.hop} {loss.after:.4f},"
        f" drop {loss.drop.drop:.4f}, {100 * loss.confidence:g} % bounds {low:.4f} to {high:.4f},"
        f" {loss.samples:,} samples{groups}"
    )
