"""The ONNX files in the runtimes: what they compute, and whether they compute it in int8."""

from __future__ import annotations

import collections
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
import torch
from onnx import TensorProto, numpy_helper
from torch import Tensor

from kdpipe.stages.onnx_export import export_onnx
from kdpipe.stages.quantize.emit import PARITY_STEPS, emit
from kdpipe.stages.quantize.policy import Policy
from kdpipe.targets.openvino import OpenVino

INT8_CONVOLUTIONS = {"residual": (4, 4), "mobile": (5, 5), "unet": (4, 5), "mixed": (5, 6)}
"""How many convolutions ONNX Runtime runs in int8, of how many; transposed ones not counted, for
which it has no int8 kernel. U-Net's last convolution is the network's float output; the other one
stands before a sigmoid. Both follow with another policy: `heads` and `before_activations`."""


def onnxruntime_session(path: Path, optimized: Path | None = None) -> onnxruntime.InferenceSession:
    """One thread; without `optimized`, where the optimized graph goes, nothing is optimized."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    if optimized is None:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    else:
        options.optimized_model_filepath = str(optimized)
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def kernels(path: Path, folder: Path) -> collections.Counter[str]:
    """What ONNX Runtime runs: operator -> how many."""
    onnxruntime_session(path, folder / "optimized.onnx")
    return collections.Counter(n.op_type for n in onnx.load(folder / "optimized.onnx").graph.node)


def openvino_model(path: Path) -> openvino.CompiledModel:
    """Float parts in fp32: by default OpenVINO takes bf16 where the CPU has it."""
    properties = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    return openvino.Core().compile_model(path, "CPU", properties)


def assert_close(actual: np.ndarray, expected: Tensor) -> None:
    """Within a few roundings that fell on the other side of a tie, and with the same decisions."""
    reference = expected.numpy()
    steps = np.abs(actual - reference) / (np.abs(reference).max() / 127)

    assert steps.max() < PARITY_STEPS
    assert steps.mean() < PARITY_STEPS / 10
    assert (actual.argmax(1) == reference.argmax(1)).mean() > 0.97


def test_cpu_file_in_onnxruntime(case, images, tmp_path: Path) -> None:
    """Fused kernels requantize in integers: a rounding may differ, no more."""
    x = images(128, seed=11)
    session = onnxruntime_session(case.files["cpu"], tmp_path / "optimized.onnx")
    with torch.no_grad():
        assert_close(session.run(["output"], {"input": x.numpy()})[0], case.emitted["cpu"](x))


def test_cpu_file_in_openvino(case, images) -> None:
    """uint8 gives OpenVINO no chance for its error with signed int8 at concatenations."""
    x = images(128, seed=11)
    request = openvino_model(case.files["cpu"]).create_infer_request()
    with torch.no_grad():
        assert_close(request.infer([x.numpy()])[0].copy(), case.emitted["cpu"](x))


@pytest.mark.parametrize("flavour", ["cpu", "trt"])
def test_files_say_what_the_emitted_module_says(flavour: str, case, images) -> None:
    """Operator by operator, without fusions, a file computes what torch did."""
    x = images(128, seed=11)
    session = onnxruntime_session(case.files[flavour])
    with torch.no_grad():
        expected = case.emitted[flavour](x)
    actual = session.run(["output"], {"input": x.numpy()})[0]
    same = np.isclose(actual, expected.numpy(), atol=1e-5 * expected.abs().max().item())

    # A sum in another order moves a value over a tie now and then.
    assert same.mean() > 0.8
    assert_close(actual, expected)


def test_onnxruntime_runs_convolutions_in_int8(case, tmp_path: Path) -> None:
    """A file it cannot fuse runs slower than fp32, and no error says so."""
    ran = kernels(case.files["cpu"], tmp_path)
    expected, total = INT8_CONVOLUTIONS[case.name]

    assert ran["QLinearConv"] == expected
    assert ran["Conv"] + ran["FusedConv"] == total - expected
    assert ran["QGemm"] == (case.name != "unet")
    assert ran["Gemm"] == ran["MatMul"] == 0


def test_a_convolution_before_a_sigmoid_is_int8_with_another_policy(
    quantized, images, tmp_path: Path
) -> None:
    """Rounding the inputs of sigmoids fuses the one that was left."""
    model = quantized("mixed", Policy(before_activations=True))
    export_onnx(emit(model, "cpu"), images(2), tmp_path / "model.onnx")
    ran = kernels(tmp_path / "model.onnx", tmp_path)

    assert ran["QLinearConv"] == INT8_CONVOLUTIONS["mixed"][1]
    assert ran["Conv"] + ran["FusedConv"] == 0


@pytest.mark.parametrize("batch", [None, 1])
def test_openvino_runs_convolutions_in_uint8(batch: int | None, case, tmp_path: Path) -> None:
    """All of them, transposed ones and linear layers too, also with the batch compiled in."""
    target = OpenVino(precision="int8", batch=batch)
    audit = target.audit(target.compile(case.files["cpu"], tmp_path))
    weights = sum("weight" in name for name, _ in case.quantized.body.named_children())

    assert audit.int8_fraction == 1
    assert len(audit.layers) == weights


def constants(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """Every initializer and Constant of a file by name."""
    found = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant":
            found[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
    return found


def test_trt_file_has_zero_points_of_int8_zero_only(case) -> None:
    """TensorRT takes uint8 for int8 with a mere warning, and refuses an int32 bias."""
    model = onnx.load(case.files["trt"])
    values = constants(model)
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            zero_point = values[node.input[2]]
            assert zero_point.dtype == np.int8
            assert not zero_point.any()
            assert values.get(node.input[0], zero_point).dtype == np.int8
    assert not any(t.data_type == TensorProto.INT32 for t in model.graph.initializer)
    assert {opset.domain for opset in model.opset_import} == {""}


@pytest.mark.parametrize("flavour", ["cpu", "trt"])
def test_weight_axes_in_the_file(flavour: str, case) -> None:
    """DequantizeLinear's axis is written: 1 for ConvTranspose, 0 for the others (default: 1)."""
    model = onnx.load(case.files[flavour])
    values = constants(model)
    readers = {name: node for node in model.graph.node for name in node.input}
    weights = [
        node
        for node in model.graph.node
        if node.op_type == "DequantizeLinear" and values.get(node.input[1], np.array(0)).ndim
    ]
    for node in weights:
        axis = {attribute.name: attribute.i for attribute in node.attribute}["axis"]
        assert axis == (readers[node.output[0]].op_type == "ConvTranspose")
        assert values[node.input[0]].shape[axis] == values[node.input[1]].size
    assert len(weights) == sum("weight" in n for n, _ in case.quantized.body.named_children())


def test_every_layer_reads_dequantized_values(case) -> None:
    """Input and weight of each convolution and linear layer come from DequantizeLinear."""
    model = onnx.load(case.files["trt"])
    makers = {name: node.op_type for node in model.graph.node for name in node.output}
    layers = [n for n in model.graph.node if n.op_type in ("Conv", "ConvTranspose", "Gemm")]

    assert layers
    for layer in layers:
        assert [makers.get(name) for name in layer.input[:2]] == ["DequantizeLinear"] * 2
