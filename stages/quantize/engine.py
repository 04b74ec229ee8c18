"""From a captured graph to a network that trains as int8: insert quantizers, calibrate them.

model = insert(capture(student, example))
calibrate(model, batches)
...                                   # any training loop; emit.py writes the result down
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator
from typing import Any, Self

import torch
from torch import Tensor, fx, nn

from kdpipe.stages.quantize.aten import attribute, is_layer, origin, path
from kdpipe.stages.quantize.fake import ActivationQuantizer, Mode, Quantizer, WeightQuantizer
from kdpipe.stages.quantize.placement import Placement
from kdpipe.stages.quantize.points import GraphPoints
from kdpipe.stages.quantize.policy import Policy
from kdpipe.targets.errors import StageError, UsageError


class QuantizedModel(nn.Module):
    """A captured network with quantizers in it. Before calibration it computes in float.

    Trains in a plain loop; `.train()` and `.eval()` compute the same. A state dict of it loads into
    `insert(capture(model, example))` of a model of the same class, which then computes the same.
    Under a policy with more layers in float it loads with strict=False.
    """

    def __init__(self, body: fx.GraphModule) -> None:
        super().__init__()
        self.body = body
        self.tracking = False
        self.register_load_state_dict_post_hook(_resume)  # type: ignore[no-untyped-call]

    def forward(self, x: Tensor) -> Tensor:
        """(N, ...) -> what the captured model returns."""
        output: Tensor = self.body(x)
        if self._tracks():
            # Once the batch is through: tensors that share a scale are rounded by the same one.
            for quantizer in self.activations():
                quantizer.follow()
        return output

    def track(self, on: bool = True) -> None:
        """Let scales follow the activations of each training batch, or (False) stand still.

        One step moves a scale by a hundredth towards what its batch alone asks for (Jacob et al.
        2018, section 3.1), as large beside `Observer.size` as in calibration. In eval mode scales
        never move. They are part of the state dict; whether they move is not. Raises UsageError for
        learned scales.
        """
        if on and any(quantizer.learned for quantizer in self.activations()):
            raise UsageError(
                "learned scales cannot follow the activations: training moves them",
                fix="track() a model of Policy(learned=False)",
            )
        self.tracking = on
        self._tell()

    def train(self, mode: bool = True) -> Self:
        """See nn.Module; only tracked scales know the difference."""
        super().train(mode)
        self._tell()
        return self

    def _tracks(self) -> bool:
        return self.tracking and self.training

    def _tell(self) -> None:
        for quantizer in self.activations():
            quantizer.tracking = self._tracks()

    def activations(self) -> Iterator[ActivationQuantizer]:
        """The activation quantizers, one for each scale."""
        return (m for m in self.modules() if isinstance(m, ActivationQuantizer))

    @property
    def calibrated(self) -> bool:
        """Whether every activation has a scale."""
        return all(quantizer.calibrated for quantizer in self.activations())

    def tap_points(self) -> GraphPoints:
        """Where the tensors of the user's modules are, for distillation."""
        return GraphPoints(self.body)

    def set_mode(self, mode: Mode) -> None:
        """Tell every quantizer what to do; weights are rounded in QUANTIZE only."""
        for module in self.modules():
            if isinstance(module, Quantizer):
                module.mode = mode


def _resume(model: nn.Module, _: Any) -> None:
    """After loading a state dict: round if it holds scales."""
    assert isinstance(model, QuantizedModel)
    model.set_mode(Mode.QUANTIZE if model.calibrated else Mode.FLOAT)


def layers(graph: fx.GraphModule) -> tuple[str, ...]:
    """Names of all layers of a captured `graph` that can be quantized, in graph order.

    These are the keys that `Policy.layers` takes; see `aten.path`.
    """
    return tuple(path(node) for node in graph.graph.nodes if is_layer(node))


def insert(graph: fx.GraphModule, policy: Policy | None = None) -> QuantizedModel:
    """Put quantizers into a copy of a captured `graph`, where `policy` wants them.

    Raises StageError when there is nothing to quantize.
    """
    policy = policy or Policy()
    body = copy.deepcopy(graph)
    placement = policy.place(body.graph)
    if not placement.weights:
        raise StageError(
            "the model has no layer that kdpipe can quantize",
            found="no convolution or linear layer with a weight of its own",
            fix="set `quantize: null` to ship it in float",
        )
    _insert_activations(body, placement, policy)
    _insert_weights(body, placement, policy)
    body.recompile()
    return QuantizedModel(body)


def _insert_activations(body: fx.GraphModule, placement: Placement, policy: Policy) -> None:
    for node, name in placement.activations.items():
        if not hasattr(body, name):
            quantizer = ActivationQuantizer(
                policy.activations, policy.observer(), origin(node), learned=policy.learned
            )
            body.add_submodule(name, quantizer)
        with body.graph.inserting_after(node):
            rounded = body.graph.call_module(name, (node,))
        for user in list(node.users):
            if user is not rounded and (policy.heads or user.op != "output"):
                user.replace_input_with(node, rounded)


def _insert_weights(body: fx.GraphModule, placement: Placement, policy: Policy) -> None:
    for layer, axis in placement.weights.items():
        name = f"quantize_{layer.name}_weight"
        weight = attribute(body, layer.args[1].target)  # type: ignore[union-attr,arg-type]
        channels = weight.shape[axis] if policy.learned else None
        body.add_submodule(name, WeightQuantizer(policy.grid(layer), axis, learned=channels))
        with body.graph.inserting_before(layer):
            rounded = body.graph.call_module(name, (layer.args[1],))
        layer.update_arg(1, rounded)


def calibrate(model: QuantizedModel, batches: Iterable[Tensor]) -> None:
    """Run `batches` (N, ...) in float, set every scale from what was seen, and start rounding.

    Calibrating again starts afresh. Raises StageError, naming the place in the model, when there
    is no batch, or an activation is NaN, infinite, or never anything but zero.
    """
    model.set_mode(Mode.OBSERVE)
    try:
        _observe(model, batches)
    finally:
        model.set_mode(Mode.FLOAT)
    for quantizer in model.activations():
        quantizer.settle()
    for node, weights in _weight_quantizers(model.body):
        weights.settle(attribute(model.body, node.args[0].target))
    model.set_mode(Mode.QUANTIZE)


def _weight_quantizers(body: fx.GraphModule) -> Iterator[tuple[Any, WeightQuantizer]]:
    """Each weight's quantizer, and the node that calls it."""
    for node in body.graph.nodes:
        module = body.get_submodule(node.target) if node.op == "call_module" else None
        if isinstance(module, WeightQuantizer):
            yield node, module


def _observe(model: QuantizedModel, batches: Iterable[Tensor]) -> None:
    quantizers = list(model.activations())
    for quantizer in quantizers:
        quantizer.observer.reset()
    count = 0
    for count, batch in enumerate(batches, start=1):
        with torch.no_grad():
            model(batch)
        for quantizer in quantizers:
            quantizer.observer.end_batch()
            _require_finite(quantizer, count)
    if not count:
        raise StageError(
            "cannot calibrate: there are no calibration samples",
            fix="give the calibration split at least one batch",
        )


def _require_finite(quantizer: ActivationQuantizer, batch: int) -> None:
    extent = quantizer.observer.extent
    if extent is not None and not all(math.isfinite(end) for end in extent):
        raise StageError(
            f"cannot calibrate {quantizer.label}: it is not finite in calibration batch {batch}",
            found=f"values from {extent[0]} to {extent[1]}",
            fix="check the model's weights and the calibration images for NaN or infinity",
        )
