"""The trt flavour with an fp16 body."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto

from kdpipe.stages.quantize.emit import PARITY_STEPS, StoredWeight, emit
from kdpipe.targets.errors import StageError, UsageError


def test_float_parts_are_fp16_between_fp32_ends(case, images) -> None:
    """No fp32 weight or scale is left; the file is valid, runs, and is near the fp32 body's."""
    emitted, model, x = case.emitted["half"], case.quantized, images(64, seed=9)
    file = onnx.load(case.files["half"])
    onnx.checker.check_model(file, full_check=True)
    # ONNX has the factors of Resize in fp32, whatever it resizes.
    factors = {name for n in file.graph.node if n.op_type == "Resize" for name in n.input[1:]}
    kinds = {t.data_type for t in file.graph.initializer if t.name not in factors}
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(case.files["half"], options)
    with torch.no_grad():
        expected, exact = emitted(x), model(x)
    actual = session.run(None, {"input": x.numpy()})[0]
    step = exact.abs().max().item() / 127

    assert TensorProto.FLOAT16 in kinds
    assert TensorProto.FLOAT not in kinds
    assert [v.type.tensor_type.elem_type for v in (*file.graph.input, *file.graph.output)] == [1, 1]
    assert expected.dtype is torch.float32
    assert np.abs(actual - expected.numpy()).max() < PARITY_STEPS * step
    assert (expected - exact).abs().max() < PARITY_STEPS * step


def test_a_weak_channel_has_a_scale_that_fp16_rounds(quantized, images) -> None:
    """Weights below 0.008 have scales among fp16's subnormal numbers, which are exact enough."""
    model, x = quantized("residual"), images(32, seed=9)
    with torch.no_grad():
        model.body.get_parameter("head.weight").mul_(0.02)
        model.body.get_parameter("head.bias").zero_()
        emitted, exact = emit(model, "trt", half=True), model(x)
        (scale,) = [
            module.scale
            for name, module in emitted.body.named_children()
            if "linear" in name and isinstance(module, StoredWeight)
        ]

        assert scale.max() < torch.finfo(torch.float16).tiny
        assert (emitted(x) - exact).abs().max() < PARITY_STEPS * exact.abs().max() / 127


def test_a_pruned_channel_needs_no_small_scale(quantized, images) -> None:
    """A channel of zeros is zero at any scale; others must fit fp16's range."""
    model = quantized("residual")
    weight = model.body.get_parameter("head.weight")
    with torch.no_grad():
        weight[0] = 0
        assert emit(model, "trt", half=True)(images(2)).isfinite().all()
        weight[1] = 1e-6
    with pytest.raises(StageError, match="too small for fp16"):
        emit(model, "trt", half=True)


def test_only_trt_has_a_half_body(quantized) -> None:
    """CPUs gain nothing from it."""
    with pytest.raises(UsageError, match="trt"):
        emit(quantized("residual"), "cpu", half=True)
