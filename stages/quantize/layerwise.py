"""A quantized network beside its float original, one layer at a time.

What `bias.py` and `adaround.py` share: which layers there are, in the order they compute, and what
reaches each of them. Nothing is changed here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, fx

from kdpipe.stages.quantize.aten import WEIGHTED, argument, path
from kdpipe.stages.quantize.engine import QuantizedModel
from kdpipe.stages.quantize.fake import Mode, Quantizer
from kdpipe.targets.errors import StageError, UsageError


@dataclass(frozen=True)
class Layer:
    """A layer: its `node` in the quantized network, `original` in the float one, and the path of
    its `weight` in both."""

    name: str
    node: fx.Node
    original: fx.Node
    weight: str

    @property
    def source(self) -> fx.Node:
        """What the layer reads, rounded."""
        source: fx.Node = argument(self.node, 0)
        return source


def pair(model: QuantizedModel, float_graph: fx.GraphModule) -> list[Layer]:
    """The layers with weights of `model` beside those of the graph it was made from, in order.

    Raises UsageError when `float_graph` is not the graph that `model` was inserted from.
    """
    originals = {path(node): node for node in float_graph.graph.nodes if node.target in WEIGHTED}
    layers = []
    for node in model.body.graph.nodes:
        weight = weight_path(node) if node.target in WEIGHTED else None
        if weight is None:
            continue
        original = originals.get(path(node))
        if original is None or weight_path(original) != weight:
            raise UsageError(
                "the float graph is not the one that the quantized network was made from",
                found=f"no layer {path(node)} in it",
                fix="give the captured graph that insert() was given",
            )
        layers.append(Layer(path(node), node, original, weight))
    return layers


def weight_path(layer: fx.Node) -> str | None:
    """Where the parameter of a layer's weight is, behind its quantizer; None if it is computed."""
    node: fx.Node = argument(layer, 1)
    while node.op == "call_module":
        node = argument(node, 0)
    return str(node.target) if node.op == "get_attr" else None


def upto(module: fx.GraphModule, node: fx.Node) -> fx.GraphModule:
    """What `module` computes up to `node`, and nothing else; weights and quantizers are shared."""
    needed, queue = set[fx.Node](), [node]
    while queue:
        near = queue.pop()
        if near not in needed:
            needed.add(near)
            queue += near.all_input_nodes
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for each in module.graph.nodes:
        if each in needed or each.op == "placeholder":
            copies[each] = graph.node_copy(each, copies.__getitem__)
    graph.output(copies[node])
    return fx.GraphModule(module, graph)


@contextmanager
def rounding(model: QuantizedModel) -> Iterator[None]:
    """Round, in eval mode; afterwards the model and its quantizers are in the modes they were in.

    Raises StageError when `model` is not calibrated.
    """
    if not model.calibrated:
        raise StageError(
            "only a calibrated network can be corrected",
            found="quantizers without a scale",
            fix="calibrate() it first",
        )
    modes = {m: m.mode for m in model.modules() if isinstance(m, Quantizer)}
    training = model.training
    model.eval()  # in training, scales may follow what they see
    model.set_mode(Mode.QUANTIZE)
    try:
        yield
    finally:
        model.train(training)
        for quantizer, mode in modes.items():
            quantizer.mode = mode


def held(batches: Iterable[Tensor]) -> tuple[Tensor, ...]:
    """Calibration batches that can be walked once for each layer; raises StageError on none."""
    kept = tuple(batches)
    if not kept:
        raise StageError(
            "cannot correct the network: there are no calibration samples",
            fix="give the calibration split at least one batch",
        )
    return kept
