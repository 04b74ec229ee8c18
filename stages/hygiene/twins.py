"""Pairs of samples that show the same: of equal pixels, nearly so, or mirrored left to right.

Two pictures are near duplicates when their small pictures (`sketch.py`) correlate to CORRELATION
and so do their differences between neighbouring pixels, centred, to DETAIL. The latter tells skies
apart: slopes of light correlate whatever else they show, and have no detail but noise. Colours
count, brightness and contrast do not. Measured, over all pairs:

- scikit-learn's digits, 1.6 million pairs: none, at 8x8 and enlarged to 12 ... 64 pixels; the
  nearest two ones correlate to 0.9961.
- Fashion-MNIST, 600 million pairs of train and test: 19, and by eye each shows one garment, or
  two that 28x28 pixels hardly tell apart. At 0.995 there would be 26, at 0.99 127, of which most
  are different trousers.
- 1,026 aerial tiles: none, the nearest reach 0.93. 1,951 MRI slices: none of different patients,
  the nearest reach 0.98; neighbouring slices of one patient, up to 0.994, are none either, and
  have to be kept together by groups.

`docs/hygiene.md` has the table of changes that are found, and those that are not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from kdpipe.stages.base import Observer
from kdpipe.stages.hygiene.search import search
from kdpipe.stages.hygiene.sketch import CHUNK, Sketch, mirror_signs, thumbs, units
from kdpipe.stages.images import Images
from kdpipe.stages.pixels import Form

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
else:
    from kdpipe.targets.lazy import np

CORRELATION = 0.997
DETAIL = 0.95
Kind = Literal["exact", "near", "mirrored", "group"]
_REACH = 2 * (1 - CORRELATION) + 1e-5  # of squared distances; the rest is float32


@dataclass(frozen=True)
class Twins:
    """Pairs of one kind between two splits, or within one; `distance` is 1 - correlation."""

    kind: Kind
    rows: NDArray[np.int64]
    """(P, 2) row in the first split, row in the second."""
    distance: NDArray[np.float32]
    """(P,)"""

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class Seen:
    """A split's images with their sketch."""

    images: Images
    sketch: Sketch


def exact(a: Sketch, b: Sketch) -> Twins:
    """Every sample of either split that has the pixels of one of the other, with the first such."""
    _, first_a, of_a = np.unique(a.digests, return_index=True, return_inverse=True)
    _, first_b, of_b = np.unique(b.digests, return_index=True, return_inverse=True)
    _, in_a, in_b = np.intersect1d(a.digests[first_a], b.digests[first_b], return_indices=True)
    twin_a, twin_b = np.full(len(first_a), -1), np.full(len(first_b), -1)
    twin_a[in_a], twin_b[in_b] = first_b[in_b], first_a[in_a]
    ours = np.stack([np.arange(len(a)), twin_a[of_a]], axis=1)
    theirs = np.stack([twin_b[of_b], np.arange(len(b))], axis=1)
    rows = np.concatenate([ours, theirs])
    return _twins("exact", np.unique(rows[(rows >= 0).all(axis=1)], axis=0))


def repeats(a: Sketch) -> Twins:
    """Every sample that has the pixels of an earlier one of the same split, with the first such."""
    _, first, of = np.unique(a.digests, return_index=True, return_inverse=True)
    later = np.flatnonzero(first[of] != np.arange(len(a)))
    return _twins("exact", np.stack([first[of[later]], later], axis=1))


def near(
    a: Seen,
    b: Seen,
    form: Form,
    observer: Observer,
    mirrored: bool = False,
    same: bool = False,
) -> tuple[Twins, int]:
    """Near duplicates that are not exact ones, and for how many samples of `b` they were sought.

    With `mirrored` those of `a` seen in a mirror. Each sample stands for its nearest by hash, so
    that there are at most N + M pairs. Samples that show too little count as sought.
    """
    mine, theirs = a.sketch.searchable, b.sketch.searchable
    hashes = a.sketch.hashes[mine] * (mirror_signs(form) if mirrored and len(mine) else 1)
    note = "mirrored duplicates" if mirrored else "near duplicates"
    found = search(
        hashes.astype(np.float32, copy=False),
        b.sketch.hashes[theirs],
        _REACH,
        same,
        lambda done, total: observer.progress(done, total, note),
    )
    rows = np.stack([mine[found.pairs[:, 0]], theirs[found.pairs[:, 1]]], axis=1)
    rows = rows[a.sketch.digests[rows[:, 0]] != b.sketch.digests[rows[:, 1]]]
    correlation, detail = _compare(a.images, b.images, rows, mirrored)
    sure = (correlation >= CORRELATION) & (detail >= DETAIL)
    twins = Twins("mirrored" if mirrored else "near", rows[sure], 1 - correlation[sure])
    return twins, found.sought + len(b.sketch) - len(theirs)


def without(twins: Twins, others: Twins) -> Twins:
    """Those of `twins` that `others` do not name: what is symmetric is its own mirror image."""
    new = ~np.isin(_keys(twins.rows), _keys(others.rows))
    return Twins(twins.kind, twins.rows[new], twins.distance[new])


def _keys(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """(P,) one number for each pair."""
    keys: NDArray[np.int64] = rows[:, 0] << 32 | rows[:, 1]
    return keys


def _twins(kind: Kind, rows: NDArray[np.int64]) -> Twins:
    return Twins(kind, rows.reshape(-1, 2), np.zeros(len(rows), np.float32))


def _compare(
    a: Images, b: Images, rows: NDArray[np.int64], mirrored: bool
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(P,) correlations of the small pictures, and of their differences, for pairs (P, 2)."""
    found = [np.empty((2, 0), np.float32)]
    for start in range(0, len(rows), CHUNK):
        ours, theirs = rows[start : start + CHUNK].T
        x, y = units(thumbs(a[ours])), units(thumbs(b[theirs]))
        x = x[:, :, ::-1] if mirrored else x
        found.append(np.stack([(x * y).sum(axis=(1, 2, 3)), _alike(x, y)]))
    correlation, detail = np.concatenate(found, axis=1)
    return correlation, detail


def _alike(x: NDArray[np.float32], y: NDArray[np.float32]) -> NDArray[np.float32]:
    """(n,) correlation of the differences between neighbours, along both axes together."""
    dot, own, other = (
        sum((_steps(p, axis) * _steps(q, axis)).sum(axis=(1, 2, 3)) for axis in (1, 2))
        for p, q in ((x, y), (x, x), (y, y))
    )
    cosine: NDArray[np.float32] = dot / np.sqrt(np.maximum(own * other, 1e-12))
    return cosine


def _steps(x: NDArray[np.float32], axis: int) -> NDArray[np.float32]:
    """Differences along one axis (n, h, w, C) without their mean: a slope has none."""
    steps = np.diff(x, axis=axis)
    centred: NDArray[np.float32] = steps - steps.mean(axis=(1, 2), keepdims=True)
    return centred


def shared_groups(a: NDArray[np.int64] | None, b: NDArray[np.int64] | None) -> Twins:
    """The first sample of each group in either split, for groups (N,) and (M,) that are in both."""
    if a is None or b is None:
        return _twins("group", np.empty((0, 2), np.int64))
    names_a, first_a = np.unique(a, return_index=True)
    names_b, first_b = np.unique(b, return_index=True)
    _, in_a, in_b = np.intersect1d(names_a, names_b, return_indices=True)
    return _twins("group", np.stack([first_a[in_a], first_b[in_b]], axis=1))
