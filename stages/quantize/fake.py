"""Fake quantizers: modules that round as int8 would while the network trains in float.

Activations have one scale for a tensor, weights one for each output channel; both are symmetric.
What a runtime computes after training is written by `emit.py`, with the operators of `ops.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn

from kdpipe.stages.quantize.observers import Observer
from kdpipe.targets.errors import StageError


class StraightThrough(torch.autograd.Function):
    """Round to the grid; the gradient passes unchanged inside it and is zero where it clips.

    The straight-through estimator of Bengio et al. 2013 with clipping (Jacob et al. 2018). It
    divides by the scale, and does not multiply by its inverse, so that each value falls on the
    same side of a tie as in ONNX QuantizeLinear. Computes in fp32 and returns the dtype of `x`.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, low: int, high: int) -> Tensor:
        """`x` of any shape, `scale` broadcast to it."""
        steps = torch.round(x.float() / scale)
        ctx.save_for_backward((steps >= low) & (steps <= high))
        return (steps.clamp_(low, high) * scale).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient, where the forward pass did not clip."""
        (inside,) = ctx.saved_tensors
        return gradients[0] * inside, None, None, None


@dataclass(frozen=True)
class Grid:
    """The integers of a signed format. Example: Grid(8) -> -128..127."""

    bits: int = 8

    @property
    def low(self) -> int:
        """The smallest integer."""
        return -(1 << (self.bits - 1))

    @property
    def high(self) -> int:
        """The largest integer; a symmetric scale maps the largest magnitude to it."""
        return (1 << (self.bits - 1)) - 1

    def round(self, x: Tensor, scale: Tensor) -> Tensor:
        """`x` rounded to multiples of `scale`, with a gradient."""
        rounded: Tensor = StraightThrough.apply(  # type: ignore[no-untyped-call]
            x, scale, self.low, self.high
        )
        return rounded


class Mode(Enum):
    """What quantizers do with what passes through them."""

    FLOAT = "pass it on"
    OBSERVE = "pass it on and note its range"
    QUANTIZE = "round it"


class Quantizer(nn.Module):
    """What both kinds of fake quantizer have: a grid and a mode, FLOAT at first."""

    def __init__(self, grid: Grid) -> None:
        super().__init__()
        self.grid = grid
        self.mode = Mode.FLOAT


class ActivationQuantizer(Quantizer):
    """One scale for all tensors that pass through; `label` is what error messages call it.

    Its only state is `scale`, a scalar buffer; 0 means not calibrated.
    """

    scale: Tensor

    def __init__(self, grid: Grid, observer: Observer, label: str) -> None:
        super().__init__(grid)
        self.observer = observer
        self.label = label
        self.register_buffer("scale", torch.zeros(()))

    @property
    def calibrated(self) -> bool:
        """Whether a scale has been set."""
        return self.scale.item() > 0

    def forward(self, x: Tensor) -> Tensor:
        """`x` as it is, or rounded to the grid, by mode."""
        if self.mode is Mode.OBSERVE:
            self.observer.see(x)
        if self.mode is not Mode.QUANTIZE:
            return x
        return self.grid.round(x, self.scale)

    def settle(self) -> None:
        """Set the scale from the observed range; raises StageError when there is none to use."""
        low, high = self.observer.range or (0.0, 0.0)
        magnitude = max(-low, high)
        if low == high == 0.0:
            raise StageError(
                f"cannot calibrate {self.label}: it was zero for every calibration sample",
                found="a dead activation, or calibration samples that are all alike",
                fix="check the trained accuracy of the model and the calibration split",
            )
        with torch.no_grad():
            self.scale.fill_(max(magnitude / self.grid.high, torch.finfo(torch.float32).tiny))


class WeightQuantizer(Quantizer):
    """One scale for each output channel along `axis`, from the weight as it is now."""

    def __init__(self, grid: Grid, axis: int) -> None:
        super().__init__(grid)
        self.axis = axis

    def scale(self, weight: Tensor) -> Tensor:
        """Largest magnitude of each channel over the grid's end, shaped to broadcast."""
        others = [i for i in range(weight.ndim) if i != self.axis]
        peak = weight.detach().float().abs().amax(others, keepdim=True)
        # A channel pruned to zero still needs a scale that can be divided by.
        return peak.clamp_min(1e-8) / self.grid.high

    def forward(self, weight: Tensor) -> Tensor:
        """`weight` as it is, or rounded to the grid, by mode."""
        if self.mode is not Mode.QUANTIZE:
            return weight
        return self.grid.round(weight, self.scale(weight))

    def integers(self, weight: Tensor) -> Tensor:
        """The weight as int8, in steps of `scale`."""
        steps = torch.round(weight.detach().float() / self.scale(weight))
        return steps.clamp(self.grid.low, self.grid.high).to(torch.int8)
