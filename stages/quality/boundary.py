"""How well the edges of a segmentation lie: Boundary IoU (Cheng et al., CVPR 2021), per image.

IoU counts area, and of a large object nearly all area is inside. Boundary IoU counts only pixels
within a distance d of an edge of their class: |G_d and P_d| / |G_d or P_d|, where G_d are the
pixels of a class in the labels that lie within d of pixels that are not, and P_d those predicted.
As in the authors' code, the border of the image is an edge, distance is the larger of rows and
columns, and d is 2 % of the diagonal, at least 1.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

SHARE = 0.02
"""Of the image's diagonal."""

Map = NDArray[np.integer]
"""(H, W) class numbers; those from C on are no class."""


def distance(height: int, width: int) -> int:
    """d in pixels."""
    return max(1, round(SHARE * float(np.hypot(height, width))))


def near_edge(classes: Map, d: int) -> NDArray[np.bool_]:
    """(H, W): where another value, or the end of the image, is at most `d` rows and columns away.

    All classes at once: on the way to the next pixel of another value, the last step leads from an
    edge pixel, one with another value beside it, that is at most d - 1 away.
    """
    from scipy.ndimage import maximum_filter

    edges = np.zeros(classes.shape, np.uint8)
    edges[[0, -1]] = edges[:, [0, -1]] = 1
    for one, other in _NEIGHBOURS:
        differ = classes[one] != classes[other]
        edges[one] |= differ
        edges[other] |= differ
    near: NDArray[np.bool_] = maximum_filter(edges, 2 * d - 1, mode="constant").astype(np.bool_)
    return near


_ALL, _FIRST, _LAST = slice(None), slice(1, None), slice(None, -1)
_NEIGHBOURS = (
    ((_LAST, _ALL), (_FIRST, _ALL)),
    ((_ALL, _LAST), (_ALL, _FIRST)),
    ((_LAST, _LAST), (_FIRST, _FIRST)),
    ((_LAST, _FIRST), (_FIRST, _LAST)),
)
"""Pairs of views of a map that hold a pixel and one beside it: below, right, and across."""


def boundary(classes: Map, classes_there: int) -> Map:
    """(H, W): the class of each pixel that is near an edge of it, -1 for all others.

    Values outside 0 to `classes_there` - 1 have edges, but no boundary of their own.
    """
    known = (classes >= 0) & (classes < classes_there)
    near = near_edge(classes, distance(*classes.shape))
    found: Map = np.where(known & near, classes, -1)
    return found
