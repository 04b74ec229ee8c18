"""Ranges from the distribution of magnitudes: least squared error, and least information lost.

Both keep one histogram of |x| of a fixed size for all calibration batches, and cut off the tail
where the finer steps below gain more than clipping loses.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from kdpipe.stages.quantize.observers import Observer, Range

BINS = 2048
"""Bins of a histogram, as in TensorRT's calibrator; an even number."""


class _Histogram(Observer):
    """Counts magnitudes in `BINS` equal bins from 0 to `limit`."""

    def reset(self) -> None:
        """See Observer."""
        super().reset()
        self.counts = torch.zeros(BINS, dtype=torch.float64)
        self.limit = 0.0

    @property
    def range(self) -> Range | None:
        """See Observer; both ends lie within what was seen."""
        if self.extent is None:
            return None
        low, high = self.extent
        end = self._clip() if self.limit else 0.0
        return max(low, -end), min(high, end)

    @abstractmethod
    def _clip(self) -> float:
        """The magnitude above which values are clipped; `limit` is positive."""

    def _note(self, x: Tensor, low: float, high: float) -> None:
        peak = max(-low, high)
        self.limit = self.limit or peak
        while self.limit < peak:
            # Two old bins are exactly one new bin: no count is ever moved to a wrong one.
            pairs = self.counts.view(-1, 2).sum(1)
            self.counts = torch.cat([pairs, torch.zeros_like(pairs)])
            self.limit *= 2
        if self.limit:
            counts = torch.histc(x.abs(), BINS, 0, self.limit)
            self.counts += counts.to("cpu", torch.float64)


class LeastSquares(_Histogram):
    """The range whose rounding and clipping together have the least mean squared error.

    As in Banner et al. 2019 (arXiv:1810.05723), who solve it for a Laplace and a normal
    distribution; here `candidates` equally spaced ranges are tried on the histogram itself.
    """

    def __init__(self, candidates: int = 128) -> None:
        super().__init__()
        self.candidates = candidates

    def _clip(self) -> float:
        width = self.limit / BINS
        centers = (torch.arange(BINS, dtype=torch.float64) + 0.5) * width
        shares = torch.arange(1, self.candidates + 1, dtype=torch.float64) / self.candidates
        clips = shares * self.limit
        steps = (clips / self.levels).unsqueeze(1)
        rounded = (centers / steps).round().clamp(max=self.levels) * steps
        errors = (centers - rounded).square() @ self.counts
        return float(clips[errors.argmin()])


class Entropy(_Histogram):
    """The range that keeps most information: TensorRT's calibrator (Migacz 2017, "8-bit Inference
    with TensorRT", GTC).

    Among clipped histograms P of the first `i` bins, the tail added to the last one, it takes the
    one with the least Kullback-Leibler divergence KL(P || Q) from Q, which has only the grid's
    levels. Every `stride`-th `i` is tried. Zeros are on every grid: like TensorRT it takes the
    count of the first bin, where those of a ReLU are, to be that of the second.
    """

    def __init__(self, stride: int = 16) -> None:
        super().__init__()
        self.stride = stride

    def _clip(self) -> float:
        counts = self.counts.clone()
        counts[0] = counts[1]
        tails = counts.sum() - counts.cumsum(0)
        first = self.levels + 1
        kept = range(first, BINS + 1, self.stride)
        losses = [_divergence(counts[:i], float(tails[i - 1]), first) for i in kept]
        return self.limit * kept[min(range(len(losses)), key=losses.__getitem__)] / BINS


def _divergence(kept: Tensor, tail: float, levels: int) -> float:
    """KL(P || Q) for `kept` counts (i,), with the `tail` in the last bin of P."""
    used = kept > 0
    level = torch.arange(len(kept)) * levels // len(kept)
    total = torch.zeros(levels, dtype=kept.dtype).index_add_(0, level, kept)
    bins = torch.zeros(levels, dtype=kept.dtype).index_add_(0, level, used.to(kept.dtype))
    # A level's count is spread over those of its bins that were not empty.
    q = torch.where(used, (total / bins.clamp_min(1))[level], 0)
    p = kept.clone()
    p[-1] += tail
    if p.sum() == 0 or q.sum() == 0:
        return float("inf")
    p, q = p / p.sum(), q / q.sum()
    # A tail that falls into an empty bin is where Q has nothing: an infinite divergence.
    some = p > 0
    return float((p[some] * (p[some] / q[some]).log()).sum())
