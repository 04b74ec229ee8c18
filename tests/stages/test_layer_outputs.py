"""The layers of an ONNX file: where each ends, and what feeds it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import ModelProto, helper

from kdpipe.stages.layer_outputs import expose, layer_outputs


@pytest.fixture
def model(network: Callable[..., ModelProto], weights: Any) -> ModelProto:
    """stem, block with a skip, pooling, head with its bias as a node of its own."""
    return network(weights)


def test_layers_end_behind_their_bias(model: ModelProto) -> None:
    """`head` is a product and an addition; what feeds it comes through the skip, too."""
    found = layer_outputs(model)

    assert {name: layer.tensor for name, layer in found.items()} == {
        "stem": "c1", "block": "c2", "head": "output",
    }  # fmt: skip
    assert {name: layer.feeds for name, layer in found.items()} == {
        "stem": (), "block": ("stem",), "head": ("block", "stem"),
    }  # fmt: skip


def test_layers_end_behind_their_normalization(model: ModelProto) -> None:
    """As another file of the same network has it folded into the convolution."""
    norm = helper.make_node("BatchNormalization", ["c2", "b1", "b1", "b1", "b1"], ["n"])
    model.graph.node.insert(3, norm)
    model.graph.node[4].input[0] = "n"

    found = layer_outputs(model)

    assert found["block"].tensor == "n"
    assert found["head"].feeds == ("block", "stem")


def test_sides_of_a_tensor_feed_nothing(model: ModelProto) -> None:
    """A reshape to the batch size of another tensor does not carry that tensor's errors."""
    make = helper.make_node
    nodes = [make("Shape", ["c1"], ["s"], start=0, end=1), make("Expand", ["b3", "s"], ["e"])]
    model.graph.node.extend([*nodes, make("MatMul", ["e", "w3"], ["z"], name="side")])

    assert layer_outputs(model)["side"].feeds == ()


def test_names_that_are_missing_or_taken(model: ModelProto) -> None:
    """Such a layer goes by its output, and takes no other's place."""
    model.graph.node[0].name = ""
    model.graph.node[7].name = "block"

    assert {n: layer.tensor for n, layer in layer_outputs(model).items()} == {
        "c1": "c1", "block": "c2", "m": "output",
    }  # fmt: skip


def test_exposed_outputs_come_behind_the_own(model: ModelProto, tmp_path: Path) -> None:
    """Once each, and the network's own output stays the first and a single one."""
    expose(model, ["c1", "output", "c2", "c1"], tmp_path / "x.onnx")

    exposed = onnx.load(tmp_path / "x.onnx")
    onnx.checker.check_model(exposed, full_check=True)
    assert [value.name for value in exposed.graph.output] == ["output", "c1", "c2"]
