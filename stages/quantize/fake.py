"""Fake quantizers: modules that round as int8 would while the network trains in float.

Activations have one scale for a tensor, weights one for each output channel; both are symmetric.
Scales follow from values, or are parameters of their own (`lsq.py`). What a runtime computes after
training is written by `emit.py`, with the operators of `ops.py`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn

from kdpipe.stages.quantize.lsq import LearnedStep
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

    def round_learned(self, x: Tensor, scale: Tensor, features: int) -> Tensor:
        """`x` rounded to multiples of `scale`, with a gradient for both; see `LearnedStep`."""
        rounded: Tensor = LearnedStep.apply(  # type: ignore[no-untyped-call]
            x, scale, self.low, self.high, features
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


TRACKING_MOMENTUM = 0.01
"""How far one training step moves a tracked scale, as in torch.ao's quantization-aware training."""


class ActivationQuantizer(Quantizer):
    """One scale for all tensors that pass through; `label` is what error messages call it.

    State: `scale`, a scalar, 0 when not calibrated, or `log_scale`, a parameter, if `learned`; and
    `ratio`, what calibration found to be the scale of a batch of `Observer.size` one.
    """

    scale: Tensor
    ratio: Tensor
    size: Tensor

    def __init__(
        self, grid: Grid, observer: Observer, label: str, *, learned: bool = False
    ) -> None:
        super().__init__(grid)
        self.observer = observer
        observer.levels = grid.high
        self.label = label
        self.tracking = False
        self.log_scale = nn.Parameter(torch.tensor(-math.inf)) if learned else None
        if not learned:
            self.register_buffer("scale", torch.zeros(()))
        self.register_buffer("ratio", torch.zeros(()))
        self.register_buffer("size", torch.zeros(()), persistent=False)

    @property
    def learned(self) -> bool:
        """Whether training moves the scale."""
        return self.log_scale is not None

    @property
    def calibrated(self) -> bool:
        """Whether a scale has been set."""
        return self.step().item() > 0

    def step(self) -> Tensor:
        """The scale, a scalar; with its gradient if it is learned."""
        return self.scale if self.log_scale is None else self.log_scale.exp()

    def forward(self, x: Tensor) -> Tensor:
        """`x` (N, ...) as it is, or rounded to the grid, by mode."""
        if self.mode is Mode.OBSERVE:
            self.observer.see(x)
        if self.mode is not Mode.QUANTIZE:
            return x
        if self.learned:
            return self.grid.round_learned(x, self.step(), x[0].numel())
        if self.tracking:
            size = self.observer.size(x.detach().float())
            self.size.copy_(torch.maximum(self.size, size))
        return self.grid.round(x, self.scale)

    def follow(self) -> None:
        """Let the batch that passed since the last call move the scale; one that is all zeros or
        not finite does not."""
        target = self.ratio * self.size
        moved = torch.lerp(self.scale, target, TRACKING_MOMENTUM)
        self.scale.copy_(torch.where((target > 0) & target.isfinite(), moved, self.scale))
        self.size.zero_()

    def settle(self) -> None:
        """Set the scale from the observed range; raises StageError when there is none to use."""
        low, high = self.observer.range or (0.0, 0.0)
        magnitude = max(-low, high)
        if magnitude == 0.0:
            raise StageError(
                f"cannot calibrate {self.label}: it was zero for every calibration sample",
                found="a dead activation, or calibration samples that are all alike",
                fix="check the trained accuracy of the model and the calibration split",
            )
        scale = max(magnitude / self.grid.high, torch.finfo(torch.float32).tiny)
        with torch.no_grad():
            if self.log_scale is not None:
                self.log_scale.fill_(math.log(scale))
            else:
                self.scale.fill_(scale)
            self.ratio.fill_(scale / (self.observer.average or magnitude))


class WeightQuantizer(Quantizer):
    """One scale for each output channel along `axis`, from the weight as it is now.

    With `learned` channels given, the logarithms of those scales are a parameter (channels,).
    """

    def __init__(self, grid: Grid, axis: int, *, learned: int | None = None) -> None:
        super().__init__(grid)
        self.axis = axis
        self.log_scale = None if learned is None else nn.Parameter(torch.zeros(learned))

    def scale(self, weight: Tensor) -> Tensor:
        """The positive scale of each channel, shaped to broadcast: its largest magnitude over the
        grid's end, or what is learned, with a gradient."""
        if self.log_scale is None:
            return self._peak_scale(weight)
        shape = [1] * weight.ndim
        shape[self.axis] = -1
        return self.log_scale.exp().view(shape)

    def settle(self, weight: Tensor) -> None:
        """Start learned scales from the largest magnitude of each channel."""
        if self.log_scale is not None:
            with torch.no_grad():
                self.log_scale.copy_(self._peak_scale(weight).flatten().log())

    def forward(self, weight: Tensor) -> Tensor:
        """`weight` as it is, or rounded to the grid, by mode."""
        if self.mode is not Mode.QUANTIZE:
            return weight
        if self.log_scale is not None:
            features = weight.numel() // self.log_scale.numel()
            return self.grid.round_learned(weight, self.scale(weight), features)
        return self.grid.round(weight, self.scale(weight))

    def integers(self, weight: Tensor) -> Tensor:
        """The weight as int8, in steps of `scale`; a 4-bit grid takes -8..7 of it."""
        steps = torch.round(weight.detach().float() / self.scale(weight).detach())
        return steps.clamp(self.grid.low, self.grid.high).to(torch.int8)

    def _peak_scale(self, weight: Tensor) -> Tensor:
        others = [i for i in range(weight.ndim) if i != self.axis]
        peak = weight.detach().float().abs().amax(others, keepdim=True)
        # A channel pruned to zero still needs a scale that can be divided by.
        return peak.clamp_min(1e-8) / self.grid.high
