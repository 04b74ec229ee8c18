"""A trained graph -> the graph a runtime computes: int8 weights, rounded activations, no autograd.

Both flavours come from the same scales:

    trt   int8 with zero point 0 everywhere, exactly what was trained (TensorRT takes nothing else)
    cpu   uint8, which ONNX Runtime and OpenVINO fuse: zero point 128 is the trained grid; a tensor
          that cannot be negative has zero point 0, the same step, and twice the room above

Biases stay in float: each runtime quantizes them as it likes.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, fx, nn

from kdpipe.stages.quantize import ops
from kdpipe.stages.quantize.aten import argument, attribute, clip_bounds
from kdpipe.stages.quantize.capture import drop_unused
from kdpipe.stages.quantize.engine import QuantizedModel
from kdpipe.stages.quantize.fake import ActivationQuantizer, Grid, WeightQuantizer
from kdpipe.stages.quantize.ranges import Range, ranges
from kdpipe.targets.errors import StageError, UsageError

Flavour = Literal["cpu", "trt"]


@dataclass(frozen=True)
class Format:
    """How one tensor is stored: `low`..`high` is 0..255 or -128..127, `step` the trained scale."""

    zero_point: int
    low: int
    high: int
    step: float


class Rounded(nn.Module):
    """An activation as a runtime rounds it."""

    scale: Tensor

    def __init__(self, stored: Format, device: torch.device) -> None:
        super().__init__()
        self.stored = stored
        self.register_buffer("scale", torch.tensor(stored.step, device=device))

    def forward(self, x: Tensor) -> Tensor:
        """QuantizeLinear and DequantizeLinear, on a tensor of any shape."""
        stored = self.stored
        rounded: Tensor = ops.requantize(x, self.scale, stored.zero_point, stored.low, stored.high)
        return rounded


class StoredWeight(nn.Module):
    """A weight as a file holds it: int8, with a scale for each channel along `axis`."""

    integers: Tensor
    scale: Tensor

    def __init__(self, quantizer: WeightQuantizer, weight: Tensor) -> None:
        super().__init__()
        self.axis = quantizer.axis
        self.register_buffer("integers", quantizer.integers(weight))
        self.register_buffer("scale", quantizer.scale(weight).flatten())

    def forward(self) -> Tensor:
        """The weight in float."""
        weight: Tensor = ops.dequantize(self.integers, self.scale, self.axis)
        return weight


class Emitted(nn.Module):
    """What a file of one `flavour` computes, as a torch module; made by `emit`."""

    def __init__(self, body: fx.GraphModule, flavour: Flavour) -> None:
        super().__init__()
        self.body = body
        self.flavour = flavour

    def forward(self, x: Tensor) -> Tensor:
        """(N, ...) -> what the captured model returns."""
        output: Tensor = self.body(x)
        return output


def emit(model: QuantizedModel, flavour: Flavour) -> Emitted:
    """What a runtime of this flavour computes; `model` is left as it is, and can train on.

    Raises StageError when `model` is not calibrated or trains on another grid than 8 bits.
    """
    _check(model, flavour)
    body = copy.deepcopy(model.body)
    bounds = ranges(body.graph)
    for node in list(body.graph.nodes):
        module = body.get_submodule(node.target) if node.op == "call_module" else None
        if isinstance(module, ActivationQuantizer):
            stored = _format(module, bounds[node], flavour)
            _replace(body, node, Rounded(stored, module.scale.device), node.args)
            _drop_clip(body.graph, node.args[0], stored)
        elif isinstance(module, WeightQuantizer):
            weight = attribute(body, node.args[0].target)
            _replace(body, node, StoredWeight(module, weight), ())
    if flavour == "cpu":
        _split_bias(body.graph)
    body.graph.eliminate_dead_code()
    body.delete_all_unused_submodules()
    drop_unused(body)
    body.recompile()
    return Emitted(body, flavour).eval()


def _check(model: QuantizedModel, flavour: Flavour) -> None:
    if flavour not in get_args(Flavour):
        raise UsageError(f"there is no flavour {flavour!r}", fix="use cpu or trt")
    if not model.calibrated:
        raise StageError(
            "the model has no scales to write", fix="calibrate() it, or load a calibrated one"
        )
    if any(quantizer.grid != Grid(8) for quantizer in model.activations()):
        raise StageError(
            "activations can be written with 8 bits only",
            found=f"a model trained with {next(model.activations()).grid.bits} bits",
            fix="train it with Policy(activations=Grid(8))",
        )


def _format(quantizer: ActivationQuantizer, bounds: Range, flavour: Flavour) -> Format:
    step = quantizer.scale.item()
    if flavour == "trt":
        return Format(0, -128, 127, step)
    if bounds[0] < 0:
        return Format(128, 0, 255, step)
    largest = step * quantizer.grid.high
    if bounds[1] < float("inf"):
        # Nothing above the bound can come: all 255 steps go below it, and the clip is not needed.
        step = min(largest, bounds[1]) / 255
    return Format(0, 0, 255, step)


def _drop_clip(graph: fx.Graph, node: fx.Node, stored: Format) -> None:
    """Remove a ReLU that the rounding behind it makes superfluous; ONNX Runtime fuses only then."""
    clip = clip_bounds(node)
    if clip is None or clip[0] != 0 or stored.low != 0 or stored.zero_point or len(node.users) > 1:
        return
    if stored.step * stored.high <= clip[1] * (1 + 1e-6):
        node.replace_all_uses_with(argument(node, 0))
        graph.erase_node(node)


def _split_bias(graph: fx.Graph) -> None:
    """Add the bias of a linear layer after it, where the sum is not rounded.

    ONNX Runtime has no int8 kernel for a float result with a bias in it.
    """
    for node in list(graph.nodes):
        biased = node.target is torch.ops.aten.linear.default and argument(node, 2) is not None
        if biased and not any(user.op == "call_module" for user in node.users):
            with graph.inserting_after(node):
                total = graph.call_function(torch.ops.aten.add.Tensor, (node, node.args[2]))
            node.replace_all_uses_with(
                total, delete_user_cb=lambda user, new=total: user is not new
            )
            node.args = node.args[:2]


def _replace(body: fx.GraphModule, node: fx.Node, module: nn.Module, arguments: object) -> None:
    """Call `module` in place of the fake quantizer; each call of a shared one gets its own."""
    node.target = f"{node.name}_stored"
    body.add_submodule(node.target, module)
    node.args = arguments  # type: ignore[assignment]
