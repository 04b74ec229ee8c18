"""Which ATen operators mean what to quantization; tables only, `policy.py` concludes."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable, Mapping
from math import inf
from typing import Any

import torch
from torch import fx

_A = torch.ops.aten

CONVOLUTIONS: Mapping[Any, int] = {
    _A.conv1d.default: 0,
    _A.conv1d.padding: 0,
    _A.conv2d.default: 0,
    _A.conv2d.padding: 0,
    _A.conv3d.default: 0,
    _A.conv3d.padding: 0,
    _A.conv_transpose2d.input: 1,
}
"""Convolution -> the axis of its weight that counts output channels. Transposed convolutions of one
and of three dimensions stay in float."""

WEIGHTED: Mapping[Any, int] = {**CONVOLUTIONS, _A.linear.default: 0}
"""Operator whose second argument is a trained weight -> the axis of the output channels."""

MATMULS: frozenset[Any] = frozenset({_A.matmul.default, _A.bmm.default})
"""Products of two activations, as in attention."""

MOVES: frozenset[Any] = frozenset({
    _A.alias.default,
    _A.clone.default,
    _A.contiguous.default,
    _A.flatten.using_ints,
    _A.max_pool1d.default,
    _A.max_pool2d.default,
    _A.max_pool3d.default,
    _A.permute.default,
    _A.pixel_shuffle.default,
    _A.reshape.default,
    _A.slice.Tensor,
    _A.split.Tensor,
    _A.split_with_sizes.default,
    _A.chunk.default,
    _A.squeeze.dim,
    _A.squeeze.dims,
    _A.transpose.int,
    _A.unsqueeze.default,
    _A.upsample_nearest2d.vec,
    _A.view.default,
    operator.getitem,
})  # fmt: skip
"""Operators that only choose and move values: what comes out has the scale of what went in."""

AVERAGES: frozenset[Any] = frozenset({
    _A.adaptive_avg_pool1d.default,
    _A.adaptive_avg_pool2d.default,
    _A.adaptive_avg_pool3d.default,
    _A.avg_pool1d.default,
    _A.avg_pool2d.default,
    _A.avg_pool3d.default,
    _A.mean.dim,
})  # fmt: skip
"""Averages over positions: the output lies within the range of the input, on a finer grid."""

INTERPOLATIONS: frozenset[Any] = frozenset({_A.upsample_bilinear2d.vec})
"""Weighted means of neighbours: the output lies within the range of the input."""

SUMS: frozenset[Any] = frozenset({_A.add.Tensor})
PRODUCTS: frozenset[Any] = frozenset({_A.mul.Tensor})
CONCATENATIONS: frozenset[Any] = frozenset({_A.cat.default})

UNIT: frozenset[Any] = frozenset({
    _A.sigmoid.default,
    _A.hardsigmoid.default,
    _A.softmax.int,
})  # fmt: skip
"""Operators whose output lies in 0..1."""

DROPOUTS: frozenset[Any] = frozenset({
    _A.dropout.default,
    _A.feature_dropout.default,
    _A.alpha_dropout.default,
    _A.feature_alpha_dropout.default,
})  # fmt: skip


def _bounds(low: float | None = None, high: float | None = None) -> tuple[float, float]:
    return (-inf if low is None else float(low), inf if high is None else float(high))


_CLIPS: Mapping[Any, Callable[..., tuple[float, float]]] = {
    _A.relu.default: lambda: (0.0, inf),
    _A.relu6.default: lambda: (0.0, 6.0),
    _A.hardtanh.default: lambda min_val=-1.0, max_val=1.0: _bounds(min_val, max_val),
    _A.clamp.default: lambda min=None, max=None: _bounds(min, max),
    _A.clamp_min.default: lambda min: _bounds(min),
}


def clip_bounds(node: fx.Node) -> tuple[float, float] | None:
    """Bounds of an activation that only clips, or None. Example: ReLU6 -> (0.0, 6.0)."""
    if node.op != "call_function" or node.target not in _CLIPS:
        return None
    return _CLIPS[node.target](*node.args[1:], **node.kwargs)


def origin(node: fx.Node) -> str:
    """How people know a node: `relu_3 (in layer1.0.act)`, the module's path in their model."""
    inside = module_path(node)
    return f"{node.name} (in {inside})" if inside else node.name


def module_path(node: fx.Node) -> str:
    """The module of the user's model that computes `node`, or "" for the model itself."""
    stack = node.meta.get("nn_module_stack") or {}
    # Nodes that torch.export adds carry a marker in place of a path.
    paths = [path for path, _ in stack.values() if path and not path.startswith("_empty_nn")]
    return paths[-1] if paths else ""


def is_layer(node: fx.Node) -> bool:
    """Whether `node` can be quantized: it has a weight of its own, or multiplies activations."""
    if node.target in WEIGHTED:
        weight = argument(node, 1)
        return isinstance(weight, fx.Node) and weight.op == "get_attr"
    return node.target in MATMULS and all(is_activation(operand) for operand in node.args[:2])


def is_activation(argument: Any) -> bool:
    """A float tensor that depends on the input; a split's tuple of tensors is none."""
    if not isinstance(argument, fx.Node) or argument.op == "get_attr" or _CONSTANT in argument.meta:
        return False
    value = argument.meta.get("val")
    return bool(getattr(getattr(value, "dtype", None), "is_floating_point", False))


def mark_constants(graph: fx.Graph) -> None:
    """Find what a captured graph computes without its input: a class token for each sample, say.

    Copies of the graph keep it, and `is_activation` tells.
    """
    constants = set[fx.Node]()
    for node in graph.nodes:
        # Sizes, such as that of the batch, are numbers.
        read = [n for n in node.all_input_nodes if not isinstance(n.meta.get("val"), _NUMBERS)]
        if node.op == "get_attr" or (node.op == "call_function" and constants.issuperset(read)):
            constants.add(node)
            node.meta[_CONSTANT] = True


def name_layers(graph: fx.Graph) -> None:
    """Give every layer of a captured graph its `path`, which copies of the graph keep."""
    counts: Counter[str] = Counter()
    for node in filter(is_layer, graph.nodes):
        name = _layer_name(node)
        counts[name] += 1
        node.meta[_PATH] = name if counts[name] == 1 else f"{name}#{counts[name]}"


def path(node: fx.Node) -> str:
    """The name of a layer: its module's path in the user's model, `layer1.0.conv1`.

    The second call of a module is `conv#2`, a product of activations `attention.matmul`; a layer
    outside of all modules has the node's name. Each layer of a graph has a name of its own.
    """
    return str(node.meta.get(_PATH) or module_path(node) or node.name)


_PATH, _CONSTANT = "kdpipe_path", "kdpipe_constant"
"""Keys of a node's `meta`."""

_NUMBERS = (int, float, torch.SymInt, torch.SymFloat)


def _layer_name(node: fx.Node) -> str:
    inside = module_path(node)
    if node.target in MATMULS:
        return f"{inside}.matmul" if inside else node.name
    # Attention calls its projections as functions: the weight tells which one it is.
    owner: str = node.args[1].target.rpartition(".")[0]  # type: ignore[union-attr]
    return owner if owner.startswith(inside) and owner else inside or node.name


def argument(node: fx.Node, position: int, default: Any = None) -> Any:
    """A positional argument, or its default where the graph leaves it out."""
    return node.args[position] if len(node.args) > position else default


def attribute(root: torch.nn.Module, path: str) -> Any:
    """What a `get_attr` node reads: the tensor at a dotted path below `root`."""
    holder, _, name = path.rpartition(".")
    return getattr(root.get_submodule(holder), name)
