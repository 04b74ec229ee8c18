"""The model that OpenVINO's CPU plugin executes, read as an audit; `openvino.py` compiles it.

The plugin fuses the products of attention, with the softmax between them, into one kernel that it
calls a Subgraph. It tells the names of what it fused; the model it was given tells the sizes.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from kdpipe.targets.audit import (
    Audit,
    Executed,
    Layer,
    Shape,
    convolution_macs,
    product_macs,
)

_COMPUTE = frozenset(("Convolution", "Deconvolution", "FullyConnected", "MatMul"))
_FUSION = "Subgraph"
_CONVERSIONS = frozenset(("Reorder", "Convert", "Transpose"))
_EXECUTED: Mapping[str, Executed] = {"u8": "int8", "i8": "int8", "bf16": "bf16", "f16": "fp16"}
"""What the plugin calls a precision -> what it is; anything else is fp32."""
_MADE_UP = re.compile(r"[A-Z][A-Za-z0-9]*[_@][0-9]+")
"""A name that OpenVINO, or the compilation, made of a layer's type and a number."""
_PART = re.compile(r"/(WithoutBiases|bias)$")
"""The part of a layer by which OpenVINO or the exporter calls it."""


def audit(model: Any, compiled: Any) -> Audit:
    """Layers, kernels and conversions of `model`, with static shapes, as it was `compiled`.

    Unfused is a FakeQuantize that runs on its own and gives float.
    """
    every = [(op, _info(op)) for op in compiled.get_runtime_model().get_ordered_ops()]
    products = _products(model)
    kernels = [
        f"{info['layerType']}:{info['runtimePrecision']}"
        for _, info in every
        if info["layerType"] in _COMPUTE or _fused(info, products)
    ]
    unfused = [
        op.get_friendly_name()
        for op, info in every
        if info["layerType"] == "FakeQuantize" and "f32" in info["outputPrecisions"]
    ]
    moves = [info["layerType"] for _, info in every if info["layerType"] in _CONVERSIONS]
    return Audit(layers(model, compiled), Counter(kernels), tuple(unfused), Counter(moves))


def layers(model: Any, compiled: Any) -> tuple[Layer, ...]:
    """The convolutions and matrix products, in the order in which they run."""
    batch = (_static(compiled.inputs[0]) or (1,))[0]
    products = _products(model)
    found: list[Layer] = []
    for op in compiled.get_runtime_model().get_ordered_ops():
        info = _info(op)
        if info["layerType"] in _COMPUTE:
            name = _name(op.get_friendly_name(), info["originalLayersNames"])
            found.append(_layer(name, info, _macs(info["layerType"], op), batch))
        else:
            fused = _fused(info, products)
            found += [_layer(name, info, products[name], batch) for name in fused]
    return tuple(found)


def _layer(name: str, info: Mapping[str, str], macs: int | None, batch: int) -> Layer:
    precision = _EXECUTED.get(info["runtimePrecision"], "fp32")
    return Layer(name, info["layerType"], precision, None if macs is None else macs // batch)


def _products(model: Any) -> dict[str, int | None]:
    """MACs of the matrix products of a model, by name."""
    every = (op for op in model.get_ordered_ops() if op.get_type_name() == "MatMul")
    return {op.get_friendly_name(): _macs("MatMul", op) for op in every}


def _fused(info: Mapping[str, str], products: Mapping[str, int | None]) -> list[str]:
    """The products in a Subgraph, by name; its precision is that of all its inputs."""
    if info["layerType"] != _FUSION:
        return []
    return [name for name in info["originalLayersNames"].split(",") if name in products]


def _info(op: Any) -> dict[str, str]:
    """Layer type, precisions and original names of an executed operation, as text."""
    return {key: value.astype(str) for key, value in op.get_rt_info().items()}


def _macs(kind: str, op: Any) -> int | None:
    """Of all samples together; None where a shape is free. Shapes are logical, batch first.

    A weight is (out, in / groups, sides), of a transposed convolution (in, out / groups, sides),
    with the groups before both where there are any; its elements are counted, whichever it is.
    """
    left, right = (_static(port) for port in op.inputs()[:2])
    output = _static(op.output(0))
    if left is None or right is None or output is None:
        return None
    if kind == "Convolution":
        return convolution_macs(output, right, output[1])
    if kind == "Deconvolution":
        return convolution_macs(left, right, left[1])
    if kind == "FullyConnected":
        return product_macs(output, left[-1])
    # Either operand may be transposed: all three sizes together tell the length summed over.
    pairs = math.prod(output[:-2])
    inner = math.isqrt(math.prod(left) * math.prod(right) // (math.prod(output) * pairs))
    return product_macs(output, inner)


def _static(port: Any) -> Shape | None:
    shape = port.get_partial_shape()
    return tuple(shape.to_shape()) if shape.is_static else None


def _name(friendly: str, original: str) -> str:
    """The first of the fused layers whose name the ONNX file gave."""
    given = [name for name in original.split(",") if name and not _MADE_UP.fullmatch(name)]
    return _PART.sub("", (given or [friendly])[0])
