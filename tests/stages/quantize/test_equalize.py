"""Cross-layer equalization: the same function, channels that are alike, and where it must not."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from kdpipe.stages.quantize.capture import capture
from kdpipe.stages.quantize.engine import QuantizedModel, calibrate, insert, layers
from kdpipe.stages.quantize.equalize import Equalization, equalize


def equalized(model: nn.Module, x: Tensor) -> tuple[fx.GraphModule, Equalization]:
    """The captured graph, equalized; it must compute what the model does."""
    graph = capture(model, x)
    outcome = equalize(graph)
    with torch.no_grad():
        exact, output = model(x), graph(x)

    assert (output - exact).abs().max() < 1e-5 * exact.abs().max()
    return graph, outcome


def spread(model: nn.Module, decades: float, seed: int = 0) -> nn.Module:
    """Multiply each output channel of every layer by a random factor: uneven on purpose."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            factors = 10 ** (decades * torch.rand(len(parameter), generator=generator))
            parameter.mul_(factors.view(-1, *[1] * (parameter.ndim - 1)))
    return model


@pytest.mark.parametrize("name", ["residual", "mobile", "unet", "mixed"])
def test_a_network_stays_the_same_function(name: str, network, images) -> None:
    """Whatever was equalized; and every layer is accounted for, once."""
    graph, outcome = equalized(network(name), images(8))
    named = [*(site.layer for site in outcome.equalized), *outcome.skipped]

    assert sorted(named) == sorted(layers(graph))


def test_what_it_finds_in_a_residual_network(network, images) -> None:
    """The layers around the sum stay; the head takes up what pooling and flattening let through."""
    _, outcome = equalized(network("residual"), images(8))

    assert [(site.layer, site.readers) for site in outcome.equalized] == [
        ("first.0", ("second.0",)),
        ("down.0", ("head",)),
    ]
    assert outcome.skipped == {
        "stem.0": "add",
        "second.0": "add",
        "head": "the network's output",
    }


PAIRS: dict[str, Callable[[], list[nn.Module]]] = {
    "convolutions": lambda: [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)],
    "no activation, no bias": lambda: [nn.Conv2d(3, 8, 1, bias=False), nn.Conv2d(8, 4, 3)],
    "leaky ReLU, max-pooling": lambda: [
        nn.Conv2d(3, 8, 3), nn.LeakyReLU(0.2), nn.MaxPool2d(2), nn.Conv2d(8, 4, 3),
    ],
    "parametric ReLU": lambda: [nn.Conv2d(3, 8, 3), nn.PReLU(8), nn.Conv2d(8, 4, 3)],
    "groups": lambda: [
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 12, 3, groups=4), nn.ReLU(), nn.Conv2d(12, 4, 1)
    ],
    "depthwise": lambda: [
        nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.ReLU(), nn.Conv2d(8, 4, 1)
    ],
    "transposed": lambda: [
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.ConvTranspose2d(8, 6, 2, 2), nn.ReLU(), nn.Conv2d(6, 4, 3)
    ],
    "transposed in groups": lambda: [
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.ConvTranspose2d(8, 12, 2, groups=4), nn.Conv2d(12, 4, 3)
    ],
    "a flattened map": lambda: [
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AvgPool2d(7), nn.Flatten(), nn.Linear(32, 4)
    ],
    "linear layers": lambda: [
        nn.Flatten(), nn.Linear(768, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4)
    ],
}  # fmt: skip


def matrix(node: fx.Node, weight: Tensor) -> Tensor:
    """A layer's weight as (outputs, inputs) magnitudes, zero between groups; loops on purpose."""
    groups = node.args[6] if len(node.args) > 6 else 1
    peaks = weight.detach().abs().reshape(*weight.shape[:2], -1).amax(2)
    if "transpose" in node.name:
        blocks = [chunk.T for chunk in peaks.chunk(groups)]
    else:
        blocks = list(peaks.chunk(groups))
    return torch.block_diag(*blocks)


@pytest.mark.parametrize("name", PAIRS)
def test_channels_become_alike(name: str, images) -> None:
    """Each channel's largest weight is the same on both sides, at every pair at once."""
    torch.manual_seed(0)
    graph, outcome = equalized(spread(nn.Sequential(*PAIRS[name]()), 3), images(4))
    weights = [
        matrix(node, graph.get_parameter(node.args[1].target))
        for node in graph.graph.nodes
        if node.name.startswith(("conv", "linear"))
    ]

    assert len(outcome.equalized) == len(weights) - 1
    for first, second in pairwise(weights):
        channels = len(first)
        made, read = first.amax(1), second.amax(0).view(channels, -1).amax(1)
        torch.testing.assert_close(made, read, rtol=0.01, atol=0)


class Branches(nn.Module):
    """A convolution that two others read, and the test's function joins them."""

    def __init__(self, join: Callable[..., Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))
        self.join = join

    def forward(self, x: Tensor) -> Tensor:
        return self.join(self, F.relu(self.a(x)))


def test_several_readers_count_as_one(images) -> None:
    """The larger of their weights is what is equalized."""
    torch.manual_seed(0)
    model = spread(Branches(lambda m, x: m.b(x) * m.c(x)), 2)
    graph, outcome = equalized(model, images(4))
    a, b, c = (graph.get_parameter(f"{name}.weight").abs() for name in "abc")
    read = torch.maximum(b.amax((0, 2, 3)), c.amax((0, 2, 3)))

    assert [(site.layer, site.readers) for site in outcome.equalized] == [("a", ("b", "c"))]
    torch.testing.assert_close(a.amax((1, 2, 3)), read, rtol=0.01, atol=0)


@pytest.mark.parametrize(
    ("join", "reason"),
    [
        (lambda m, x: m.c(m.b(x) + x), "add"),
        (lambda m, x: m.c(torch.cat([m.b(x), x], 1)[:, :3]), "cat"),
        (lambda m, x: m.c(m.b(F.relu6(x))), "relu6"),
        (lambda m, x: m.c(m.b(F.silu(x))), "silu"),
        (lambda m, x: m.c(m.b(x.transpose(1, 2)[:, :3])), "transpose"),
        (lambda m, x: m.c(m.b(x - 1)), "sub"),
    ],
)
def test_what_cannot_absorb_a_scale_is_left_alone(join, reason: str, images) -> None:
    """A sum, a concatenation, a clip, a curve, moved channels: no weight of that layer moves."""
    model = Branches(join)
    graph, outcome = equalized(model, images(4))

    assert outcome.skipped["a"].startswith(reason)
    assert torch.equal(graph.get_parameter("a.weight"), model.a.weight)


def test_a_shared_weight_is_left_alone(images) -> None:
    """A module that is called twice would need two factors."""
    _, outcome = equalized(Branches(lambda m, x: m.c(m.b(F.relu(m.b(x))))), images(4))

    assert outcome.equalized == ()
    assert outcome.skipped["b"] == outcome.skipped["b#2"] == "its weight is shared"
    assert outcome.skipped["a"] == "conv2d_1 (in b)"


def test_a_pruned_channel_stays_zero(images) -> None:
    """Neither side of it gives a factor, and nothing becomes infinite."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    with torch.no_grad():
        model[0].weight[2] = 0
        model[2].weight[:, 5] = 0
    graph, _ = equalized(model, images(4))

    assert all(parameter.isfinite().all() for parameter in graph.parameters())
    assert torch.equal(graph.get_parameter("0.weight")[5], model[0].weight[5])


def test_equalizing_again_changes_nothing(images) -> None:
    """It has converged, over a chain of layers that pull on each other."""
    torch.manual_seed(0)
    graph, _ = equalized(spread(nn.Sequential(*PAIRS["depthwise"]()), 3), images(4))
    again = equalize(graph)

    assert max(site.spread for site in again.equalized) < 1.01


def quantize(graph: fx.GraphModule, digits) -> QuantizedModel:
    model = insert(graph)
    calibrate(model, digits.batches)
    return model


def test_uneven_channels_cost_accuracy_and_equalizing_gives_it_back(digits) -> None:
    """Factors of up to 1000 between channels, around a depthwise layer: the float network does not
    notice. int8 does, even with one weight scale for each output channel: one activation scale has
    to serve all channels, and one weight scale all input channels."""
    graph = capture(digits.network, digits.x[:2])
    uneven = copy.deepcopy(graph)
    _make_uneven(uneven)
    plain, worse = digits.error(quantize(graph, digits)), digits.error(quantize(uneven, digits))
    lost = digits.accuracy(quantize(uneven, digits))
    outcome = equalize(uneven)
    back = quantize(uneven, digits)

    assert [site.layer for site in outcome.equalized] == ["stem.0", "depthwise.0", "pointwise.0"]
    assert digits.error(uneven) < 1e-9
    assert lost < digits.accuracy(digits.network) - 0.05
    assert worse > 20 * plain
    assert digits.error(back) < 2 * plain
    assert digits.accuracy(back) > digits.accuracy(digits.network) - 0.01


def _make_uneven(graph: fx.GraphModule) -> None:
    """Divide each layer's channels by up to 1000, and multiply them again in the next layer."""
    nodes = [node for node in graph.graph.nodes if node.name.startswith(("conv", "linear"))]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for node, reader in pairwise(nodes):
            weight, bias = (graph.get_parameter(p.target) for p in node.args[1:3])
            factors = 10 ** (-3 * torch.rand(len(weight), generator=generator))
            weight.mul_(factors.view(-1, 1, 1, 1))
            bias.mul_(factors)
            weight = graph.get_parameter(reader.args[1].target)
            depthwise = weight.shape[1] == 1
            axis = 0 if depthwise else 1
            repeated = factors.repeat_interleave(weight.shape[axis] // len(factors))
            shape = [1] * weight.ndim
            shape[axis] = -1
            weight.div_(repeated.view(shape))
