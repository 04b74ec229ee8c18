"""Where a graph is rounded: rules as data, and the placement they give. Nothing is changed here.

`engine.py` puts the quantizers of a placement into the graph. The rules suit ONNX Runtime,
OpenVINO and TensorRT at once: what a runtime can fuse into an int8 kernel is rounded on all sides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import fx

from kdpipe.stages.quantize.aten import (
    AVERAGES,
    CONCATENATIONS,
    CONVOLUTIONS,
    INTERPOLATIONS,
    MOVES,
    PRODUCTS,
    SUMS,
    WEIGHTED,
    argument,
    clip_bounds,
)
from kdpipe.stages.quantize.fake import Grid
from kdpipe.stages.quantize.observers import MovingRange, Observer


@dataclass(frozen=True)
class Rule:
    """Round the first `operands` arguments of `operators`, and the `output`.

    `shared`: operands and output have one scale. The rule is left out where an operand is no
    activation (a number, a constant): such an operator is an affine map that runtimes fold away.
    """

    operators: frozenset[Any]
    operands: int = 1
    output: bool = False
    shared: bool = False


RULES: tuple[Rule, ...] = (
    Rule(frozenset(WEIGHTED)),
    Rule(SUMS | PRODUCTS, operands=2, output=True),
    Rule(CONCATENATIONS, output=True, shared=True),
    Rule(AVERAGES, output=True),
    Rule(INTERPOLATIONS, output=True, shared=True),
)

BEFORE_ACTIVATIONS = Rule(frozenset(CONVOLUTIONS), operands=0, output=True)
"""Add it for networks with SiLU or h-swish on ONNX Runtime: it fuses a convolution only when the
output is rounded before the activation too. OpenVINO is faster without it."""


@dataclass(frozen=True)
class Policy:
    """What is rounded and how.

    `heads`: also round the network's output, so that ONNX Runtime runs a last convolution in int8;
    a last linear layer needs no such help.
    """

    rules: tuple[Rule, ...] = RULES
    activations: Grid = field(default_factory=Grid)
    weights: Grid = field(default_factory=Grid)
    observer: Callable[[], Observer] = MovingRange
    heads: bool = False

    def place(self, graph: fx.Graph) -> Placement:
        """Where the rules put quantizers in `graph`."""
        scales = _Scales()
        for node in graph.nodes:
            for rule in self.rules:
                if node.op == "call_function" and node.target in rule.operators:
                    _apply(rule, node, scales)
        if self.heads:
            scales.add(argument(graph.output_node(), 0))
        activations = {
            node: scales.name(node)
            for node in graph.nodes
            if node in scales and (self.heads or any(user.op != "output" for user in node.users))
        }
        weights = {
            node: WEIGHTED[node.target]
            for node in graph.nodes
            if node.target in WEIGHTED and argument(node, 1).op == "get_attr"
        }
        return Placement(activations, weights)


@dataclass(frozen=True)
class Placement:
    """Node whose output is rounded -> name of its quantizer (nodes of one scale share a name);
    layer whose weight is rounded -> axis of its output channels."""

    activations: dict[fx.Node, str]
    weights: dict[fx.Node, int]


class _Scales:
    """Which nodes are rounded, and which of them have one scale: a union-find."""

    def __init__(self) -> None:
        self._leader: dict[fx.Node, fx.Node] = {}

    def __contains__(self, node: fx.Node) -> bool:
        return node in self._leader

    def add(self, node: fx.Node) -> None:
        self._leader.setdefault(node, node)

    def join(self, a: fx.Node, b: fx.Node) -> None:
        """Give both one scale, named after the earlier node."""
        self.add(a)
        self.add(b)
        first, second = sorted((self.leader(a), self.leader(b)))
        self._leader[second] = first

    def leader(self, node: fx.Node) -> fx.Node:
        while self._leader[node] is not node:
            node = self._leader[node]
        return node

    def name(self, node: fx.Node) -> str:
        return f"quantize_{self.leader(node).name}"


def _apply(rule: Rule, node: fx.Node, scales: _Scales) -> None:
    operands: list[Any] = list(_flat(node.args[: rule.operands]))
    if not all(_is_activation(operand) for operand in operands):
        return
    for operand in operands:
        _add_moved(operand, scales)
    if rule.output:
        scales.add(_behind_clip(node))
    if rule.shared:
        for operand in operands:
            scales.join(operand, _behind_clip(node))


def _add_moved(node: fx.Node, scales: _Scales) -> None:
    """Round `node`; when it only moves values, also its source, with the same scale.

    Runtimes move int8 values only between two roundings of one scale, which change nothing.
    """
    scales.add(node)
    while node.target in MOVES and _is_activation(source := argument(node, 0)):
        scales.join(node, source)
        node = source


def _behind_clip(node: fx.Node) -> fx.Node:
    """The ReLU behind `node`, if that alone reads it: rounded once, after the ReLU."""
    users = list(node.users)
    return users[0] if len(users) == 1 and clip_bounds(users[0]) else node


def _flat(arguments: Any) -> Iterator[Any]:
    for value in arguments:
        if isinstance(value, list | tuple):
            yield from _flat(value)
        else:
            yield value


def _is_activation(argument: Any) -> bool:
    """A float tensor that depends on the input; a split's tuple of tensors is none."""
    if not isinstance(argument, fx.Node) or argument.op == "get_attr":
        return False
    value = argument.meta.get("val")
    return bool(getattr(getattr(value, "dtype", None), "is_floating_point", False))
