"""Samples that belong together, as replicates: a patient, a clip, a speaker.

Frames of one clip are right or wrong together. Counted one by one they look like far more evidence
than they are, and a gate would pass and fail artifacts by luck: with 10 frames a clip, a test that
should alarm falsely one time in twenty does so one time in six.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_SAME = 1e-9
"""Groups nearer than this are equal: scores are float32, sums of their deviations are rounded."""


def group_values(values: NDArray[np.floating], groups: NDArray[np.int64]) -> NDArray[np.float64]:
    """One value for each of G groups, in place of those of the samples (N,), with the same mean M.

    M + G / N * sum over the group of (value - M). The variance of these, over G, is the
    cluster-robust variance of M, G / (G - 1) * sum over groups of (sum of value - M)^2 / N^2: the
    CR1 sandwich of a mean (Cameron and Miller, J. Human Resources 50, 317, 2015, section II).
    Groups may differ in size.
    """
    values = values.astype(np.float64)
    mean = float(values.mean())
    _, member = np.unique(groups, return_inverse=True)
    sums = np.bincount(member, weights=values - mean)
    if np.ptp(sums) * sums.size / values.size < _SAME:
        return np.full(sums.size, mean)
    each: NDArray[np.float64] = mean + sums * sums.size / values.size
    return each


def group_means(
    values: NDArray[np.floating], groups: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Mean and size of each of G groups of values (N,).

    Example: group_means(np.array([0.0, 1.0, 0.5]), np.array([7, 7, 9])) -> [0.5, 0.5], [2, 1]
    """
    _, member, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    means = np.bincount(member, weights=values.astype(np.float64)) / sizes
    # rounded: sums of equal values in groups of unlike size are not quite equal
    return np.round(means / _SAME) * _SAME, sizes
