"""What is special to ONNX Runtime: which kernels it finds, and graphs optimized ahead of time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
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
    assert "r2_DequantizeLinear" in audit.unfused


def test_audit_of_a_stored_optimized_graph_is_that_of_its_source(
    int8: Callable[[str], Path], tmp_path: Path
) -> None:
    """`ahead_of_time` changes when the graph is optimized, and not what runs."""
    audits = []
    for target in (OnnxRuntime(), OnnxRuntime(ahead_of_time=True)):
        (tmp_path / str(target.ahead_of_time)).mkdir()
        folder = tmp_path / str(target.ahead_of_time)
        audits.append(target.audit(target.compile(int8("cpu"), folder)))

    first, second = ([(x.kind, x.precision, x.macs) for x in a.layers] for a in audits)
    assert first == second
    assert all(macs for *_, macs in first)


def test_free_sides_leave_macs_unknown(fp32: Path, tmp_path: Path) -> None:
    """No image size would be the right one: layers then count the same, and no number is made."""
    model = onnx.load(fp32)
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"
    onnx.save(model, tmp_path / "free.onnx")

    audit = OnnxRuntime().audit(tmp_path / "free.onnx")

    assert [layer.macs for layer in audit.layers] == [None] * 3


def test_audit_names_the_activation_in_between(tmp_path: Path) -> None:
    """What keeps a convolution in float, also where an activation is several operators."""
    make, value = onnx.helper.make_node, onnx.helper.make_tensor_value_info
    nodes = [
        make("Conv", ["x", "w"], ["a"], "first"),
        make("Sigmoid", ["a"], ["s"]),
        make("Mul", ["a", "s"], ["b"]),
        make("Conv", ["b", "w"], ["c"], "second"),
        make("HardSigmoid", ["c"], ["h"], alpha=1 / 6, beta=0.5),
        make("Mul", ["c", "h"], ["d"]),
        make("Conv", ["d", "w"], ["e"], "third"),
        make("Relu", ["e"], ["y"]),
    ]
    weight = onnx.numpy_helper.from_array(np.ones((3, 3, 1, 1), np.float32), "w")
    ends = [value(name, onnx.TensorProto.FLOAT, [1, 3, 4, 4]) for name in "xy"]
    graph = onnx.helper.make_graph(nodes, "activations", ends[:1], ends[1:], [weight])
    opset = [onnx.helper.make_opsetid("", 17)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=8), tmp_path / "a.onnx")

    layers = OnnxRuntime().audit(tmp_path / "a.onnx").layers

    assert [layer.activation for layer in layers] == ["silu", "hardswish", ""]


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
