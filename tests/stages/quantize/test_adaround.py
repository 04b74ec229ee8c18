"""AdaRound: a lower output error than nearest rounding, on the same grids."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from kdpipe.stages.quantize.adaround import Settings, adaround
from kdpipe.stages.quantize.aten import path
from kdpipe.stages.quantize.capture import capture
from kdpipe.stages.quantize.engine import QuantizedModel, calibrate, insert, layers
from kdpipe.stages.quantize.fake import Grid, Mode, WeightQuantizer
from kdpipe.stages.quantize.policy import Policy
from kdpipe.targets.errors import StageError, UsageError

FOUR = Policy(weights=Grid(4))
QUICK = Settings(iterations=40)


def weights(model: QuantizedModel) -> dict[str, tuple[WeightQuantizer, Tensor]]:
    """Layer -> what rounds its weight, and the weight."""
    found = {}
    for node in model.body.graph.nodes:
        module = model.body.get_submodule(node.target) if node.op == "call_module" else None
        if isinstance(module, WeightQuantizer):
            weight = model.body.get_parameter(node.args[0].target)
            found[path(next(iter(node.users)))] = (module, weight.detach().clone())
    return found


@pytest.fixture(scope="module")
def four_bits(digits) -> tuple[fx.GraphModule, QuantizedModel]:
    """The digits network and its calibrated twin with 4-bit weights; tests copy it."""
    graph = capture(digits.network, digits.x[:2])
    model = insert(graph, FOUR)
    calibrate(model, digits.batches)
    return graph, model


def test_four_bits_lose_far_less(digits, four_bits) -> None:
    """On digits that it has not seen, the output's error falls to about 0.4 of what it was."""
    graph, plain = four_bits
    model = copy.deepcopy(plain)
    outcomes = adaround(model, graph, digits.batches, Settings(iterations=300))

    assert [outcome.layer for outcome in outcomes] == list(layers(graph))
    assert digits.error(model) < 0.6 * digits.error(plain)
    assert digits.accuracy(model) >= digits.accuracy(plain)


def test_eight_bits_take_no_harm(digits) -> None:
    """There is little to gain, and nothing is lost."""
    graph = capture(digits.network, digits.x[:2])
    plain = insert(graph)
    calibrate(plain, digits.batches)
    model = copy.deepcopy(plain)
    adaround(model, graph, digits.batches, QUICK)

    assert digits.error(model) < 1.1 * digits.error(plain)
    assert digits.accuracy(model) >= digits.accuracy(plain) - 0.002


@pytest.mark.parametrize(
    ("name", "policy"),
    [
        ("residual", FOUR),
        ("mobile", FOUR),
        ("mixed", FOUR),
        ("residual", replace(FOUR, learned=True)),
    ],
    ids=["residual", "mobile", "mixed", "learned scales"],
)
def test_weights_end_on_their_grids(name: str, policy, network, quantized, images) -> None:
    """Depthwise, grouped, transposed and linear layers alike: each weight goes to one of its two
    neighbours, the scale keeps every bit, and rounding reproduces what was learned."""
    model = quantized(name, policy)
    before = weights(model)
    batches = [images(32, seed) for seed in range(2)]
    outcomes = adaround(model, capture(network(name), images(2)), batches, Settings(iterations=100))
    differs = 0
    for layer, (quantizer, weight) in weights(model).items():
        scale = quantizer.scale(before[layer][1])
        steps, original = weight / scale, before[layer][1] / scale

        assert torch.equal(quantizer.scale(weight), scale)
        torch.testing.assert_close(steps, steps.round(), rtol=0, atol=2e-3)
        assert ((steps.round() - original).abs() < 1.001).all()
        torch.testing.assert_close(quantizer(weight), weight, rtol=2e-3, atol=1e-7)
        differs += int((steps.round() != original.round()).sum())

    assert differs > 100
    assert all(outcome.learned <= outcome.nearest for outcome in outcomes)
    assert sum(o.learned < 0.9 * o.nearest for o in outcomes) >= len(outcomes) - 2


def test_the_seed_decides(digits, four_bits) -> None:
    """The same seed gives the same bits, another one other batches and other roundings."""
    graph, plain = four_bits
    results = []
    for seed in (0, 0, 1):
        model = copy.deepcopy(plain)
        torch.manual_seed(len(results))  # must not matter
        adaround(model, graph, digits.batches[:2], replace(QUICK, seed=seed))
        results.append(torch.cat([p.flatten() for p in model.parameters()]))

    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


class Two(nn.Module):
    """Two layers, the first of them before a ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3)
        self.second = nn.Conv2d(8, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(F.relu(self.first(x)))


def two() -> tuple[nn.Module, fx.GraphModule]:
    torch.manual_seed(0)
    model = Two()
    return model, capture(model, torch.zeros(2, 3, 16, 16))


@pytest.mark.parametrize("keep", [1, 2])
def test_errors_are_those_behind_the_relu(keep: int, images) -> None:
    """By hand: rounded inputs through rounded weights and the ReLU, against the float network's;
    over all samples, or over every second where memory holds half of them."""
    net, graph = two()
    model = insert(graph, FOUR)
    x = images(16)
    calibrate(model, [x])
    quantizer, weight = weights(model)["first"]
    with torch.no_grad():
        (scale,) = (q.scale for q in model.activations() if "x" in q.label)
        rounded = (x / scale).round().clamp(-128, 127) * scale
        output = F.relu(F.conv2d(rounded, quantizer(weight), net.first.bias))
        exact = F.relu(net.first(x))
    expected = F.mse_loss(output[::keep], exact[::keep]).item()
    memory = (x.nbytes + exact.nbytes) // keep + 1
    first, _ = adaround(model, graph, [x], replace(QUICK, iterations=1, memory=memory))

    assert first.nearest == pytest.approx(expected, rel=1e-4)


def test_later_layers_see_the_rounding_of_earlier_ones(images) -> None:
    """The second layer's error is measured from what the learned first layer gives it."""
    net, graph = two()
    model = insert(graph, FOUR)
    x = images(16)
    calibrate(model, [x])
    _, second = adaround(model, graph, [x], QUICK)
    with torch.no_grad():
        error = F.mse_loss(model(x), net(x)).item()

    assert second.learned == pytest.approx(error, rel=1e-4)


def test_layers_in_float_are_left_alone(images) -> None:
    """What a policy keeps in float has no grid to be rounded to."""
    net, graph = two()
    model = insert(graph, Policy(weights=Grid(4), layers={"second": None}))
    calibrate(model, [images(16)])
    outcomes = adaround(model, graph, [images(16)], QUICK)

    assert [outcome.layer for outcome in outcomes] == ["first"]
    assert torch.equal(model.body.get_parameter("second.weight"), net.second.weight)
    assert not torch.equal(model.body.get_parameter("first.weight"), net.first.weight)


def test_a_shared_weight_is_learned_once(images) -> None:
    """A second time it would be on the grid already."""
    conv = nn.Conv2d(3, 3, 3, padding=1)
    graph = capture(nn.Sequential(conv, nn.ReLU(), conv), images(2))
    model = insert(graph, FOUR)
    calibrate(model, [images(16)])

    assert len(adaround(model, graph, [images(16)], QUICK)) == 1


def test_the_model_is_left_as_it_was(quantized, network, images) -> None:
    """Modes, gradients and their switches; even where gradients are off."""
    model = quantized("residual", FOUR).train()
    model.set_mode(Mode.FLOAT)
    biases = {n: p.detach().clone() for n, p in model.named_parameters() if n.endswith("bias")}
    with torch.no_grad():
        adaround(
            model,
            capture(network("residual"), images(2)),
            [images(8)],
            replace(QUICK, iterations=2),
        )

    assert model.training
    assert all(quantizer.mode is Mode.FLOAT for quantizer in model.activations())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert all(torch.equal(model.get_parameter(n), bias) for n, bias in biases.items())


def test_what_it_refuses(network, quantized, images) -> None:
    """No scales, no samples, another network."""
    graph = capture(network("residual"), images(2))
    with pytest.raises(StageError, match="calibrated"):
        adaround(insert(graph), graph, [images(4)])
    with pytest.raises(StageError, match="no calibration samples"):
        adaround(quantized("residual"), graph, [])
    with pytest.raises(UsageError, match="not the one"):
        adaround(quantized("unet"), graph, [images(4)])
