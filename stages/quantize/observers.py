"""Observers: how the range of an activation is read from calibration batches; `fake.py` uses it.

A new way to choose a range is one more subclass of `Observer` here, named in a `Policy`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor


class Observer(ABC):
    """Follows one scale. `see` is called for every tensor of a batch, then `end_batch` once."""

    def __init__(self) -> None:
        self._batch: tuple[float, float] | None = None
        self.range: tuple[float, float] | None = None
        """(low, high) so far, or None before the first batch."""

    def reset(self) -> None:
        """Forget everything seen."""
        self._batch = self.range = None

    def see(self, x: Tensor) -> None:
        """Widen this batch's range to hold the range of `x`; NaN stays NaN."""
        low, high = self._extent(x.detach().float())
        if self._batch is not None:
            low, high = min(low, self._batch[0]), max(high, self._batch[1])
        self._batch = (low, high)

    def end_batch(self) -> None:
        """Let the finished batch move the range."""
        if self._batch is not None:
            self.range = self._batch if self.range is None else self._merge(self.range, self._batch)
        self._batch = None

    @abstractmethod
    def _extent(self, x: Tensor) -> tuple[float, float]:
        """The range that one tensor asks for."""

    def _merge(self, old: tuple[float, float], new: tuple[float, float]) -> tuple[float, float]:
        """The range after a batch; here everything seen so far."""
        return min(old[0], new[0]), max(old[1], new[1])


class MovingRange(Observer):
    """Minimum and maximum, averaged over batches with momentum (Jacob et al. 2018, section 3.1).

    One batch with an outlier moves the range by a tenth of the outlier only.
    """

    def __init__(self, momentum: float = 0.1) -> None:
        super().__init__()
        self.momentum = momentum

    def _extent(self, x: Tensor) -> tuple[float, float]:
        low, high = x.aminmax()
        return low.item(), high.item()

    def _merge(self, old: tuple[float, float], new: tuple[float, float]) -> tuple[float, float]:
        low, high = (a + self.momentum * (b - a) for a, b in zip(old, new, strict=True))
        return low, high


class Percentile(Observer):
    """The range that holds `percent` of the values at each end, for heavy-tailed activations.

    Large tensors are read at regular strides: torch.quantile takes 16 million values at most.
    """

    def __init__(self, percent: float = 99.99, sample: int = 1 << 20) -> None:
        super().__init__()
        self.percent = percent
        self.sample = sample

    def _extent(self, x: Tensor) -> tuple[float, float]:
        values = x.flatten()
        values = values[:: -(-values.numel() // self.sample)]
        ends = torch.tensor([1 - self.percent / 100, self.percent / 100], device=x.device)
        low, high = torch.quantile(values, ends).tolist()
        return low, high
