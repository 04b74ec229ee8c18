"""Learned step size quantization: scales that training moves (Esser et al. 2020, arXiv:1902.08153).

`fake.py` has scales that are read from values; here they have a gradient. The parameter that an
optimizer moves is the logarithm of the scale: a scale stays positive, and a step of Adam, whose
size does not depend on the gradient's, changes all scales by the same factor at most (Jain et al.
2020, arXiv:1903.08066, section 3.2).
"""

from __future__ import annotations

from math import sqrt
from typing import Any

import torch
from torch import Tensor


class LearnedStep(torch.autograd.Function):
    """Round to the grid, with the gradients of Esser et al., equations 1 to 3, for `x` and `scale`.

    With v = x / scale, the gradient of the rounded value is

        by scale    round(v) - v  inside the grid, `low` or `high` beyond its ends
        by x        1 inside the grid, 0 beyond

    and that by scale is multiplied by 1 / sqrt(features * high) (section 2.2), so that scales and
    weights move at like relative rates. Rounds as `StraightThrough` does.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, low: int, high: int, features: int) -> Tensor:
        """`x` of any shape; `scale` has its number of dimensions, or none, and is broadcast to it.

        `features`: how many values share a scale, those of one sample for an activation.
        """
        ctx.save_for_backward(x, scale)
        ctx.grid = low, high, features
        return (torch.round(x.float() / scale).clamp_(low, high) * scale).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients by `x` and by `scale`."""
        x, scale = ctx.saved_tensors
        low, high, features = ctx.grid
        v = x.float() / scale
        inside = (v > low) & (v < high)
        slope = torch.round(v).clamp_(low, high) - v * inside
        by_scale = (gradients[0].float() * slope).sum_to_size(scale.shape)
        return gradients[0] * inside, by_scale / sqrt(features * high), None, None, None
