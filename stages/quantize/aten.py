"""Which ATen operators mean what to quantization; tables only, `policy.py` concludes."""

from __future__ import annotations

import operator
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
    _A.conv_transpose2d.input: 1,
}
"""Convolution -> the axis of its weight that counts output channels."""

WEIGHTED: Mapping[Any, int] = {**CONVOLUTIONS, _A.linear.default: 0}
"""Operator whose second argument is a trained weight -> the axis of the output channels."""

MOVES: frozenset[Any] = frozenset({
    _A.alias.default,
    _A.clone.default,
    _A.contiguous.default,
    _A.flatten.using_ints,
    _A.max_pool1d.default,
    _A.max_pool2d.default,
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
    _A.avg_pool2d.default,
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
    stack = node.meta.get("nn_module_stack") or {}
    paths = [path for path, _ in stack.values() if path]
    return f"{node.name} (in {paths[-1]})" if paths else node.name


def argument(node: fx.Node, position: int, default: Any = None) -> Any:
    """A positional argument, or its default where the graph leaves it out."""
    return node.args[position] if len(node.args) > position else default


def attribute(root: torch.nn.Module, path: str) -> Any:
    """What a `get_attr` node reads: the tensor at a dotted path below `root`."""
    holder, _, name = path.rpartition(".")
    return getattr(root.get_submodule(holder), name)
