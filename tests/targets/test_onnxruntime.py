"""What is special to ONNX Runtime: which kernels it finds, and graphs optimized ahead of time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from kdpipe.targets.digest import digest
from kdpipe.targets.errors import StageError
from kdpipe.targets.onnxruntime import OnnxRuntime


def test_artifact_is_the_onnx_file(fp32: Path, tmp_path: Path) -> None:
    """By default the very bytes of the ONNX file are what ships."""
    artifact = OnnxRuntime().compile(fp32, tmp_path)

    assert artifact.name == "model.onnx"
    assert digest(artifact) == digest(fp32)


def test_ahead_of_time_stores_the_optimized_graph(
    int8: Callable[[str], Path], tmp_path: Path
) -> None:
    """With `ahead_of_time` the artifact already has the runtime's own int8 operators."""
    artifact = OnnxRuntime(ahead_of_time=True).compile(int8("cpu"), tmp_path)

    assert "QLinearConv" in {node.op_type for node in onnx.load(artifact).graph.node}


def test_audit_names_what_cannot_be_fused(int8: Callable[[str], Path], tmp_path: Path) -> None:
    """Of the `trt` flavour, made for another runtime, the audit names convolutions left in float.

    ONNX Runtime fuses Conv, Relu and QuantizeLinear into int8 for uint8 activations only.
    """
    target = OnnxRuntime()
    audit = target.audit(target.compile(int8("trt"), tmp_path))

    assert audit.int8_fraction < 1.0
    assert any("block" in name or "stem" in name for name in audit.float_kernels)
    assert audit.kernels["DequantizeLinear"] > 1


def test_audit_counts_inside_branches(tmp_path: Path) -> None:
    """A matrix product inside the branch of an If is counted as well."""
    make, value = onnx.helper.make_node, onnx.helper.make_tensor_value_info
    result = value("y", onnx.TensorProto.FLOAT, [2, 2])
    branches = {
        f"{side}_branch": onnx.helper.make_graph(
            [make("MatMul", ["x", "x"] if side == "then" else ["t", "x"], ["y"], name=side)],
            side,
            [],
            [result],
        )
        for side in ("then", "else")
    }
    nodes = [
        make("Transpose", ["x"], ["t"]),
        make("ReduceSum", ["x"], ["sum"], keepdims=0),
        make("Cast", ["sum"], ["test"], to=onnx.TensorProto.BOOL),
        make("If", ["test"], ["y"], **branches),
    ]
    graph = onnx.helper.make_graph(
        nodes, "branches", [value("x", onnx.TensorProto.FLOAT, [2, 2])], [result]
    )
    file = tmp_path / "branches.onnx"
    opset = [onnx.helper.make_opsetid("", 17)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=8), file)
    (tmp_path / "out").mkdir()

    audit = OnnxRuntime().audit(OnnxRuntime().compile(file, tmp_path / "out"))

    assert len(audit.float_kernels) == 2


def test_external_weights_are_refused(fp32: Path, tmp_path: Path) -> None:
    """An ONNX file whose weights lie in a second file would ship without them: an error."""
    file = tmp_path / "split.onnx"
    onnx.save(onnx.load(fp32), file, save_as_external_data=True, location="w", size_threshold=0)
    (tmp_path / "out").mkdir()

    with pytest.raises(StageError, match="refuses"):
        OnnxRuntime().compile(file, tmp_path / "out")
