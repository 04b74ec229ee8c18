"""Bias correction: rounding shifts the mean of a layer's outputs; its bias shifts it back.

Nagel et al. 2019, arXiv:1906.04721, section 4.2, the empirical variant of appendix D: layer after
layer, each output channel's bias moves by the mean difference between the float network and the
quantized one, whose earlier layers are corrected already.

It helps when weights have few bits, and takes seconds. At 8 bits there is little to correct.
Accuracy on 450 digits (standard error about 1) and, in brackets, mean squared error of the logits
over their variance, with 512 calibration samples:

    weights, activations   float   8, 8 bits       corrected       4, 8 bits       corrected
    resnet8                 98.9   98.7 (0.0011)   98.7 (0.0005)   97.1 (0.083)    98.2 (0.022)
    dscnn                   97.3   97.6 (0.0017)   97.3 (0.0015)   91.6 (0.170)    95.8 (0.055)
    mobilenet               95.3   95.3 (0.0060)   94.4 (0.0059)   91.8 (0.124)    94.2 (0.063)

After `adaround.py`, whose reconstruction leaves little bias, it changes nothing for the better
(4-bit resnet8: 0.006 before and 0.007 after).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, fx, nn

from kdpipe.stages.quantize.aten import WEIGHTED, argument, attribute, path
from kdpipe.stages.quantize.engine import QuantizedModel
from kdpipe.stages.quantize.layerwise import held, pair, rounding, upto, weight_path


def correct_biases(
    model: QuantizedModel, float_graph: fx.GraphModule, batches: Iterable[Tensor]
) -> None:
    """Make each layer's mean output per channel on `batches` that of the float network, in place.

    `float_graph`: the graph that `model` was inserted from. `batches`: (N, ...) each, kept in
    memory and run once for each layer. Layers without a bias of their own get one, as
    `add_biases` says. Raises StageError when `model` is not calibrated or there is no batch,
    UsageError when the graphs do not fit.
    """
    batches = held(batches)
    layers = pair(model, float_graph)
    with rounding(model), torch.no_grad():
        add_biases(model.body)
        for layer in layers:
            axis = _channel_axis(layer.node)
            expected = _channel_means(upto(float_graph, layer.original), batches, axis)
            found = _channel_means(upto(model.body, layer.node), batches, axis)
            attribute(model.body, argument(layer.node, 2).target).add_(expected - found)


def add_biases(graph: fx.GraphModule) -> tuple[str, ...]:
    """Give every layer a bias that no other layer reads, in place; the function stays the same.

    A layer that had none gets zeros. Returns the names of the layers that got one. The state dict
    of a network that was corrected has these biases: call this on the captured graph before
    `insert` to load it.
    """
    layers = [node for node in graph.graph.nodes if node.target in WEIGHTED]
    taken: set[int] = set()
    changed = []
    for layer in layers:
        weight, bias = weight_path(layer), argument(layer, 2)
        if weight is None or (bias is not None and bias.op != "get_attr"):
            continue
        old = None if bias is None else attribute(graph, bias.target)
        if old is None or id(old) in taken:
            _set_bias(graph, layer, weight, old)
            changed.append(path(layer))
        else:
            taken.add(id(old))
    graph.recompile()
    return tuple(changed)


def _set_bias(graph: fx.GraphModule, layer: fx.Node, weight: str, old: Tensor | None) -> None:
    """A parameter of the layer's own, beside its weight and named after the layer."""
    if old is None:
        example = attribute(graph, weight)
        value = example.new_zeros(layer.meta["val"].shape[_channel_axis(layer)])
    else:
        value = old.detach().clone()
    folder = weight.rpartition(".")[0]
    name = f"{layer.name}_bias"
    graph.get_submodule(folder).register_parameter(name, nn.Parameter(value))
    with graph.graph.inserting_before(layer):
        node = graph.graph.get_attr(f"{folder}.{name}".removeprefix("."))
    layer.args = (*layer.args[:2], node, *layer.args[3:])


def _channel_axis(layer: fx.Node) -> int:
    """The axis of a layer's output that counts its channels."""
    return -1 if layer.target is torch.ops.aten.linear.default else 1


def _channel_means(part: fx.GraphModule, batches: Iterable[Tensor], axis: int) -> Tensor:
    """Mean output of each channel over all samples and positions, (C,)."""
    totals, count = torch.zeros(()), 0
    for batch in batches:
        output = part(batch).movedim(axis, 0).flatten(1)
        # In double: a float sum over millions of positions would be off by more than the shift.
        totals = totals.to(output.device) + output.sum(1, dtype=torch.float64)
        count += output.shape[1]
    return (totals / count).float()
