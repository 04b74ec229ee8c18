"""Models in files, as a user brings them: ONNX files without torch, and one Python module."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

torch.set_num_threads(1)

WEIGHT = np.arange(15, dtype=np.float32).reshape(5, 3) / 7

NET = """
from torch import nn

class Net(nn.Module):
    def __init__(self, classes, in_channels, width=8):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(in_channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()
        )
        self.fc = nn.Linear(width, classes)

    def forward(self, x):
        return self.fc(self.features(x).mean((2, 3)))

def probabilities(classes, in_channels):
    return nn.Sequential(Net(classes + 1, in_channels), nn.Softmax(1))

def number(classes):
    return classes

def broken():
    raise RuntimeError("no such checkpoint")

def anything(**options):
    return Net(options["outputs"], 3)
"""


@pytest.fixture
def net(tmp_path: Path) -> Path:
    """A Python file with several functions that make, or fail to make, a network."""
    path = tmp_path / "net.py"
    path.write_text(NET)
    return path


@pytest.fixture
def teacher(tmp_path: Path) -> Callable[..., Path]:
    """Writes an ONNX teacher: logits = channel means (N, 3) x WEIGHT.T (3, 5)."""

    def write(
        batch: int | str = "batch",
        *,
        softmax: bool = False,
        extra_output: bool = False,
        location: str = "",
    ) -> Path:
        nodes = [
            helper.make_node("GlobalAveragePool", ["image"], ["pooled"]),
            helper.make_node("Flatten", ["pooled"], ["flat"]),
            helper.make_node("Gemm", ["flat", "w"], ["scores"], transB=1),
            helper.make_node("Softmax" if softmax else "Identity", ["scores"], ["logits"]),
        ]
        outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, 5])]
        if extra_output:
            outputs.append(helper.make_tensor_value_info("flat", TensorProto.FLOAT, [batch, 3]))
        weight = numpy_helper.from_array(WEIGHT, "w")
        if location:
            weight.ClearField("raw_data")
            weight.data_location = TensorProto.EXTERNAL
            weight.external_data.add(key="location", value=location)
            file = tmp_path / "onnx" / location
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(WEIGHT.tobytes())
        image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [batch, 3, 8, 8])
        graph = helper.make_graph(nodes, "teacher", [image], outputs, [weight])
        opset = [helper.make_opsetid("", 20)]
        model = helper.make_model(graph, opset_imports=opset, ir_version=10)
        path = tmp_path / "onnx" / "teacher.onnx"
        path.parent.mkdir(exist_ok=True)
        onnx.save_model(model, path)
        return path

    return write
