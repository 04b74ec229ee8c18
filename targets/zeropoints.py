"""What TensorRT asks of a quantized ONNX file, checked before its parser, which only warns."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
else:
    from kdpipe.targets.lazy import np


def unfit_for_tensorrt(file: Path) -> list[str]:
    """The quantizers of `file` that TensorRT would refuse or misread, one line each.

    TensorRT's integers are symmetric int8: every zero point has to be int8 and 0. It takes uint8
    for int8 with a warning, and so computes something else. A zero point that is left out means
    uint8 to QuantizeLinear (ONNX operator specification, versions 10 to 25). Biases have to stay
    float: a DequantizeLinear of int32 does not parse.
    """
    import onnx

    graph = onnx.load(file).graph
    constants = _constants(graph)
    problems = []
    for node in graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            problem = _problem(node, constants)
            if problem:
                problems.append(f"{node.name or node.output[0]}: {problem}")
    return problems


def _problem(node: Any, constants: dict[str, NDArray[np.generic]]) -> str:
    stored = constants.get(node.input[0])
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
