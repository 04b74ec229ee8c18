"""Latencies: means, percentiles and ratios, where the process is the replicate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kdpipe.stages.statistics.autocorrelation import effective_iterations
from kdpipe.stages.statistics.distributions import binomial_cdf, check_fraction
from kdpipe.stages.statistics.intervals import Array, Interval
from kdpipe.stages.statistics.means import around, variance
from kdpipe.stages.statistics.summaries import exp_bounds, log_mean, ratio_of


def order_bounds(n: int, percentile: float, confidence: float) -> tuple[int | None, int | None]:
    """Which sorted samples (1-based) bound a percentile (0 to 1) from below and from above.

    The largest l with F(l - 1) <= 1 - confidence and the smallest u with F(u - 1) >= confidence,
    F the Binomial(n, percentile) distribution; None where n is too small for that side.
    """
    check_fraction(percentile=percentile, confidence=confidence)
    cdf = binomial_cdf(np.arange(n), n, percentile)
    # 1e-12: with the fewest samples that suffice, F may equal the confidence to the last bit
    low = int((cdf <= 1 - confidence + 1e-12).sum())
    high = int((cdf < confidence - 1e-12).sum()) + 1
    return (low if low > 0 else None, high if high <= n else None)


def mean_latency(processes: Sequence[Array], confidence: float) -> Interval:
    """Mean of all iterations; bounds from the log means of the processes (the replicates)."""
    logs = np.log([samples.mean() for samples in processes])
    low, high = _process_bounds(logs, confidence)
    return around(float(np.concatenate(processes).mean()), low, high, logs)


def latency_percentile(
    processes: Sequence[Array], percentile: float, confidence: float
) -> Interval:
    """Percentile (0 to 1) of all iterations, with bounds of that of a typical process.

    Two doubts count, the wider bound wins. Iterations of a process resemble one another: t
    interval over the logs of each process's percentile. The tail is thin: order statistics of the
    pooled iterations, at the ranks that `effective_iterations` give, as neighbours repeat one
    another. The bounds always hold the pooled point, too, but they do not bound the percentile
    over all processes there may ever be: that takes `needed_samples` processes. With fewer
    effective iterations than `needed_samples`, or with a single process, there are no bounds.
    """
    pooled = np.sort(np.concatenate(processes))
    point = float(np.quantile(pooled, percentile))
    # type 8 of Hyndman and Fan (1996): numpy's default is biased low in the tail of one process
    each = [np.quantile(samples, percentile, method="median_unbiased") for samples in processes]
    logs = np.log(each)
    effective = effective_iterations(processes, percentile)
    first, last = order_bounds(effective, percentile, confidence)
    if last is None:
        return around(point, 0.0, math.inf, logs)
    low, high = _process_bounds(logs, confidence)
    share = pooled.size / effective  # the same quantile of all that there are: no sample is lost
    thin = float(pooled[math.floor(first * share) - 1]) if first else 0.0
    thick = float(pooled[min(math.ceil(last * share), pooled.size) - 1])
    return around(point, min(low, thin), max(high, thick), logs)


def latency_ratio(
    reference: Sequence[Array], artifact: Sequence[Array], confidence: float
) -> Interval:
    """How many times faster `artifact` is than `reference`: ratio of geometric mean latencies.

    Welch's t interval on the mean log latency of each process, see `ratio_of`.
    """
    return ratio_of(log_mean(reference), log_mean(artifact), confidence)


@dataclass(frozen=True)
class NoiseFloor:
    """What a measurement finds between an artifact and itself.

    `ratio`: the artifact over itself, 1 if there were no noise. `floor`: how far from 1 its bounds
    reach, as a fraction of the smaller: 0.02 says that factors up to 1.02 may be noise.
    """

    ratio: Interval
    floor: float


def noise_floor(artifact: Sequence[Array], again: Sequence[Array], confidence: float) -> NoiseFloor:
    """The smallest difference that counts, from an artifact timed twice in turns (A/A).

    The largest distance from 1 that the bounds of `latency_ratio` reach, on either side: a third
    measurement of the same artifact, in as many processes, differs by less in at least 97 % of
    cases at a confidence of 0.95. A ratio of other artifacts within it is a tie. Infinite with a
    single process on a side.
    """
    ratio = latency_ratio(artifact, again, confidence)
    down = 1 / ratio.low if ratio.low > 0 else math.inf
    return NoiseFloor(ratio, max(ratio.high, down) - 1)


def _process_bounds(logs: Array, confidence: float) -> tuple[float, float]:
    """Student's t bounds of exp(mean), one logarithm for each process."""
    error = variance(logs) / logs.size
    return exp_bounds(float(logs.mean()), error, logs.size - 1, confidence)
