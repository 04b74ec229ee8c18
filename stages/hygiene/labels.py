"""Labels that contradict each other, classes that are rare, and what calibration sees of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from kdpipe.stages.base import Observer
from kdpipe.stages.dataset import Dataset
from kdpipe.stages.hygiene.overlap import Overlap, labelled
from kdpipe.targets.errors import listing

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
else:
    from kdpipe.targets.lazy import np

RATIO = 10
"""Between the largest and the smallest class of train: from here on accuracy hides the small."""
ACCURACY, CONFIDENCE = 0.9, 0.95
"""A class of n eval samples, all right, proves this accuracy when n >= 29."""


def conflicts(
    overlaps: Sequence[Overlap], classes: Sequence[str], observer: Observer
) -> dict[str, Any] | None:
    """Pairs that show the same under two labels; None where labels are maps.

    `eval` are samples whose twin in train has another label, and `ceiling` the accuracy that a
    network reaches at most which answers for train's twins as it was taught.
    """
    if not all(labelled(overlap.b) for overlap in overlaps):
        return None
    found = [(overlap, _contrary(overlap)) for overlap in overlaps]
    pairs = sum(len(rows) for _, rows in found)
    held = {int(j) for overlap, rows in found if overlap.name == "train-eval" for j in rows[:, 1]}
    total = next((len(overlap.b) for overlap in overlaps if overlap.b.name == "eval"), 0)
    if pairs:
        shown = [
            f"{o.a.ids[i]} ({classes[o.a.labels[i]]}) = {o.b.ids[j]} ({classes[o.b.labels[j]]})"
            for o, rows in found
            for i, j in rows[:3]
        ]
        observer.warn(f"{pairs} pair(s) of duplicates have different labels: {listing(shown, 3)}")
    if held:
        observer.warn(
            f"{len(held)} of {total} eval samples have a duplicate in train with another label:"
            f" accuracy of a network that learnt it is at most {1 - len(held) / total:.4f}"
        )
    return {"pairs": pairs, "eval": len(held), "ceiling": 1 - len(held) / max(total, 1)}


def balance(data: Dataset, observer: Observer) -> dict[str, Any] | None:
    """How even the classes of train are, and which of eval are too few to show anything.

    `effective` is the exponential of the entropy of the shares: as many even classes would be as
    diverse (Hill 1973). None where labels are maps.
    """
    from kdpipe.stages.statistics import needed_samples

    if not labelled(data.train):
        return None
    train, held = (_counts(s.labels, len(data.classes)) for s in (data.train, data.eval))
    shares = train[train > 0] / train.sum()
    ratio = float(shares.max() / shares.min())
    if ratio >= RATIO:
        small, large = (data.classes[i] for i in (_rarest(train), int(train.argmax())))
        observer.warn(
            f"train has {ratio:.3g} times as many samples of class {large} ({train.max()}) as of"
            f" {small} ({train[train > 0].min()}): look at the accuracy of each class"
        )
    needed = needed_samples(ACCURACY, CONFIDENCE)
    thin = [f"{data.classes[c]} ({held[c]})" for c in np.flatnonzero((held > 0) & (held < needed))]
    if thin:
        observer.warn(
            f"fewer than {needed} eval samples of class {listing(thin)}: even without an error"
            f" they do not prove an accuracy of {100 * ACCURACY:.0f} % ({100 * CONFIDENCE:.0f} %"
            " confidence)"
        )
    effective = float(np.exp(-(shares * np.log(shares)).sum()))
    return {"ratio": ratio, "effective_classes": effective, "thin": len(thin), "needed": needed}


def calibration(data: Dataset, observer: Observer) -> dict[str, Any]:
    """How many samples calibrate, and how many classes they lack; null where they have none."""
    split, absent = data.calibration, None
    if labelled(data.train) and not data.own_calibration and len(split):
        seen = _counts(split.labels, len(data.classes))
        known = _counts(data.train.labels, len(data.classes))
        lacking = np.flatnonzero((seen == 0) & (known > 0))
        absent = len(lacking)
        if absent:
            observer.warn(
                f"no calibration sample of class {listing([data.classes[c] for c in lacking])}:"
                " ranges of activations do not know it; raise data.calibration"
            )
    return {"samples": len(split), "classes_absent": absent}


def _contrary(overlap: Overlap) -> NDArray[np.int64]:
    """(P, 2) pairs with two labels."""
    if not labelled(overlap.a) or not labelled(overlap.b):
        return np.empty((0, 2), np.int64)
    i, j = overlap.rows.T
    rows: NDArray[np.int64] = overlap.rows[overlap.a.labels[i] != overlap.b.labels[j]]
    return rows


def _counts(labels: Any, classes: int) -> NDArray[np.int64]:
    return np.bincount(labels, minlength=classes)


def _rarest(counts: NDArray[np.int64]) -> int:
    return int(np.where(counts > 0, counts, counts.max() + 1).argmin())
