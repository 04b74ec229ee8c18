"""Attention in a captured graph -> the products and the softmax that it is made of.

`scaled_dot_product_attention` is one operator in torch, and two int8 products with a float softmax
between them for a runtime; `policy.py` can only round what stands between operators.
"""

from __future__ import annotations

from math import inf
from typing import Any

import torch
from torch import fx

_A = torch.ops.aten
_ATTENTION = _A.scaled_dot_product_attention.default


def open_attention(graph: fx.Graph) -> None:
    """Replace every fused attention and every `baddbmm` by its parts, in place.

    Grouped queries stay as they are: a runtime computes them in float.
    """
    for node in list(graph.nodes):
        if node.target is _ATTENTION and not node.kwargs.get("enable_gqa"):
            _replace(node, _attention)
        elif node.target is _A.baddbmm.default and not node.kwargs:
            _replace(node, _product_and_sum)


class _Writer:
    """Adds operators before `node`, as part of the same module and with their shapes."""

    def __init__(self, node: fx.Node) -> None:
        self._node = node

    def __call__(self, operator: Any, *arguments: Any, **options: Any) -> fx.Node:
        graph = self._node.graph
        with graph.inserting_before(self._node):
            added = graph.call_function(operator, arguments, options)
        added.meta = {k: v for k, v in self._node.meta.items() if k == "nn_module_stack"}
        values = fx.map_arg((arguments, options), lambda n: n.meta["val"])
        added.meta["val"] = operator(*values[0], **values[1])
        return added


def _replace(node: fx.Node, build: Any) -> None:
    node.replace_all_uses_with(build(_Writer(node), *node.args, **node.kwargs))
    node.graph.erase_node(node)


def _attention(
    write: _Writer,
    query: fx.Node,
    key: fx.Node,
    value: fx.Node,
    attn_mask: fx.Node | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> fx.Node:
    """softmax(scale q k^T + mask) v, as torch documents it; there is no dropout in eval mode."""
    scale = query.meta["val"].shape[-1] ** -0.5 if scale is None else scale
    scaled = write(_A.mul.Tensor, query, scale)
    scores = write(_A.matmul.default, scaled, write(_A.transpose.int, key, -2, -1))
    if is_causal:
        rows, columns = scores.meta["val"].shape[-2:]
        device = scores.meta["val"].device
        ones = write(_A.ones.default, [rows, columns], dtype=torch.bool, device=device)
        scores = _masked(write, scores, write(_A.tril.default, ones))
    if attn_mask is not None and attn_mask.meta["val"].dtype is torch.bool:
        scores = _masked(write, scores, attn_mask)
    elif attn_mask is not None:
        scores = write(_A.add.Tensor, scores, attn_mask)
    return write(_A.matmul.default, write(_A.softmax.int, scores, -1), value)


def _masked(write: _Writer, scores: fx.Node, allowed: fx.Node) -> fx.Node:
    hidden = write(_A.bitwise_not.default, allowed)
    return write(_A.masked_fill.Scalar, scores, hidden, -inf)


def _product_and_sum(write: _Writer, addend: fx.Node, a: fx.Node, b: fx.Node) -> fx.Node:
    return write(_A.add.Tensor, write(_A.bmm.default, a, b), addend)
