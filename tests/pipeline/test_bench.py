"""`kdpipe bench` on real ONNX files: two models are compared only where calls do equal work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from kdpipe.pipeline.bench import bench, render
from kdpipe.targets.errors import UsageError

EFFORT: dict[str, Any] = {"inputs": None, "processes": 2, "iterations": 1, "threads": 1}


def relu(path: Path, batch: int | str) -> Path:
    """A model of one operator, for calls of `batch` samples of 4 numbers."""
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, 4]) for name in ("x", "y")
    ]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", ends[:1], ends[1:])
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return path


@pytest.mark.parametrize(("batch", "compared"), [(2, False), (1, True)])
def test_speedup_of_equal_work_only(tmp_path: Path, batch: int, compared: bool) -> None:
    """A call of one sample is compared with no call of two; a reason stands in its place."""
    models = {"model": relu(tmp_path / "a.onnx", batch), "against": relu(tmp_path / "b.onnx", "n")}
    measured = bench(models, "onnxruntime", **EFFORT)

    assert ("speedup" in measured, "reason" in measured) == (compared, not compared)
    last = list(render(measured))[-1]
    if compared:
        assert last.startswith("model is ")
    else:
        assert last == "no speedup: model takes 2 samples a call and against 1"
    assert set(measured["models"]["model"]["latency_ms"]) == {
        "p50", "p90", "p95", "p99", "mean", "low", "high", "iterations", "processes",
    }  # fmt: skip


def test_unknown_target(tmp_path: Path) -> None:
    """A target that does not exist is refused with the list of those that do."""
    with pytest.raises(UsageError, match="onnxruntime, openvino, tensorrt"):
        bench({"model": relu(tmp_path / "a.onnx", 1)}, "tvm", **EFFORT)
