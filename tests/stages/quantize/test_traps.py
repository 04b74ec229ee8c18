"""Traps of the runtimes that shape the design: each is shown, beside what avoids it.

If a test of a runtime's own fault fails after an upgrade, the fault is gone, and so is the reason.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
import torch

from kdpipe.stages.onnx_export import export_onnx
from kdpipe.stages.quantize.capture import capture
from kdpipe.targets.errors import StageError
from kdpipe.targets.onnxruntime import OnnxRuntime
from kdpipe.targets.openvino import OpenVino


def steps(actual: np.ndarray, expected: torch.Tensor) -> float:
    """Largest difference in steps of an 8-bit grid over the output's range."""
    reference = expected.numpy()
    return float(np.abs(actual - reference).max() / (np.abs(reference).max() / 127))


def test_openvino_is_wrong_for_signed_int8_around_concatenations(cases, images) -> None:
    """Why its file is uint8: from the same scales, it computes the int8 file of a U-Net wrong."""
    x, far, case = images(32, seed=9), {}, cases("unet")
    for flavour in ("cpu", "trt"):
        properties = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
        compiled = openvino.Core().compile_model(case.files[flavour], "CPU", properties)
        with torch.no_grad():
            far[flavour] = steps(compiled(x.numpy())[0], case.emitted[flavour](x))

    assert far["cpu"] < 6
    assert far["trt"] > 10


def test_onnxruntime_fuses_uint8_behind_a_relu_and_not_int8(cases, tmp_path: Path) -> None:
    """Why its file is uint8: of the int8 file it runs every convolution behind a ReLU in float."""
    files, target = cases("residual").files, OnnxRuntime(precision="int8")
    kernels = {flavour: target.audit(files[flavour]).kernels for flavour in ("cpu", "trt")}

    assert kernels["cpu"]["QLinearConv"] == 4
    assert kernels["trt"].get("QLinearConv", 0) < 4


def test_torchs_own_fake_quantize_cannot_be_exported(tmp_path: Path) -> None:
    """Why the operators of `ops.py` exist; nothing that is emitted holds torch's."""

    class Fake(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.fake_quantize_per_tensor_affine(x, 0.1, 0, -128, 127)

    with pytest.raises(StageError):
        export_onnx(Fake(), torch.zeros(2, 3), tmp_path / "model.onnx")


def test_no_operator_of_torchs_quantization_is_emitted(case) -> None:
    """Neither fake_quantize nor quantized_decomposed."""
    for module in case.emitted.values():
        targets = [str(node.target) for node in module.body.graph.nodes]
        assert not [t for t in targets if "fake_quantize" in t or "quantized_decomposed" in t]


def test_openvino_computes_fp32_in_bf16_unless_told(network, images, tmp_path: Path) -> None:
    """Why the target always says which: silence means bf16 on CPUs that have it."""
    capabilities = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if "BF16" not in capabilities:
        pytest.skip("this CPU has no bf16")
    export_onnx(network("residual"), images(2), tmp_path / "model.onnx")
    silent = openvino.Core().compile_model(tmp_path / "model.onnx", "CPU")
    target = OpenVino(precision="fp32")
    audit = target.audit(target.compile(tmp_path / "model.onnx", tmp_path))

    assert silent.get_property("INFERENCE_PRECISION_HINT").get_type_name() == "bf16"
    assert {layer.precision for layer in audit.layers} == {"fp32"}


def test_an_exported_program_shares_its_parameters(network, images) -> None:
    """Why `capture` copies the model first: training the graph would train the teacher too."""
    model = network("residual")
    exported = torch.export.export(model, (images(2),)).module()
    captured = capture(model, images(2))
    own = {parameter.data_ptr() for parameter in model.parameters()}

    assert own & {parameter.data_ptr() for parameter in exported.parameters()}
    assert not own & {parameter.data_ptr() for parameter in captured.parameters()}


def test_the_default_axis_of_dequantize_linear_is_not_a_convolutions() -> None:
    """Why `ops.py` writes the axis: the default, 1, is the input channels of a convolution."""
    scales = np.array([1.0, 2.0, 4.0], np.float32)
    node = partial(onnx.helper.make_node, "DequantizeLinear", ["weight", "scale"], ["output"])
    results = [_dequantized(node(), scales), _dequantized(node(axis=0), scales)]

    assert results[0][0].tolist() == [1, 2, 4]
    assert results[1][:, 0].tolist() == [1, 2, 4]


def _dequantized(node: onnx.NodeProto, scales: np.ndarray) -> np.ndarray:
    """What ONNX Runtime makes of a 3x3 int8 weight of ones."""
    value, kinds = onnx.helper.make_tensor_value_info, onnx.TensorProto
    inputs = [value("weight", kinds.INT8, [3, 3]), value("scale", kinds.FLOAT, [3])]
    outputs = [value("output", kinds.FLOAT, [3, 3])]
    graph = onnx.helper.make_graph([node], "weight", inputs, outputs)
    opset = onnx.helper.make_opsetid("", 20)
    model = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return session.run(None, {"weight": np.ones((3, 3), np.int8), "scale": scales})[0]
