"""What a baseline remembers of its samples, and intervals from it: a mean, a variance, a number.

The ratio of two remembered latencies has the very interval that the raw samples would give. Scores
that were not kept sample by sample can no longer be paired: their difference is less certain.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from kdpipe.stages.statistics.bounded import bounded_mean
from kdpipe.stages.statistics.clusters import group_values
from kdpipe.stages.statistics.distributions import rate_bounds, t_quantile
from kdpipe.stages.statistics.intervals import Array, Groups, Interval
from kdpipe.stages.statistics.means import variance

_ROUNDED = 1e-4
"""Nearer than this two variances of scores are the same: a lock file keeps a few decimals."""


class Logs(Protocol):
    """Mean and unbiased variance of the mean log latencies of so many processes."""

    @property
    def mean(self) -> float:
        """Mean over processes of the mean log."""

    @property
    def variance(self) -> float:
        """Unbiased variance between processes, 0 for a single one."""

    @property
    def processes(self) -> int:
        """How many there were."""


class LogSummary(NamedTuple):
    """`Logs` as plain values."""

    mean: float
    variance: float
    processes: int


class ScoreSummary(NamedTuple):
    """Mean score from 0 to 1 and variance of a single replicate, a sample or a group of them."""

    mean: float
    variance: float
    n: int


def log_mean(processes: Sequence[Array]) -> LogSummary:
    """What `ratio_of` needs of latencies: one array for each process, of any positive unit."""
    logs = np.array([np.log(samples).mean() for samples in processes])
    return LogSummary(float(logs.mean()), variance(logs), logs.size)


def ratio_of(reference: Logs, artifact: Logs, confidence: float) -> Interval:
    """How many times faster `artifact` is than `reference`: ratio of geometric mean latencies.

    Welch's t interval (Biometrika 34, 28, 1947) on the mean log latency of each process, then
    exp(). `variance` is the sum of both sides, for as many processes on each. One process on a side
    gives no bounds. The same processes give what `latency_ratio` gives.
    """
    centre = reference.mean - artifact.mean
    counts = (reference.processes, artifact.processes)
    errors = (reference.variance / counts[0], artifact.variance / counts[1])
    freedom = welch_freedom(errors, (counts[0] - 1, counts[1] - 1))
    low, high = exp_bounds(centre, sum(errors), freedom, confidence)
    both = reference.variance + artifact.variance
    return Interval(math.exp(centre), low, high, min(counts), both)


def welch_freedom(errors: Sequence[float], freedoms: Sequence[int]) -> float:
    """Welch and Satterthwaite's degrees of freedom of a sum of any number of independent means.

    0 where one of them has a single process.
    """
    smallest = min(freedoms)
    if smallest == 0 or sum(errors) == 0:  # without spread any freedom gives the same bounds
        return float(smallest)
    parts = sum(error**2 / freedom for error, freedom in zip(errors, freedoms, strict=True))
    return sum(errors) ** 2 / parts


def exp_bounds(
    centre: float, error: float, freedom: float, confidence: float
) -> tuple[float, float]:
    """exp(centre -+ t sqrt(error)), `error` a squared standard error; (0, inf) without freedom."""
    if freedom <= 0:
        return 0.0, math.inf
    reach = t_quantile(confidence, freedom) * math.sqrt(error)
    return math.exp(centre - reach), math.exp(centre + reach) if centre + reach < 700 else math.inf


def score_summary(scores: Array, groups: Groups | None = None) -> ScoreSummary:
    """What `unpaired_drop` needs of scores (N,): of its groups, where only those are independent.

    Raises ValueError when there are no scores.
    """
    if scores.ndim != 1 or not scores.size:
        raise ValueError(f"scores of shape {scores.shape} have no mean")
    values = scores.astype(np.float64)
    each = values if groups is None else group_values(values, groups)
    return ScoreSummary(float(values.mean()), variance(each), each.size)


def unpaired_drop(reference: ScoreSummary, artifact: ScoreSummary, confidence: float) -> Interval:
    """The drop reference - artifact of two mean scores of different samples, with its bounds.

    Newcombe's hybrid of single intervals (Statist. Med. 17, 873, 1998, method 10): the distances of
    the bounds to their points add as squares. Scores of 0 and 1 get `rate_bounds`, fractions and
    groups `bounded_mean` as far as mean and variance tell. That two models tend to fail on the same
    samples is not used: then it is too wide, not too narrow. A single replicate gives no bounds.
    `variance` is the sum of both.
    """
    drop = reference.mean - artifact.mean
    low_r, high_r = _mean_bounds(reference, confidence)
    low_a, high_a = _mean_bounds(artifact, confidence)
    low = drop - math.hypot(reference.mean - low_r, high_a - artifact.mean)
    high = drop + math.hypot(high_r - reference.mean, artifact.mean - low_a)
    both = reference.variance + artifact.variance
    return Interval(drop, low, high, min(reference.n, artifact.n), both)


def _mean_bounds(summary: ScoreSummary, confidence: float) -> tuple[float, float]:
    """Bounds of a mean score from its summary alone."""
    mean, n = summary.mean, summary.n
    if _is_binary(summary):
        return rate_bounds(round(mean * n), n, confidence)
    if n < 2:
        return -math.inf, math.inf
    spread = math.sqrt(summary.variance * (n - 1) / n)
    alike = mean + spread * np.resize([-1.0, 1.0], n)  # what is known of the scores
    return bounded_mean(alike, 0.0, 1.0, confidence)


def _is_binary(summary: ScoreSummary) -> bool:
    """Whether scores are 0 and 1: no others from 0 to 1 vary by as much as mean (1 - mean)."""
    if summary.n < 2:
        return False
    most = summary.mean * (1 - summary.mean)
    unbiased = most * summary.n / (summary.n - 1)
    return most - _ROUNDED <= summary.variance <= unbiased + _ROUNDED
