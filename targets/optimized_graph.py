"""ONNX Runtime's optimized graph, read as an audit; `onnxruntime.py` has it written and profiled.

Operators are the runtime's own (com.microsoft, com.microsoft.nchwc) and those of ONNX.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from kdpipe.targets.audit import (
    Audit,
    Executed,
    Layer,
    Shape,
    convolution_macs,
    product_macs,
)

_CONVOLUTIONS = {"Conv": 1, "FusedConv": 1, "NhwcFusedConv": 1, "ConvInteger": 1, "QLinearConv": 3}
"""Convolution -> the position of its weight (output channels, input channels / groups, sides)."""
_TRANSPOSED = {"ConvTranspose": 1}
_PRODUCTS = {"Gemm", "FusedGemm", "MatMul", "FusedMatMul", "QGemm", "QLinearMatMul"}
_PRODUCTS |= {"MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul"}
_ATTENTION = {"Attention", "MultiHeadAttention", "QAttention"}
_LAYERS = {*_CONVOLUTIONS, *_TRANSPOSED, *_PRODUCTS, *_ATTENTION}
_INT8 = {"QLinearConv", "QLinearMatMul", "QGemm", "QAttention"}
_INT8 |= {"ConvInteger", "MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul"}
_ROUNDINGS = {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"}
_LAYOUTS = {"Transpose", "ReorderInput", "ReorderOutput", "Cast"}

_ACTIVATIONS = {
    "QuickGelu": "silu",
    "Swish": "silu",
    "HardSwish": "hardswish",
    "Gelu": "gelu",
    "FastGelu": "gelu",
    "BiasGelu": "gelu",
    "Mish": "mish",
    "Elu": "elu",
    "Selu": "selu",
    "Celu": "celu",
    "LeakyRelu": "leaky_relu",
    "PRelu": "prelu",
    "Softplus": "softplus",
    "Sigmoid": "sigmoid",
    "HardSigmoid": "hardsigmoid",
    "Tanh": "tanh",
    "Clip": "hardtanh",
}
_TIMES_ITSELF = {"sigmoid": "silu", "hardsigmoid": "hardswish", "softplus": "mish"}
"""What begins with an activation and ends in a multiplication with its input."""

_APPENDED = re.compile(r"(_token_[0-9]+|/\w+Fusion/)$")
"""What the optimizer appends to the names of the nodes that it makes again."""


@dataclass(frozen=True)
class Ran:
    """Shapes of a node as it ran: of its first input and of its first output, and their type."""

    input: Shape
    output: Shape
    dtype: str


def nodes(graph: Any) -> Iterator[Any]:
    """All nodes of a GraphProto, those inside branches and loops included."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                yield from nodes(inner)


def layers(graph: Any, ran: Mapping[int, Ran], batch: int) -> tuple[Layer, ...]:
    """The convolutions and matrix products of `graph`.

    `ran`: what is known of each node of `nodes(graph)`, by its position; `batch`: the samples that
    it ran on.
    """
    every = list(nodes(graph))
    constants = _constants(graph, every)
    readers: dict[str, list[Any]] = {}
    for node in every:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    found = []
    for position, node in enumerate(every):
        if node.op_type in _LAYERS:
            macs = _macs(node, ran.get(position), constants)
            found.append(
                Layer(
                    name=_APPENDED.sub("", node.name) or node.output[0],
                    kind=node.op_type,
                    precision=_precision(node, ran.get(position)),
                    macs=None if macs is None else macs // batch,
                    activation=_activation(node, readers),
                )
            )
    return tuple(found)


def summary(graph: Any, given: set[str], found: tuple[Layer, ...]) -> Audit:
    """The audit of `graph`, whose layers are known; conversions named in `given` are the model's.

    Unfused is a DequantizeLinear that reads what a QuantizeLinear has just written.
    """
    every = list(nodes(graph))
    rounded = {node.output[0] for node in every if node.op_type == "QuantizeLinear"}
    unfused = [
        node.name or node.output[0]
        for node in every
        if node.op_type == "DequantizeLinear" and node.input[0] in rounded
    ]
    moves = [n.op_type for n in every if n.op_type in _LAYOUTS and n.name not in given]
    shown = _LAYERS | _ROUNDINGS
    kernels = Counter(node.op_type for node in every if node.op_type in shown)
    return Audit(found, kernels, tuple(unfused), Counter(moves))


def _constants(graph: Any, every: list[Any]) -> dict[str, Shape]:
    """Shapes of stored tensors, also behind the DequantizeLinear that makes them float."""
    shapes: dict[str, Shape] = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for node in every:
        if node.op_type == "DequantizeLinear" and node.input[0] in shapes:
            shapes[node.output[0]] = shapes[node.input[0]]
    return shapes


def _macs(node: Any, ran: Ran | None, constants: Mapping[str, Shape]) -> int | None:
    """Of all samples together; None where the node did not run or its weight is not stored."""
    if ran is None or node.op_type in _ATTENTION:
        return None
    if node.op_type in _PRODUCTS:
        transposed = any(a.name == "transA" and a.i for a in node.attribute)
        return product_macs(ran.output, ran.input[-2 if transposed else -1])
    place = (_CONVOLUTIONS | _TRANSPOSED)[node.op_type]
    weight = constants.get(node.input[place])
    if weight is None:
        return None
    walked = ran.input if node.op_type in _TRANSPOSED else ran.output
    return convolution_macs(walked, weight, weight[0])


def _precision(node: Any, ran: Ran | None) -> Executed:
    if node.op_type in _INT8:
        return "int8"
    half: dict[str, Executed] = {"float16": "fp16", "bfloat16": "bf16"}
    return half.get(ran.dtype, "fp32") if ran else "fp32"


def _activation(node: Any, readers: Mapping[str, list[Any]]) -> str:
    """What stands between a layer and the rounding of its result; "" for nothing, or a ReLU."""
    fused = (a.s.decode() for a in node.attribute if a.name == "activation")
    behind = readers.get(node.output[0], [])
    kinds = [*fused, *(reader.op_type for reader in behind)]
    name = next((_ACTIVATIONS[kind] for kind in kinds if kind in _ACTIVATIONS), "")
    return _TIMES_ITSELF.get(name, name) if "Mul" in kinds else name
