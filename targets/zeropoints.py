"""What TensorRT asks of a quantized ONNX file, checked before its parser, which only warns."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
else:
    from kdpipe.targets.lazy import np

_OWN = ("", "ai.onnx")
_INTEGER = ("QLinear", "ConvInteger", "MatMulInteger", "DynamicQuantizeLinear")
"""How operators begin that compute on integers themselves, in place of quantizers around floats."""


def unfit_for_tensorrt(file: Path) -> list[str]:
    """What TensorRT would refuse or misread in `file`, one line each; empty for a fit file.

    Its integers are symmetric int8: every zero point has to be int8 and 0. It takes uint8 for int8
    with a warning, and so computes something else. A zero point that is left out means uint8 to
    QuantizeLinear (ONNX operator specification, versions 10 to 25). Biases have to stay float: a
    DequantizeLinear of int32 does not parse. Only weights may have a scale for each channel.
    Integer operators and those of other domains have no parser, and the number of dimensions of
    every input has to be known.
    """
    import onnx

    graph = onnx.load(file).graph
    constants = _constants(graph)
    stored = {tensor.name for tensor in graph.initializer}
    quantizers = (node for node in graph.node if node.op_type == "QuantizeLinear")
    weights = {*constants, *(node.output[0] for node in quantizers if node.input[0] in constants)}
    problems = [
        f"{value.name}: an input of unknown rank"
        for value in graph.input
        if value.name not in stored and not value.type.tensor_type.HasField("shape")
    ]
    for node in graph.node:
        name = node.name or node.output[0]
        problems += [f"{name}: {problem}" for problem in _problems(node, constants, weights)]
    return problems


def _problems(
    node: Any, constants: dict[str, NDArray[np.generic]], weights: set[str]
) -> Iterator[str]:
    if node.domain not in _OWN:
        yield f"the operator {node.op_type} of {node.domain}"
    elif node.op_type.startswith(_INTEGER):
        yield f"the operator {node.op_type}"
    elif node.op_type in ("QuantizeLinear", "DequantizeLinear"):
        stored = constants.get(node.input[0])
        yield from filter(None, (_zero_point(node, stored, constants),))
        scale = constants.get(node.input[1])
        if node.input[0] not in weights and scale is not None and scale.size > 1:
            yield f"{scale.size} scales for an activation"


def _zero_point(
    node: Any,
    stored: NDArray[np.generic] | None,
    constants: dict[str, NDArray[np.generic]],
) -> str:
    """What is wrong with the zero point, or with the type that it stands for; "" for nothing."""
    if stored is not None and stored.dtype == np.int32:
        return "an int32 bias"
    name = node.input[2] if len(node.input) > 2 else ""
    if not name:
        signed = stored is not None and stored.dtype == np.int8
        return "" if signed else "no zero point, so uint8"
    zero = constants.get(name)
    if zero is None:
        return "a zero point that is computed"
    if zero.dtype != np.int8:
        return f"a {zero.dtype} zero point"
    return "a zero point other than 0" if zero.any() else ""


def _constants(graph: Any) -> dict[str, NDArray[np.generic]]:
    from onnx import numpy_helper

    tensors = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            tensors[node.output[0]] = node.attribute[0].t
    return {name: numpy_helper.to_array(tensor) for name, tensor in tensors.items()}
