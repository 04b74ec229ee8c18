"""Where rounding happens: the rules, the shared scales, and the bounds that need no data."""

from __future__ import annotations

from math import inf

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdpipe.stages.quantize.capture import capture
from kdpipe.stages.quantize.placement import Placement
from kdpipe.stages.quantize.policy import BEFORE_ACTIVATIONS, RULES, Policy
from kdpipe.stages.quantize.ranges import ranges


class Body(nn.Module):
    """A convolution whose output a test's function goes on with, with a second convolution."""

    def __init__(self, forward) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.rest = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.rest(self, x)


def placed(forward, images, policy: Policy | None = None) -> dict[str, str]:
    """Node name -> quantizer name."""
    return named((policy or Policy()).place(capture(Body(forward), images(2)).graph))


def named(placement: Placement) -> dict[str, str]:
    return {node.name: name for node, name in placement.activations.items()}


def test_the_network_input_is_rounded_and_its_output_is_not(images) -> None:
    """The first and the last layer have int8 inputs and weights; logits stay in float."""
    graph = capture(Body(lambda m, x: m.b(m.a(x))), images(2)).graph
    placement = Policy().place(graph)

    assert named(placement) == {"x": "quantize_x", "conv2d": "quantize_conv2d"}
    assert [node.name for node in placement.weights] == ["conv2d", "conv2d_1"]


def test_heads_rounds_the_output_too(images) -> None:
    """ONNX Runtime needs it to run a last convolution in int8."""
    sites = placed(lambda m, x: m.b(m.a(x)), images, Policy(heads=True))

    assert "conv2d_1" in sites


def test_rounding_comes_after_the_relu(images) -> None:
    """A convolution read by a ReLU alone is rounded once, behind it."""
    sites = placed(lambda m, x: m.b(F.relu(m.a(x))), images)

    assert list(sites) == ["x", "relu"]


def test_a_sum_is_rounded_on_all_sides(images) -> None:
    """Both operands, and the output behind its ReLU."""
    sites = placed(lambda m, x: m.b(F.relu(m.a(x) + x)), images)

    assert list(sites) == ["x", "conv2d", "relu"]
    assert len(set(sites.values())) == 3


def test_a_constant_operand_leaves_a_product_alone(images) -> None:
    """Multiplying by a number is an affine map, not an int8 kernel."""
    sites = placed(lambda m, x: m.b(torch.sigmoid(m.a(x) * 3.0)), images)

    assert list(sites) == ["x", "sigmoid"]


def test_concatenation_shares_one_scale(images) -> None:
    """Inputs and output: otherwise TensorRT would round again."""
    sites = placed(lambda m, x: m.b(torch.cat([F.relu(m.a(x)), x], 1)[:, :3] + x), images)

    assert sites["relu"] == sites["x"] == sites["cat"] == sites["slice_1"]
    assert sites["add"] != sites["cat"]


def test_moved_values_keep_their_scale(images) -> None:
    """Pooling and upsampling choose values; they are rounded on both sides with one scale."""

    def forward(m: Body, x: Tensor) -> Tensor:
        return m.b(F.interpolate(F.max_pool2d(F.relu(m.a(x)), 2), scale_factor=2.0))

    sites = placed(forward, images)

    assert len(sites) == 4
    assert set(sites.values()) == {"quantize_x", "quantize_relu"}


def test_a_move_that_nothing_quantized_reads_is_left_alone(images) -> None:
    """A pooled output of the network stays in float."""
    sites = placed(lambda m, x: F.max_pool2d(F.relu(m.a(x)), 2), images)

    assert list(sites) == ["x"]


def test_another_rule_rounds_before_other_activations(images) -> None:
    """A rule is data: one more makes ONNX Runtime fuse convolutions in front of SiLU."""

    def forward(m: Body, x: Tensor) -> Tensor:
        return m.b(F.silu(m.a(x)))

    assert list(placed(forward, images)) == ["x", "silu"]
    policy = Policy(rules=(*RULES, BEFORE_ACTIVATIONS))
    assert list(placed(forward, images, policy)) == ["x", "conv2d", "silu"]
    flag = Policy(before_activations=True)
    assert placed(forward, images, flag) == placed(forward, images, policy)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (F.relu, (0, inf)),
        (F.relu6, (0, 6)),
        (lambda y: y.clamp(-1, 1), (-1, 1)),
        (lambda y: y.clamp(min=0), (0, inf)),
        (F.hardtanh, (-1, 1)),
        (torch.sigmoid, (0, 1)),
        (lambda y: F.relu6(y) + F.relu6(y).flatten(2).unsqueeze(3).mean((2,), True), (0, 12)),
        (lambda y: F.relu(y) * torch.sigmoid(y), (0, inf)),
        (lambda y: y * torch.sigmoid(y), (-inf, inf)),
        (lambda y: torch.cat([F.relu6(y), torch.sigmoid(y)], 1), (0, 6)),
        (lambda y: torch.cat([F.relu6(y), y], 1), (-inf, inf)),
        (lambda y: F.relu(F.relu6(y)), (0, 6)),
        (lambda y: torch.sub(F.relu(y), F.relu(y)), (-inf, inf)),
        (lambda y: torch.add(F.relu(y), F.relu(y), alpha=-1), (-inf, inf)),
        (lambda y: F.relu(y) - 3, (-inf, inf)),
        (lambda y: F.relu(y) + F.gelu(y), (-inf, inf)),
        (F.max_pool2d, None),
    ],
)
def test_bounds_follow_from_the_graph(function, expected, images) -> None:
    """A tensor is unsigned when it cannot be negative, not when calibration saw no such value."""
    if expected is None:
        function, expected = (lambda y: F.avg_pool2d(F.max_pool2d(F.relu6(y), 2), 2)), (0, 6)
    graph = capture(Body(lambda m, x: function(m.a(x))), images(2)).graph
    output = graph.output_node().args[0]

    assert ranges(graph)[output] == expected
