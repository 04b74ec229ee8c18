"""Where a graph is rounded: rules as data, and the placement they give. Nothing is changed here.

`engine.py` puts the quantizers of a placement into the graph. The rules suit ONNX Runtime,
OpenVINO and TensorRT at once: what a runtime can fuse into an int8 kernel is rounded on all sides.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from kdpipe.stages.quantize.aten import (
    AVERAGES,
    CONCATENATIONS,
    CONVOLUTIONS,
    INTERPOLATIONS,
    MATMULS,
    MOVES,
    PRODUCTS,
    SUMS,
    WEIGHTED,
    argument,
    is_activation,
    is_layer,
    path,
)
from kdpipe.stages.quantize.fake import Grid
from kdpipe.stages.quantize.observers import MovingRange, Observer
from kdpipe.stages.quantize.placement import (
    Placement,
    Scales,
    behind_clip,
    flat,
    inputs_of,
    maker_of,
    next_layers,
    readers_of,
    users_of,
)
from kdpipe.targets.errors import UsageError, listing

_MEAN = torch.ops.aten.mean.dim


@dataclass(frozen=True)
class Rule:
    """Round the first `operands` arguments of `operators`, and the `output`.

    `shared`: operands and output have one scale. `moved`: an operand that was only moved has the
    scale of where it came from. The rule is left out where an operand is no
    activation (a number, a constant): such an operator is an affine map that runtimes fold away.
    """

    operators: frozenset[Any]
    operands: int = 1
    output: bool = False
    shared: bool = False
    moved: bool = True


RULES: tuple[Rule, ...] = (
    Rule(frozenset(WEIGHTED)),
    # Not `moved`: queries, keys and values often come out of one layer, and differ in range.
    Rule(MATMULS, operands=2, moved=False),
    Rule(SUMS | PRODUCTS, operands=2, output=True),
    Rule(CONCATENATIONS, output=True, shared=True),
    Rule(AVERAGES, output=True),
    Rule(INTERPOLATIONS, output=True, shared=True),
)

BEFORE_ACTIVATIONS = Rule(frozenset(CONVOLUTIONS), operands=0, output=True)
"""`Policy.before_activations` adds it: ONNX Runtime fuses a convolution in front of SiLU or h-swish
only when the output is rounded before the activation too. OpenVINO is faster without it."""


@dataclass(frozen=True)
class Policy:
    """What is rounded and how.

    `weights`: the grid of every weight that `layers` does not name.
    `observer`: makes what reads a range in calibration, one for each scale.
    `heads`: also round the network's output, so that ONNX Runtime runs a last convolution in int8;
    a last linear layer needs no such help.
    `layers`: layer name (`engine.layers`) -> the grid of its weight, or None: it stays in float,
    and its input or output is rounded only where an int8 neighbour needs that.
    `before_activations`: see `BEFORE_ACTIVATIONS`.
    `learned`: scales are parameters that training moves (`lsq.py`).
    """

    rules: tuple[Rule, ...] = RULES
    activations: Grid = field(default_factory=Grid)
    weights: Grid = field(default_factory=Grid)
    observer: Callable[[], Observer] = MovingRange
    heads: bool = False
    layers: Mapping[str, Grid | None] = field(default_factory=dict, hash=False)
    before_activations: bool = False
    learned: bool = False

    def place(self, graph: fx.Graph) -> Placement:
        """Where the rules put quantizers in `graph`.

        Raises UsageError when `layers` names a layer that `graph` does not have, or gives a grid
        to one without a weight.
        """
        self._check(graph)
        # Names and shared scales do not depend on `layers`: a checkpoint of a network with more
        # rounded layers fits.
        named = self._rounded(graph, frozenset())
        floats = frozenset(n for n in graph.nodes if is_layer(n) and self._is_float(n))
        rounded = self._rounded(graph, floats) if floats else named
        activations = {
            node: named.name(node)
            for node in graph.nodes
            if node in rounded and (self.heads or any(user.op != "output" for user in node.users))
        }
        weights = {
            node: WEIGHTED[node.target]
            for node in graph.nodes
            if node.target in WEIGHTED and is_layer(node) and node not in floats
        }
        return Placement(activations, weights)

    def grid(self, layer: fx.Node) -> Grid:
        """The grid of a rounded layer's weight."""
        return self.layers.get(path(layer)) or self.weights

    def _is_float(self, layer: fx.Node) -> bool:
        return self.layers.get(path(layer), self.weights) is None

    def _check(self, graph: fx.Graph) -> None:
        known = {path(node): node for node in graph.nodes if is_layer(node)}
        for name, grid in self.layers.items():
            if name not in known:
                raise UsageError(
                    f"the network has no layer {name!r} to quantize or leave in float",
                    found=listing(list(known)) or "no convolution or linear layer at all",
                    fix="name one of its layers",
                )
            if grid is not None and known[name].target in MATMULS:
                raise UsageError(
                    f"{name!r} multiplies two activations, and has no weight to round",
                    found=f"{grid.bits} bits for its weight",
                    fix="leave it out, or keep it in float",
                )

    def _rounded(self, graph: fx.Graph, floats: frozenset[fx.Node]) -> Scales:
        """The nodes that are rounded when the layers in `floats` are not."""
        rules = (*self.rules, BEFORE_ACTIVATIONS) if self.before_activations else self.rules
        ruled = frozenset[Any]().union(*(rule.operators for rule in rules))
        scales = Scales()
        for node in graph.nodes:
            if node.op != "call_function" or node.target not in ruled:
                continue
            if node in floats or _in_island(node, ruled, floats):
                _round_for_makers(node, floats, scales)
            else:
                for rule in rules:
                    if node.target in rule.operators:
                        _apply(rule, node, scales)
        head = argument(graph.output_node(), 0)
        if self.heads and maker_of(head) not in floats:
            scales.add(head)
        return scales


def _apply(rule: Rule, node: fx.Node, scales: Scales) -> None:
    operands: list[Any] = list(flat(node.args[: rule.operands]))
    if not all(is_activation(operand) for operand in operands) or not _runs_in_int8(node):
        return
    for operand in operands:
        if rule.moved:
            _add_moved(operand, scales)
        else:
            scales.add(operand)
    if rule.output:
        scales.add(behind_clip(node))
    if rule.shared:
        for operand in operands:
            scales.join(operand, behind_clip(node))


def _runs_in_int8(node: fx.Node) -> bool:
    """Whether a runtime gains anything from rounding around `node`."""
    if node.target in WEIGHTED:
        return is_layer(node)  # a computed weight cannot be stored in int8
    if node.target is _MEAN:
        # Over pixels or time, not over a transformer's tokens, which come from a layer norm.
        averaged = argument(node, 0)
        return averaged.meta["val"].ndim > 3 or maker_of(averaged).target in CONVOLUTIONS
    if node.target in SUMS:
        return _meets_int8(node)
    return True


def _meets_int8(total: fx.Node) -> bool:
    """Whether a convolution makes a term of a sum, or a layer reads the sum.

    The sums of a transformer stand between float operators, its layer norms and linear layers with
    a float output: rounding them would cost accuracy and two conversions each.
    """
    makers = [maker_of(term) for term in total.all_input_nodes if is_activation(term)]
    return any(maker.target in CONVOLUTIONS for maker in makers) or any(
        reader.target in WEIGHTED for reader in readers_of(total)
    )


def _add_moved(node: fx.Node, scales: Scales) -> None:
    """Round `node`; when it only moves values, also its source, with the same scale.

    Runtimes move int8 values only between two roundings of one scale, which change nothing.
    """
    scales.add(node)
    while node.target in MOVES and is_activation(source := argument(node, 0)):
        scales.join(node, source)
        node = source


def _round_for_makers(node: fx.Node, floats: frozenset[fx.Node], scales: Scales) -> None:
    """Round what an int8 convolution makes for `node`, which itself is in float.

    ONNX Runtime has no int8 convolution with a float output.
    """
    for operand in filter(is_activation, flat(node.args[:2])):
        maker = maker_of(operand)
        if maker.target in CONVOLUTIONS and is_layer(maker) and maker not in floats:
            _add_moved(operand, scales)


def _in_island(node: fx.Node, ruled: frozenset[Any], floats: frozenset[fx.Node]) -> bool:
    """Whether `node` is no layer, and a float layer makes an operand or only such read it."""
    if not floats or is_layer(node):
        return False
    makers = set(next_layers(node, ruled, inputs_of))
    readers = set(next_layers(node, ruled, users_of))
    return bool(makers & floats) or (bool(readers) and readers <= floats)
