"""The layers of an ONNX file and the tensors that they make, so that two files can be compared.

`layer_names.py` gives the layers the names of the user's modules; here they are found by them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

_LAYERS = frozenset(("Conv", "ConvTranspose", "Gemm", "MatMul"))
_ROUNDING = frozenset(("QuantizeLinear", "DequantizeLinear"))
"""What may stand between a layer and its bias."""
_STORED = _ROUNDING | {"Transpose", "Cast", "Identity"}
"""What gives a constant for a constant."""
_SHAPES = frozenset(("Shape", "Size"))
"""What tells of a tensor its sides alone: no error of its values passes through."""


@dataclass(frozen=True)
class LayerOutput:
    """A convolution or matrix product: its `name`, and the `tensor` that it makes.

    The tensor is taken behind a bias or a batch normalization that the file has as nodes of their
    own, as another file of the same network may have them inside the layer. `feeds`: names of the
    layers nearest before it, through whatever lies between; none for the first.
    """

    name: str
    tensor: str
    feeds: tuple[str, ...]


def layer_outputs(model: Any) -> dict[str, LayerOutput]:
    """The layers of a ModelProto by name, in the order of the graph.

    A node without a name of its own goes by its output. Layers inside the branches of a node are
    left out.
    """
    constants = {tensor.name for tensor in model.graph.initializer}
    nearest: dict[str, frozenset[str]] = {}
    made: dict[str, str] = {}  # tensor -> the layer that makes it
    found: dict[str, LayerOutput] = {}
    for node in model.graph.node:
        if node.op_type == "Constant" or _keeps_constant(node, constants):
            constants.update(node.output)
            continue
        feeds = frozenset[str]().union(*(nearest.get(name, frozenset()) for name in node.input))
        name = _continued(node, made, constants)
        if node.op_type in _LAYERS:
            name = node.name if node.name and node.name not in found else str(node.output[0])
            found[name] = LayerOutput(name, str(node.output[0]), tuple(sorted(feeds)))
        elif name:
            found[name] = replace(found[name], tensor=str(node.output[0]))
        if node.op_type in _ROUNDING:
            name = made.get(node.input[0], "")
        if name:
            made[node.output[0]], feeds = name, frozenset((name,))
        reached = frozenset[str]() if node.op_type in _SHAPES else feeds
        nearest |= dict.fromkeys(node.output, reached)
    return found


def _keeps_constant(node: Any, constants: set[str]) -> bool:
    return node.op_type in _STORED and node.input[0] in constants


def _continued(node: Any, made: dict[str, str], constants: set[str]) -> str:
    """The layer whose bias or normalization this node is, or nothing."""
    if node.op_type == "BatchNormalization":
        return made.get(node.input[0], "")
    if node.op_type == "Add" and constants & set(node.input):
        return next((made[name] for name in node.input if name in made), "")
    return ""


def expose(model: Any, tensors: Iterable[str], path: Path) -> None:
    """Write `model` with `tensors` as further outputs behind its own; `model` is changed."""
    import onnx

    inferred = onnx.shape_inference.infer_shapes(model)
    known = {value.name: value for value in inferred.graph.value_info}
    own = {value.name for value in model.graph.output}
    for name in dict.fromkeys(tensors):
        if name not in own:
            value = known.get(name)
            float_type = onnx.TensorProto.FLOAT
            model.graph.output.append(
                value or onnx.helper.make_tensor_value_info(name, float_type, None)
            )
    onnx.save(model, path)
