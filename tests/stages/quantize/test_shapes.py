"""Networks of other dimensions and operators: one and three dimensions, h-swish, upsampling."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdpipe.stages.onnx_export import export_onnx
from kdpipe.stages.quantize.capture import capture
from kdpipe.stages.quantize.emit import PARITY_STEPS, emit
from kdpipe.stages.quantize.engine import calibrate, insert
from kdpipe.stages.quantize.policy import Policy


class Line(nn.Module):
    """Convolutions over time."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv1d(3, 8, 3, padding=1), nn.Conv1d(8, 8, 3)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool1d(F.relu(self.a(x)), 2)
        return self.head(F.relu(self.b(x)).mean(2))


class Volume(nn.Module):
    """Convolutions over space and time."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv3d(3, 8, 3, padding=1), nn.Conv3d(8, 8, 3)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool3d(F.relu(self.a(x)), 2)
        return self.head(F.adaptive_avg_pool3d(F.relu(self.b(x)), 1).flatten(1))


class Swish(nn.Module):
    """Batch norm first, h-swish, a depthwise convolution with SiLU, a residual, average pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.hardswish(self.a(self.norm(x)))
        x = F.avg_pool2d(x + F.silu(self.b(x)), 2)
        return self.head(x.mean((2, 3)))


class Upsampled(nn.Module):
    """A U-Net's level: max pooling, upsampling in one of three ways, a concatenation."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.c, self.head = nn.Conv2d(32, 16, 3, padding=1), nn.Conv2d(16, 4, 1)
        self.up = nn.ConvTranspose2d(16, 16, 2, 2) if how == "transposed" else None
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        a = F.relu(self.a(x))
        b = F.relu(self.b(F.max_pool2d(a, 2)))
        b = F.interpolate(b, scale_factor=2.0, mode=self.how) if self.up is None else self.up(b)
        return self.head(F.relu(self.c(torch.cat([b, a], 1))))


CASES = {
    "one dimension": (Line, (3, 20), Policy()),
    "three dimensions": (Volume, (3, 8, 8, 8), Policy()),
    "h-swish": (Swish, (3, 16, 16), Policy(before_activations=True)),
    "nearest": (lambda: Upsampled("nearest"), (3, 16, 16), Policy(heads=True)),
    "bilinear": (lambda: Upsampled("bilinear"), (3, 16, 16), Policy(heads=True)),
    "transposed": (lambda: Upsampled("transposed"), (3, 16, 16), Policy(heads=True)),
}


@pytest.mark.parametrize("name", CASES)
def test_every_convolution_runs_in_int8(name: str, tmp_path: Path) -> None:
    """In ONNX Runtime, which has no transposed one, and in OpenVINO; both compute the file."""
    build, shape, policy = CASES[name]
    torch.manual_seed(0)
    x, path = torch.randn(64, *shape), tmp_path / "model.onnx"
    model = insert(capture(build().eval(), x[:2]), policy)
    calibrate(model, [x])
    emitted = emit(model, "cpu")
    export_onnx(emitted, x[:2], path)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    session = onnxruntime.InferenceSession(path, options)
    ran = Counter(node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node)
    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    used = {
        info["runtimePrecision"].astype(str)
        for info in (op.get_rt_info() for op in compiled.get_runtime_model().get_ops())
        if info["layerType"].astype(str) in ("Convolution", "Deconvolution", "FullyConnected")
    }

    assert ran["Conv"] + ran["FusedConv"] + ran["Gemm"] + ran["MatMul"] == 0
    assert ran["QLinearConv"] == sum("conv" in n and "transpose" not in n for n in _weights(model))
    assert used <= {"u8", "i8"}
    with torch.no_grad():
        expected = emitted(x).numpy()
    for actual in (session.run(None, {"input": x.numpy()})[0], compiled(x.numpy())[0]):
        assert np.abs(actual - expected).max() < PARITY_STEPS * np.abs(expected).max() / 127


def _weights(model: nn.Module) -> list[str]:
    return [name for name, _ in model.body.named_children() if name.endswith("_weight")]
