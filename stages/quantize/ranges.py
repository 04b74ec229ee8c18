"""Bounds on activations that follow from the graph alone, whatever the input and the weights.

Observers (`observers.py`) tell what calibration samples did; only this tells what cannot happen.
A tensor is stored as uint8 with zero point 0 when it *cannot* be negative.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import inf, isnan
from typing import Any

from torch import fx

from kdpipe.stages.quantize.aten import (
    AVERAGES,
    CONCATENATIONS,
    INTERPOLATIONS,
    MOVES,
    PRODUCTS,
    SUMS,
    UNIT,
    clip_bounds,
)

Range = tuple[float, float]
ANY: Range = (-inf, inf)


def ranges(graph: fx.Graph) -> dict[fx.Node, Range]:
    """Lowest and highest value each node can have; (-inf, inf) where nothing is known.

    Modules in the graph are taken for quantizers, which keep the range they are given.
    """
    known: dict[fx.Node, Range] = {}
    for node in graph.nodes:
        clip = clip_bounds(node)
        inputs = [known[source] for source in node.all_input_nodes]
        if clip is not None:
            low, high = (min(max(end, clip[0]), clip[1]) for end in inputs[0])
            known[node] = (low, high)
        else:
            known[node] = _rule(node)(inputs) if inputs else ANY
    return known


def _hull(inputs: list[Range]) -> Range:
    return min(low for low, _ in inputs), max(high for _, high in inputs)


def _sum(inputs: list[Range]) -> Range:
    # One input: x + x, or x + number, of which nothing is known.
    return (inputs[0][0] + inputs[1][0], inputs[0][1] + inputs[1][1]) if inputs[1:] else ANY


def _product(inputs: list[Range]) -> Range:
    if not inputs[1:]:
        return ANY
    corners = [a * b for a in inputs[0] for b in inputs[1]]
    # 0 * inf: a bound of zero times a factor without a bound is still zero.
    corners = [0.0 if isnan(corner) else corner for corner in corners]
    return min(corners), max(corners)


def _unit(inputs: list[Range]) -> Range:
    return (0.0, 1.0)


def _unknown(inputs: list[Range]) -> Range:
    return ANY


_RULES: Mapping[frozenset[Any], Callable[[list[Range]], Range]] = {
    MOVES | AVERAGES | CONCATENATIONS | INTERPOLATIONS: _hull,
    SUMS: _sum,
    PRODUCTS: _product,
    UNIT: _unit,
}
_RULE_OF = {operator: rule for operators, rule in _RULES.items() for operator in operators}


def _rule(node: fx.Node) -> Callable[[list[Range]], Range]:
    if node.op == "call_module":
        return _hull
    # a + alpha * b is no plain sum.
    return _unknown if node.kwargs.get("alpha") else _RULE_OF.get(node.target, _unknown)
