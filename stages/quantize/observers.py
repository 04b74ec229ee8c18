"""How the range of an activation is read from calibration batches; `fake.py` uses it.

A new way to choose a range is one more subclass of `Observer`, named in a `Policy`. Those that
need to know how values are distributed are in `histograms.py`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from math import isfinite

import torch
from torch import Tensor

Range = tuple[float, float]

MOMENTUM = 0.1
"""How far one calibration batch moves an average over batches."""


class Observer(ABC):
    """Follows one scale. `see` is called for every tensor of a batch, then `end_batch` once."""

    levels: int = 127
    """The largest integer of the grid that the range is chosen for; its quantizer sets it."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget everything seen."""
        self.extent: Range | None = None
        """(minimum, maximum) of everything seen; stays NaN or infinite once it was."""
        self.average: float | None = None
        """The `size` of a batch, averaged over batches; of several tensors the largest."""
        self._batch: float | None = None

    def see(self, x: Tensor) -> None:
        """Take in one tensor of any shape."""
        x = x.detach().float()
        low, high = (end.item() for end in x.aminmax())
        self.extent = _widened(self.extent, (low, high))
        self._batch = max(self.size(x).item(), self._batch or 0.0)
        if isfinite(low) and isfinite(high):
            self._note(x, low, high)

    def end_batch(self) -> None:
        """Let the finished batch count."""
        if self._batch is not None:
            old = self._batch if self.average is None else self.average
            self.average = old + MOMENTUM * (self._batch - old)
        self._batch = None

    def size(self, x: Tensor) -> Tensor:
        """What a range that goes on moving in training is proportional to, a scalar.

        The mean magnitude: unlike the largest, it hardly changes when earlier layers clip.
        """
        return x.abs().mean()

    @property
    @abstractmethod
    def range(self) -> Range | None:
        """(low, high) to map onto the grid, or None before the first batch has ended."""

    @abstractmethod
    def _note(self, x: Tensor, low: float, high: float) -> None:
        """Remember what the range depends on; `x` is finite and lies in `low`..`high`."""


class _BatchRanges(Observer):
    """Chooses a range for each batch, and one from those of all batches."""

    def reset(self) -> None:
        """See Observer."""
        super().reset()
        self._range: Range | None = None
        self._batch_range: Range | None = None

    def end_batch(self) -> None:
        """See Observer."""
        super().end_batch()
        if self._batch_range is not None:
            new = self._batch_range
            self._range = new if self._range is None else self._merge(self._range, new)
        self._batch_range = None

    @property
    def range(self) -> Range | None:
        """See Observer."""
        return self._range

    def _note(self, x: Tensor, low: float, high: float) -> None:
        self._batch_range = _widened(self._batch_range, self._chosen(x, low, high))

    @abstractmethod
    def _chosen(self, x: Tensor, low: float, high: float) -> Range:
        """The range that one tensor asks for."""

    @abstractmethod
    def _merge(self, old: Range, new: Range) -> Range:
        """The range after a batch."""


class MovingRange(_BatchRanges):
    """Minimum and maximum, averaged over batches with momentum (Jacob et al. 2018, section 3.1).

    One batch with an outlier moves the range by a tenth of the outlier only.
    """

    def __init__(self, momentum: float = MOMENTUM) -> None:
        super().__init__()
        self.momentum = momentum

    def size(self, x: Tensor) -> Tensor:
        """The largest magnitude: this range clips nothing."""
        return x.abs().amax()

    def _chosen(self, x: Tensor, low: float, high: float) -> Range:
        return low, high

    def _merge(self, old: Range, new: Range) -> Range:
        low, high = (a + self.momentum * (b - a) for a, b in zip(old, new, strict=True))
        return low, high


class Percentile(_BatchRanges):
    """The range that holds `percent` of the values at each end, for heavy-tailed activations.

    It is the widest one over all batches. Large tensors are read at regular strides:
    torch.quantile takes 16 million values at most.
    """

    def __init__(self, percent: float = 99.99, sample: int = 1 << 20) -> None:
        super().__init__()
        self.percent = percent
        self.sample = sample

    def _chosen(self, x: Tensor, low: float, high: float) -> Range:
        values = x.flatten()
        values = values[:: -(-values.numel() // self.sample)]
        ends = torch.tensor([1 - self.percent / 100, self.percent / 100], device=x.device)
        low, high = torch.quantile(values, ends).tolist()
        return low, high

    def _merge(self, old: Range, new: Range) -> Range:
        return _widened(old, new)


def _widened(old: Range | None, new: Range) -> Range:
    """The range that holds both; an end that is not finite stays so."""
    if old is None or not all(map(isfinite, new)):
        return new
    if not all(map(isfinite, old)):
        return old
    return min(old[0], new[0]), max(old[1], new[1])
