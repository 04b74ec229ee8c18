"""Real exported files before TensorRT: its lint, and the parser and builder of TensorRT-RTX, which
need no GPU. Every `trt` file is taken, and computes in int8; no `cpu` file is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from kdpipe.targets.zeropoints import unfit_for_tensorrt


def test_only_the_trt_files_pass_the_lint(case) -> None:
    """Of every network; TensorRT itself would take uint8 for int8 with no more than a warning."""
    assert unfit_for_tensorrt(case.files["trt"]) == []
    assert unfit_for_tensorrt(case.files["half"]) == []
    assert any("a uint8 zero point" in problem for problem in unfit_for_tensorrt(case.files["cpu"]))


@pytest.mark.parametrize("body", ["trt", "half"])
def test_the_engine_computes_in_int8(body: str, case, build_engine) -> None:
    """Every layer reads int8, but a transposed convolution: TensorRT-RTX 1.7 has it in float."""
    engine = build_engine(case.files[body])
    types = {layer[0]: set(layer[1:]) for layer in engine.layers}
    names = [name for name, _ in case.quantized.body.named_children()]

    assert engine.errors == []
    assert engine.layers.total() == sum("weight" in name for name in names)
    assert "Int8" not in types.pop("deconv", ())
    assert set().union(*types.values()) == {"Int8"}


def test_the_parser_refuses_the_cpu_file(case, build_engine) -> None:
    """Its first zero point is 128."""
    assert "Non-zero zero point" in build_engine(case.files["cpu"]).errors[0]


def test_only_the_lint_refuses_uint8_with_zero_point_zero(
    cases, build_engine, tmp_path: Path
) -> None:
    """The parser takes it for int8, which is another network, and says so in a warning alone."""
    model = onnx.load(cases("residual").files["trt"])
    unsigned = numpy_helper.from_array(np.array(0, np.uint8), "unsigned")
    model.graph.initializer.append(unsigned)
    rectified = {node.output[0] for node in model.graph.node if node.op_type == "Relu"}
    quantizers = (node for node in model.graph.node if node.op_type == "QuantizeLinear")
    behind_relu = next(node for node in quantizers if node.input[0] in rectified)
    for node in model.graph.node:
        if node is behind_relu or behind_relu.output[0] in node.input:
            node.input[2] = "unsigned"
    file = tmp_path / "uint8.onnx"
    onnx.save(model, file)
    engine = build_engine(file)

    assert engine.errors == []
    assert any("UINT8 zero_point" in warning for warning in engine.warnings)
    assert [p.rpartition(": ")[2] for p in unfit_for_tensorrt(file)] == ["a uint8 zero point"] * 2
