"""Batch norm folding: a convolution or linear layer followed by batch norm becomes one layer.

With fixed statistics, norm(Wx + b) = (gW)x + (b - mean)g + shift, where g = gain / sqrt(var + eps)
(Jacob et al. 2018, section 3.2). Quantized weights must be those that the runtime will multiply.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from kdpipe.stages.quantize.aten import WEIGHTED, argument, attribute

_BATCH_NORM = torch.ops.aten.batch_norm.default
_CONV_TRANSPOSE = torch.ops.aten.conv_transpose2d.input


def fold_batch_norms(module: fx.GraphModule) -> None:
    """Fold every batch norm that directly and alone follows a layer with weights, in place.

    Others stay as they are: with fixed statistics they are an affine map, computed in float.
    """
    for norm in list(module.graph.nodes):
        if norm.target is _BATCH_NORM and _foldable(norm.args[0], norm):
            layer = norm.args[0]
            _rewrite(module, layer, *_folded(module, layer, norm))
            norm.replace_all_uses_with(layer)
            module.graph.erase_node(norm)


def _foldable(layer: Any, norm: fx.Node) -> bool:
    if not isinstance(layer, fx.Node) or layer.target not in WEIGHTED or len(layer.users) > 1:
        return False
    # A transposed convolution in groups lays its output channels over two axes of the weight.
    grouped = layer.target is _CONV_TRANSPOSE and argument(layer, 6, 1) != 1
    # Batch norm counts channels along axis 1; a linear layer's features are its last axis.
    deep = layer.target is torch.ops.aten.linear.default and layer.meta["val"].ndim != 2
    statistics = norm.args[3] is not None and norm.args[4] is not None
    constant = argument(layer, 1).op == "get_attr"
    return constant and statistics and not grouped and not deep


def _folded(module: fx.GraphModule, layer: fx.Node, norm: fx.Node) -> tuple[Tensor, Tensor]:
    """The layer's new weight and bias."""

    def value(node: Any) -> Tensor | None:
        return None if node is None else attribute(module, node.target).detach()

    weight, bias = value(layer.args[1]), value(argument(layer, 2))
    gain, shift, mean, variance = (value(node) for node in norm.args[1:5])
    assert weight is not None
    assert mean is not None
    assert variance is not None
    factor = torch.rsqrt(variance + argument(norm, 7))
    factor = factor if gain is None else factor * gain
    shape = [1] * weight.ndim
    shape[WEIGHTED[layer.target]] = -1
    offset = (-mean if bias is None else bias - mean) * factor
    return weight * factor.view(shape), offset if shift is None else offset + shift


def _rewrite(module: fx.GraphModule, layer: fx.Node, weight: Tensor, bias: Tensor) -> None:
    """Give the layer parameters of its own, beside the old ones and named after them."""
    folder = argument(layer, 1).target.rpartition(".")[0]
    with module.graph.inserting_before(layer):
        nodes = []
        for name, tensor in (("weight", weight), ("bias", bias)):
            # A weight that several layers share is folded differently for each of them.
            path = f"{folder}.{layer.name}_{name}".removeprefix(".")
            module.get_submodule(folder).register_parameter(
                path.rpartition(".")[2], nn.Parameter(tensor)
            )
            nodes.append(module.graph.get_attr(path))
    layer.args = (layer.args[0], *nodes, *layer.args[3:])
