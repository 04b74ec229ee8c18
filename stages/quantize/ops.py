"""The two operators an emitted graph adds to ATen: what each computes, and what it is in ONNX.

`fake.py` rounds while training and passes gradients; these only state what a runtime will do.
torch's own `fake_quantize_*` operators are not used: torch.onnx cannot export them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


@torch.library.custom_op("kdpipe::requantize", mutates_args=())
def requantize(x: Tensor, scale: Tensor, zero_point: int, low: int, high: int) -> Tensor:
    """Round `x` to the grid and come back: QuantizeLinear, then DequantizeLinear (ONNX opset 19).

    `scale` is a scalar; `low`..`high` is 0..255 (uint8) or -128..127 (int8). Rounds half to even.
    """
    steps = (torch.round(x / scale) + zero_point).clamp(low, high)
    return (steps - zero_point) * scale


@requantize.register_fake
def _(x: Tensor, scale: Tensor, zero_point: int, low: int, high: int) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("kdpipe::dequantize", mutates_args=())
def dequantize(weight: Tensor, scale: Tensor, axis: int) -> Tensor:
    """An int8 weight times the `scale` (C,) of each channel along `axis`: DequantizeLinear."""
    shape = [1] * weight.ndim
    shape[axis] = -1
    return weight.to(scale.dtype) * scale.view(shape)


@dequantize.register_fake
def _(weight: Tensor, scale: Tensor, axis: int) -> Tensor:
    return torch.empty_like(weight, dtype=scale.dtype)


def translation_table() -> dict[Any, Callable[..., Any]]:
    """How torch.onnx writes the two operators, for its `custom_translation_table`."""
    from onnx import TensorProto
    from onnx.helper import make_tensor
    from onnxscript import opset20 as op

    def onnx_requantize(x: Any, scale: Any, zero_point: int, low: int, high: int) -> Any:
        kind = TensorProto.UINT8 if low == 0 else TensorProto.INT8
        zero = op.Constant(value=make_tensor("zero_point", kind, [], [zero_point]))
        return op.DequantizeLinear(op.QuantizeLinear(x, scale, zero), scale, zero)

    def onnx_dequantize(weight: Any, scale: Any, axis: int) -> Any:
        channels = int(weight.shape[axis])
        zeros = make_tensor("zero_points", TensorProto.INT8, [channels], [0] * channels)
        # The axis is always written: ONNX's default is 1, right for ConvTranspose alone.
        return op.DequantizeLinear(weight, scale, op.Constant(value=zeros), axis=axis)

    return {
        torch.ops.kdpipe.requantize.default: onnx_requantize,
        torch.ops.kdpipe.dequantize.default: onnx_dequantize,
    }
