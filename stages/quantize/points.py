"""Where the modules of the user's model are in its captured graph, so that methods can tap them.

A captured network calls no modules, but each node remembers which ones it was in. A tap is what the
next layers see: where a quantizer rounds a tensor, the rounded one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import fx, nn

from kdpipe.stages.distill.points import NoPoint, Parameter, Record, Side
from kdpipe.stages.quantize.aten import WEIGHTED, argument, clip_bounds, is_activation

_A = torch.ops.aten
_CURVES = frozenset({
    _A.silu.default,
    _A.gelu.default,
    _A.hardswish.default,
    _A.leaky_relu.default,
    _A.prelu.default,
    _A._prelu_kernel.default,
})  # fmt: skip
"""Activations that do more than clip."""


class GraphPoints:
    """The points of a captured network, by the paths that its modules had in the user's model."""

    def __init__(self, body: fx.GraphModule) -> None:
        self._body = body

    def paths(self) -> tuple[str, ...]:
        """The modules that compute something; a folded batch norm or a dropout is none of them."""
        seen = (path for node in self._body.graph.nodes for path in _modules_of(node))
        return tuple(dict.fromkeys(path for path in seen if path))

    def watch(self, path: str, side: Side, record: Record) -> Marker:
        """Mark the node, and listen to the mark."""
        nodes = [node for node in self._body.graph.nodes if path in _modules_of(node)]
        match side:
            case "":
                node = _rounded(_output(nodes))
            case "in":
                node = _input(nodes)
            case "pre":
                node = _before_activation(path, nodes)
        return Marker.at(self._body, node, record)

    def parameter(self, path: str, name: Literal["weight", "bias"]) -> Parameter | None:
        """The float parameter of the module's own layer, batch norm folded into it."""
        nodes = self._body.graph.nodes
        layers = [n for n in nodes if n.target in WEIGHTED and _modules_of(n)[-1:] == (path,)]
        if not layers:
            return None
        found = argument(layers[-1], 1 if name == "weight" else 2)
        while isinstance(found, fx.Node) and found.op == "call_module":
            found = found.args[0]
        if not isinstance(found, fx.Node) or found.op != "get_attr":
            return None
        holder, _, attribute = str(found.target).rpartition(".")
        return self._body.get_submodule(holder), attribute


@dataclass(frozen=True)
class Marker:
    """A node that only passes a tensor to whoever listens; nothing is computed from it."""

    body: fx.GraphModule
    node: fx.Node

    @classmethod
    def at(cls, body: fx.GraphModule, watched: fx.Node, record: Record) -> Marker:
        """Mark the output of `watched`."""
        taken = {name for name, _ in body.named_children()}
        number = next(n for n in range(len(taken) + 1) if f"tap_{n}" not in taken)
        mark = nn.Identity()
        mark.register_forward_hook(lambda _module, _inputs, output: record(output))
        body.add_submodule(f"tap_{number}", mark)
        with body.graph.inserting_after(watched):
            node = body.graph.call_module(f"tap_{number}", (watched,))
        body.recompile()
        return cls(body, node)

    def remove(self) -> None:
        """Leave the graph as it was."""
        self.body.graph.erase_node(self.node)
        self.body.delete_submodule(str(self.node.target))
        self.body.recompile()


def _modules_of(node: fx.Node) -> tuple[str, ...]:
    """The modules that the node was computed in, from the model itself, "", to the innermost one,
    without call numbers."""
    stack = node.meta.get("nn_module_stack") or {}
    # The second call of a module is `conv@1`. Nodes that torch.export adds carry a marker.
    paths = (re.sub(r"@\d+", "", path) for path, _ in stack.values())
    return tuple(path for path in paths if not path.startswith("_empty_nn"))


def _output(nodes: list[fx.Node]) -> fx.Node:
    """The last node that is read outside of `nodes`, directly or through a quantizer."""
    inside = set(nodes)
    read = [node for node in nodes if any(user not in inside for user in _readers(node))]
    return (read or nodes)[-1]


def _input(nodes: list[fx.Node]) -> fx.Node:
    """The first tensor from outside of `nodes` that depends on the network's input."""
    inside = set(nodes)
    for node in nodes:
        for source in node.all_input_nodes:
            origin = _source(source)
            if origin not in inside and is_activation(origin):
                return source
    raise NoPoint("a module that reads no activation")


def _before_activation(path: str, nodes: list[fx.Node]) -> fx.Node:
    activations = [node for node in nodes if node.target in _CURVES or clip_bounds(node)]
    if not activations:
        operators = ", ".join(dict.fromkeys(str(node.target) for node in nodes))
        raise NoPoint(f"{path} with {operators}")
    before = activations[-1].args[0]
    assert isinstance(before, fx.Node)
    return before


def _readers(node: fx.Node) -> Iterator[fx.Node]:
    """Who uses a node's value, looking through quantizers."""
    for user in node.users:
        if user.op == "call_module":
            yield from _readers(user)
        else:
            yield user


def _source(node: fx.Node) -> fx.Node:
    """What a quantizer was given; other nodes as they are."""
    while node.op == "call_module":
        (node,) = node.all_input_nodes
    return node


def _rounded(node: fx.Node) -> fx.Node:
    """The rounding of a node's output, where there is one."""
    return next((user for user in node.users if user.op == "call_module" and user.users), node)
