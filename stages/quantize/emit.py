"""A trained graph -> the graph a runtime computes: int8 weights, rounded activations, no autograd.

Both flavours come from the same scales:

    trt   int8 with zero point 0 everywhere, exactly what was trained (TensorRT takes nothing else)
    cpu   uint8, which ONNX Runtime and OpenVINO fuse: zero point 128 is the trained grid; a tensor
          that cannot be negative has zero point 0, and all 255 steps below the trained clip. What
          only products of two activations read is int8: OpenVINO multiplies no other signed pair

So where nothing is negative a cpu file clips as training did, on a grid 255 / 127 times as fine.
With the trained step and twice the range it would undo what an observer or `lsq.py` chose to clip.
Squared error of the logits over their variance, two small networks trained twice each on digits:

    against     same clip                    twice the range
    trained     0.5e-4 to 2.4e-4, always     to 2e-2 after training (least squares, learned scales),
                                             to 1e-1 after calibration alone (99th percentile)
    float       0.4 to 0.7 of the trained    0.9 of it, where nothing is clipped; where something
                grid's, or as the clip       is, nearer than the clip that was asked for
                that was asked for

The same clip is better: it ships what was measured while training, and never a coarser grid. The
accuracies of the two (597 digits) do not differ beyond chance.

Weights of 4 bits are stored as int8 from -8 to 7, so that int8 kernels take them, and the file is
no smaller: behind ONNX's own INT4 (opset 21) ONNX Runtime 1.31 and OpenVINO 2026.4 both compute
convolutions and linear layers in float.

Biases stay in float: each runtime quantizes them as it likes.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, fx, nn

from kdpipe.stages.quantize import ops
from kdpipe.stages.quantize.aten import MATMULS, WEIGHTED, argument, attribute, clip_bounds
from kdpipe.stages.quantize.capture import drop_unused
from kdpipe.stages.quantize.engine import QuantizedModel
from kdpipe.stages.quantize.fake import ActivationQuantizer, Grid, WeightQuantizer
from kdpipe.stages.quantize.ranges import Range, ranges
from kdpipe.targets.errors import StageError, UsageError

Flavour = Literal["cpu", "trt"]

PARITY_STEPS = 6
"""How far the output of a file may be from that of the emitted module, in steps of an 8-bit grid
over the output's range (its largest magnitude / 127)."""

_LEAST_HALF = 2.0**-17
"""Below it fp16, whose last numbers are multiples of 2**-24, moves a scale by more than 1/256: then
the largest integers are off by more than the half step that they were rounded by."""


@dataclass(frozen=True)
class Format:
    """How one tensor is stored: as `low`..`high`, 0..255 or -128..127, in steps of `step`."""

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
        self.register_buffer("scale", quantizer.scale(weight).detach().flatten())

    def forward(self) -> Tensor:
        """The weight in float."""
        weight: Tensor = ops.dequantize(self.integers, self.scale, self.axis)
        return weight


class Emitted(nn.Module):
    """What a file of one `flavour` computes, as a torch module; made by `emit`.

    `half`: its float parts, scales among them, are fp16; input and output stay fp32.
    """

    def __init__(self, body: fx.GraphModule, flavour: Flavour, half: bool = False) -> None:
        super().__init__()
        self.body = body
        self.flavour = flavour
        self.half_precision = half

    def forward(self, x: Tensor) -> Tensor:
        """(N, ...) -> what the captured model returns, in fp32."""
        output: Tensor = self.body(x.half() if self.half_precision else x)
        return output.float() if self.half_precision else output


def emit(model: QuantizedModel, flavour: Flavour, *, half: bool = False) -> Emitted:
    """What a runtime of this flavour computes; `model` is left as it is, and can train on.

    `half`: float parts in fp16, for trt alone. A runtime's output is within `PARITY_STEPS` of the
    module's: kernels add up in another order, and some values fall on the other side of a tie.

    Raises StageError when `model` is not calibrated, trains on activations of another grid than 8
    bits, or has a scale too small for fp16.
    """
    _check(model, flavour, half)
    body = copy.deepcopy(model.body)
    bounds = ranges(body.graph)
    for node in list(body.graph.nodes):
        module = body.get_submodule(node.target) if node.op == "call_module" else None
        if isinstance(module, ActivationQuantizer):
            stored = _format(module, bounds[node], flavour, _only_multiplied(node))
            _replace(body, node, Rounded(stored, module.ratio.device), node.args)
            _drop_clip(body.graph, node.args[0], stored)
        elif isinstance(module, WeightQuantizer):
            weight = attribute(body, node.args[0].target)
            _replace(body, node, StoredWeight(module, weight), ())
    if flavour == "cpu":
        _split_bias(body.graph)
        _keep_float(body.graph)
    body.graph.eliminate_dead_code()
    body.delete_all_unused_submodules()
    drop_unused(body)
    body.recompile()
    if half:
        _halve(body)
    return Emitted(body, flavour, half).eval()


def _halve(body: fx.GraphModule) -> None:
    """Turn the float parts of an emitted graph into fp16, in place."""
    for name, module in body.named_modules():
        if not isinstance(module, Rounded | StoredWeight):
            continue
        if isinstance(module, StoredWeight):
            # A channel of zeros is as good at any scale.
            empty = ~module.integers.transpose(0, module.axis).flatten(1).any(1)
            module.scale[empty] = 1.0
        least = module.scale.min().item()
        if least < _LEAST_HALF:
            raise StageError(
                f"a scale is too small for fp16: {name}",
                found=f"{least:.3g}, the least that fp16 holds well enough is {_LEAST_HALF:.3g}",
                fix="emit it with fp32 around the int8 layers",
            )
    body.half()


def _check(model: QuantizedModel, flavour: Flavour, half: bool) -> None:
    if half and flavour != "trt":
        raise UsageError(
            "fp16 around int8 layers is for the flavour trt",
            found=f"flavour {flavour}",
            fix="emit(model, 'trt', half=True)",
        )
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


def _only_multiplied(node: fx.Node) -> bool:
    """Whether products of two activations, and nothing else, read `node`."""
    return all(user.target in MATMULS for user in node.users)


def _format(
    quantizer: ActivationQuantizer, bounds: Range, flavour: Flavour, multiplied: bool
) -> Format:
    step = quantizer.step().item()
    if flavour == "trt" or (multiplied and bounds[0] < 0):
        return Format(0, -128, 127, step)
    if bounds[0] < 0:
        return Format(128, 0, 255, step)
    # Nothing above a ReLU6's bound can come: no step goes there, and the clip is not needed.
    return Format(0, 0, 255, min(step * quantizer.grid.high, bounds[1]) / 255)


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


def _keep_float(graph: fx.Graph) -> None:
    """Put an identity between a float layer and the rounding of its output.

    Where input and output are rounded, ONNX Runtime (since 1.21) rounds a float weight by itself. A
    leaky ReLU of slope 1 is an identity that it does not remove.
    """
    for node in list(graph.nodes):
        floating = node.target in WEIGHTED and node.args[1].op == "get_attr"
        if floating and any(user.op == "call_module" for user in node.users):
            with graph.inserting_after(node):
                same = graph.call_function(torch.ops.aten.leaky_relu.default, (node, 1.0))
            node.replace_all_uses_with(same, delete_user_cb=lambda user, new=same: user is not new)


def _replace(body: fx.GraphModule, node: fx.Node, module: nn.Module, arguments: object) -> None:
    """Call `module` in place of the fake quantizer; each call of a shared one gets its own."""
    node.target = f"{node.name}_stored"
    body.add_submodule(node.target, module)
    node.args = arguments  # type: ignore[assignment]
