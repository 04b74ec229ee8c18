"""A small ONNX network whose layers have names, for what compares files layer by layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

Weights = dict[str, NDArray[np.float32]]


@pytest.fixture(scope="session")
def weights() -> Weights:
    """Of two convolutions and a linear layer."""
    rng = np.random.default_rng(1)
    sizes = {"w1": (8, 3, 3, 3), "b1": (8,), "w2": (8, 8, 3, 3), "w3": (8, 5), "b3": (5,)}
    return {name: rng.normal(0, 0.3, size).astype(np.float32) for name, size in sizes.items()}


@pytest.fixture(scope="session")
def network() -> Callable[..., Any]:
    """network(weights, batch): a stem, a block with a skip, pooling, and a head with its bias as a
    node of its own."""
    return _network


def _network(weights: Weights, batch: int | str = "batch") -> Any:
    from onnx import TensorProto, helper, numpy_helper

    make, value = helper.make_node, helper.make_tensor_value_info
    nodes = [
        make("Conv", ["input", "w1", "b1"], ["c1"], name="stem", pads=[1] * 4),
        make("Relu", ["c1"], ["r1"]),
        make("Conv", ["r1", "w2"], ["c2"], name="block", pads=[1] * 4),
        make("Add", ["c2", "r1"], ["a"]),
        make("Relu", ["a"], ["r2"]),
        make("GlobalAveragePool", ["r2"], ["p"]),
        make("Flatten", ["p"], ["f"]),
        make("MatMul", ["f", "w3"], ["m"], name="head"),
        make("Add", ["m", "b3"], ["output"]),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [value("input", TensorProto.FLOAT, [batch, 3, 8, 8])],
        [value("output", TensorProto.FLOAT, [batch, 5])],
        [numpy_helper.from_array(w, name) for name, w in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
