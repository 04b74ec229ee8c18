"""IoU and Boundary IoU of artifact and teacher over label maps, paired image by image.

The IoU of a class over a split is a ratio of two sums over images, and images are what is
independent, never pixels. So each image gets a pseudo-value whose mean is that ratio exactly, and
these are compared as scores are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kdpipe.stages.images import Labels
from kdpipe.stages.quality.boundary import Map, boundary
from kdpipe.stages.quality.paired import Paired
from kdpipe.stages.statistics import Groups

Counts = NDArray[np.int64]
Pair = tuple[Counts, Counts]
"""`both` and `either`, (N, C) each."""


@dataclass(frozen=True)
class Overlaps:
    """Pixels of one model in each of N images and C classes: `both` in labels and prediction,
    `either` in one of them, and the same of boundaries, (N, C) each."""

    both: Counts
    either: Counts
    edge_both: Counts
    edge_either: Counts


def overlaps(
    predictions: Sequence[NDArray[np.generic]],
    labels: Labels,
    classes: int,
    ignored: int | None,
) -> list[Overlaps]:
    """Of each model, counted image by image, so that one image at a time is widened.

    `ignored` pixels are cut out of labels and predictions alike: they count nowhere, and where
    labels end is an edge in both. Where `ignored` is a class number, that class has no pixels.
    """
    rows: list[list[tuple[Counts, ...]]] = [[] for _ in predictions]
    for number in range(len(labels)):
        truth = _plain(labels[number], labels[number], classes, ignored)
        truth_edge = boundary(truth, classes)
        for found, prediction in zip(rows, predictions, strict=True):
            said = _plain(prediction[number], labels[number], classes, ignored)
            areas = _counted(truth, said, classes)
            edges = _counted(truth_edge, boundary(said, classes), classes)
            found.append((*areas, *edges))
    return [Overlaps(*(np.stack(each) for each in zip(*found, strict=True))) for found in rows]


def class_values(
    own: Pair, teacher: Pair, number: int, groups: Groups | None = None
) -> Paired | None:
    """Pseudo-values of the IoU of class `number`; None where it never occurs.

    Of images in which it occurs, be it in one prediction only.
    """
    counts = [array[:, number] for pair in (own, teacher) for array in pair]
    there = (counts[1] > 0) | (counts[3] > 0)
    if not there.any():
        return None
    both, either, teacher_both, teacher_either = (each[there] for each in counts)
    return Paired(
        pseudo_values(both, either),
        pseudo_values(teacher_both, teacher_either),
        None if groups is None else groups[there],
    )


def mean_values(both: Counts, either: Counts) -> NDArray[np.float64]:
    """Pseudo-values (N,) of the mean IoU over classes, as PASCAL VOC and Cityscapes define it.

    Over the classes that occur in the labels or in the prediction, of which there is at least one.
    """
    occurs = np.flatnonzero(either.any(axis=0))
    values = [pseudo_values(both[:, number], either[:, number]) for number in occurs]
    mean: NDArray[np.float64] = np.mean(values, axis=0)
    return mean


def image_means(both: Counts, either: Counts) -> NDArray[np.float64]:
    """(N,) the mean of each image's own ratios over the classes it has; 1 where it has none."""
    there = either > 0
    ratios = np.where(there, both / np.maximum(either, 1), 0.0)
    means: NDArray[np.float64] = ratios.sum(axis=1) / np.maximum(there.sum(axis=1), 1)
    return np.where(there.any(axis=1), means, 1.0)


def pseudo_values(both: Counts, either: Counts) -> NDArray[np.float64]:
    """One value per image, (N,), whose mean is R = sum(both) / sum(either).

    R + (both - R * either) / mean(either): the ratio estimator, linearised (Cochran, "Sampling
    techniques", 1977, section 6.3). The variance of their mean is that of R to first order. R is 0
    where `either` is. They are rounded, as rounding errors would pass for spread.
    """
    mean = float(either.mean())
    if mean == 0:
        return np.zeros(both.size)
    ratio = float(both.sum() / either.sum())
    values: NDArray[np.float64] = np.round(ratio + (both - ratio * either) / mean, 12)
    return values


def _plain(
    values: NDArray[np.generic], labels: NDArray[np.generic], classes: int, ignored: int | None
) -> NDArray[np.int32]:
    """One map, with `classes` for no class, and -1 where there is no label.

    No pixel is labelled as an ignored class; to say it is wrong about the class that it has.
    """
    plain = np.minimum(np.asarray(values).astype(np.int32), classes)
    if ignored is None:
        return plain
    return np.where(labels == ignored, -1, np.where(plain == ignored, classes, plain))


def _counted(truth: Map, said: Map, classes: int) -> tuple[Counts, Counts]:
    """Pixels of each class in both maps, and in one of them at least; (C,) each."""
    both, there, claimed = (
        np.bincount(each.ravel() + 1, minlength=classes + 2)[1 : classes + 1]
        for each in (np.where(truth == said, truth, -1), truth, said)
    )
    return both, there + claimed - both
