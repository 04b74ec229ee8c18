"""Bias correction: the mean error of every channel goes, and nothing else changes."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from kdpipe.stages.quantize.aten import path
from kdpipe.stages.quantize.bias import add_biases, correct_biases
from kdpipe.stages.quantize.capture import capture
from kdpipe.stages.quantize.engine import QuantizedModel, calibrate, insert, layers
from kdpipe.stages.quantize.fake import Grid, Mode, WeightQuantizer
from kdpipe.stages.quantize.policy import Policy
from kdpipe.targets.errors import StageError, UsageError


class Recorder(fx.Interpreter):
    """Runs a graph and keeps what each layer gives, before its activation."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self.outputs: dict[str, Tensor] = {}

    def run_node(self, n: fx.Node) -> Tensor:
        output = super().run_node(n)
        if n.name.startswith(("conv", "linear")):
            self.outputs[path(n)] = output
        return output


@torch.no_grad()
def mean_errors(model: QuantizedModel, graph: fx.GraphModule, x: Tensor) -> dict[str, Tensor]:
    """Layer -> |mean difference| of each channel, in units of the float layer's spread."""
    ours, exact = Recorder(model.body), Recorder(graph)
    ours.run(x)
    exact.run(x)
    errors = {}
    for name, output in exact.outputs.items():
        difference = (ours.outputs[name] - output).double()
        axes = [0] if output.ndim == 2 else [0, 2, 3]
        errors[name] = difference.mean(axes).abs() / output.std()
    return errors


def rounded_down(graph: fx.GraphModule, batches: Sequence[Tensor]) -> QuantizedModel:
    """A calibrated network whose weights are all rounded towards minus infinity, on the grid."""
    model = insert(graph, Policy(weights=Grid(4)))
    calibrate(model, batches)
    with torch.no_grad():
        for node in model.body.graph.nodes:
            module = model.body.get_submodule(node.target) if node.op == "call_module" else None
            if isinstance(module, WeightQuantizer):
                weight = model.body.get_parameter(node.args[0].target)
                scale = module.scale(weight)
                steps = (weight / scale - 0.01).floor().clamp_min(-7)
                peak = (weight / scale).abs() > 6.99
                weight.copy_(torch.where(peak, weight, steps * scale))
    return model


@pytest.mark.parametrize("name", ["residual", "mobile", "mixed"])
def test_a_biased_rounding_loses_its_mean_error(name: str, network, images) -> None:
    """Rounding everything down shifts every channel; afterwards none is shifted, in any layer."""
    batches = [images(32, seed) for seed in range(3)] + [images(7, seed=5)]
    graph = capture(network(name), images(2))
    model = rounded_down(graph, batches)
    before = mean_errors(model, graph, torch.cat(batches))
    correct_biases(model, graph, batches)
    after = mean_errors(model, graph, torch.cat(batches))

    assert before.keys() == after.keys() == set(layers(graph))
    assert all(error.max() > 0.01 for error in before.values())
    assert all(error.max() < 1e-5 for error in after.values())


def test_only_biases_change(quantized, network, images) -> None:
    """Weights and scales stay, and so do the modes of the model and of its quantizers."""
    model = quantized("residual").train()
    model.set_mode(Mode.FLOAT)
    before = copy.deepcopy(model.state_dict())
    correct_biases(model, capture(network("residual"), images(2)), [images(8)])
    changed = {key for key, value in model.state_dict().items() if not value.equal(before[key])}

    assert len(changed) == 5
    assert all(key.endswith("bias") for key in changed)
    assert model.training
    assert all(quantizer.mode is Mode.FLOAT for quantizer in model.activations())


def test_digits_gain_by_it(digits) -> None:
    """With 4-bit weights, on digits that the correction has not seen."""
    graph = capture(digits.network, digits.x[:2])
    model = insert(graph, Policy(weights=Grid(4)))
    calibrate(model, digits.batches)
    plain = copy.deepcopy(model)
    correct_biases(model, graph, digits.batches)

    assert digits.error(model) < 0.8 * digits.error(plain)
    assert digits.accuracy(model) >= digits.accuracy(plain)


class Bare(nn.Module):
    """No biases, a module that is called twice, and a linear layer over (N, T, F)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1, bias=False)
        self.twice = nn.Conv2d(3, 3, 1)
        self.tokens = nn.Linear(16, 5, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.twice(F.relu(self.twice(self.conv(x)))))
        return self.tokens(x.flatten(2, 3).unflatten(2, (16, 16)).flatten(1, 2))


def test_layers_without_a_bias_of_their_own_get_one(images) -> None:
    """Zeros, or a copy of the shared one; the function stays, and a second time there is none."""
    torch.manual_seed(0)
    graph = capture(Bare(), images(2))
    more = copy.deepcopy(graph)

    assert add_biases(more) == ("conv", "twice#2", "tokens")
    assert torch.equal(more(images(4)), graph(images(4)))
    assert add_biases(more) == ()


def test_a_corrected_state_dict_loads(images) -> None:
    """Into the same graph with the same biases added before inserting; no error is left there."""
    torch.manual_seed(0)
    bare = Bare()
    graph = capture(bare, images(2))
    model = insert(graph, Policy(weights=Grid(4)))
    calibrate(model, [images(16)])
    correct_biases(model, graph, [images(16)])
    other = capture(bare, images(2))
    add_biases(other)
    fresh = insert(other, Policy(weights=Grid(4)))
    fresh.load_state_dict(model.state_dict())
    with torch.no_grad():
        shift = (model(images(16)) - graph(images(16))).mean((0, 1))

    assert torch.equal(fresh(images(4)), model(images(4)))
    assert shift.abs().max() < 1e-6


def test_what_it_refuses(network, quantized, images) -> None:
    """No scales, no samples, another network."""
    graph = capture(network("residual"), images(2))
    with pytest.raises(StageError, match="calibrated"):
        correct_biases(insert(graph), graph, [images(4)])
    with pytest.raises(StageError, match="no calibration samples"):
        correct_biases(quantized("residual"), graph, [])
    with pytest.raises(UsageError, match=r"not the one .*\n.*outer\.0"):
        correct_biases(quantized("unet"), graph, [images(4)])
