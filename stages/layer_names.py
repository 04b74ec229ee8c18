"""Layers of an exported ONNX file under their names in the user's model, which runtimes keep."""

from __future__ import annotations

from ast import literal_eval
from collections import Counter
from typing import Any

from torch import fx, nn

from kdpipe.stages.quantize.aten import WEIGHTED, path
from kdpipe.stages.quantize.emit import Emitted

_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def name_layers(proto: Any, module: nn.Module) -> None:
    """Name each convolution and matrix product of `proto` (a ModelProto) after its module.

    It is found by the weight that it reads: `stem.0` for `stem.0.weight`; where the exporter made
    that weight, by the exporter's note of the module. The second node of a module is `stem.0#2`,
    and an addition of its bias, into which runtimes fuse the product, `stem.0/bias`.
    """
    names = _by_weight(module)
    weights = {tensor.name: tensor.name for tensor in proto.graph.initializer}
    for node in proto.graph.node:
        if node.op_type in ("DequantizeLinear", "Transpose") and node.input[0] in weights:
            weights[node.output[0]] = weights[node.input[0]]
    counts: Counter[str] = Counter()
    made: dict[str, str] = {}
    for node in proto.graph.node:
        if node.op_type in _LAYERS:
            name = names.get(weights.get(node.input[1], "")) or _noted(node)
            if name:
                counts[name] += 1
                node.name = name if counts[name] == 1 else f"{name}#{counts[name]}"
                made[node.output[0]] = node.name
        elif node.op_type == "Add" and weights.keys() & set(node.input):
            layer = next((made[name] for name in node.input if name in made), "")
            node.name = f"{layer}/bias" if layer else node.name


def _noted(node: Any) -> str:
    """The innermost module of the exporter's note; those of an emitted graph are not the user's."""
    notes = {note.key: note.value for note in node.metadata_props}
    scopes = literal_eval(notes.get("pkg.torch.onnx.name_scopes", "[]"))
    return str(scopes[-2]) if len(scopes) > 1 and scopes[-2] != "body" else ""


def _by_weight(module: nn.Module) -> dict[str, str]:
    """{weight as the exporter calls it: layer}; an emitted graph knows whose weight it holds."""
    if not isinstance(module, Emitted):
        named = (name.rpartition(".") for name, _ in module.named_parameters())
        return {f"{owner}.{own}": owner for owner, _, own in named if owner}
    names = {}
    for node in module.body.graph.nodes:
        weight = node.args[1] if node.target in WEIGHTED else None
        if isinstance(weight, fx.Node):
            stored = ".integers" if weight.op == "call_module" else ""
            names[f"body.{weight.target}{stored}"] = path(node)
    return names
