"""Learned scales: their gradients against the paper's formula and against differences."""

from __future__ import annotations

import copy
from math import sqrt

import pytest
import torch
from torch.nn import functional as F

from kdpipe.stages.quantize.capture import capture
from kdpipe.stages.quantize.emit import emit
from kdpipe.stages.quantize.engine import QuantizedModel, calibrate, insert
from kdpipe.stages.quantize.fake import Grid
from kdpipe.stages.quantize.lsq import LearnedStep
from kdpipe.stages.quantize.policy import Policy
from kdpipe.targets.errors import UsageError


@pytest.fixture
def learned(network, images):
    """learned("residual", bits=8): a fresh, calibrated network with learned scales."""

    def make(name: str, bits: int = 8) -> QuantizedModel:
        policy = Policy(weights=Grid(bits), learned=True)
        model = insert(capture(network(name), images(2)), policy)
        calibrate(model, [images(32, seed) for seed in range(4)])
        return model

    return make


def by_scale(v: float, low: int, high: int) -> float:
    """Equation 3 of the paper: the slope of the rounded value by the scale."""
    if v <= low:
        return low
    return high if v >= high else round(v) - v


@pytest.mark.parametrize("bits", [4, 8])
def test_gradients_are_those_of_the_paper(bits: int) -> None:
    """Value by value, for the input and for the scale, with the factor 1 / sqrt(N Q)."""
    grid, scale = Grid(bits), 0.37
    v = torch.tensor([-1e3, -128.2, -8.3, -7.9, -0.6, -0.2, 0.0, 0.4, 0.6, 6.7, 7.2, 126.8, 1e3])
    x = (v * scale).requires_grad_()
    for index in range(len(v)):
        step = torch.tensor(scale, requires_grad=True)
        weights = F.one_hot(torch.tensor(index), len(v)) * 3.0
        (grid.round_learned(x, step, features=50) * weights).sum().backward()
        expected = 3 * by_scale(v[index].item(), grid.low, grid.high) / sqrt(50 * grid.high)

        assert step.grad.item() == pytest.approx(expected, rel=1e-4, abs=1e-6)
    inside = [3.0 * (grid.low < value < grid.high) for value in v.tolist()]
    assert x.grad.tolist() == inside


def test_gradient_by_scale_is_the_difference_where_that_is_smooth() -> None:
    """Beyond the grid the value is `low` or `high` times the scale: no estimate is needed."""
    x, step, eps = torch.tensor([-90.0, 77.0, 50.0]), 0.3, 1e-2
    scale = torch.tensor(step, requires_grad=True)
    LearnedStep.apply(x, scale, -128, 127, 1).sum().backward()
    low, high = (
        LearnedStep.apply(x, torch.tensor(step + e), -128, 127, 1).sum() for e in (-eps, eps)
    )

    assert scale.grad.item() * sqrt(127) == pytest.approx((high - low).item() / (2 * eps), rel=1e-3)


def test_each_channel_learns_from_its_own_weights() -> None:
    """The gradient of a scale (C, 1) is the sum over its channel."""
    weight = torch.randn(3, 20, generator=torch.Generator().manual_seed(0))
    scale = torch.full((3, 1), 0.1, requires_grad=True)
    Grid(4).round_learned(weight, scale, features=20).sum().backward()
    for channel in range(3):
        expected = sum(by_scale(v, -8, 7) for v in (weight[channel] / 0.1).tolist())
        assert scale.grad[channel].item() == pytest.approx(expected / sqrt(20 * 7), rel=1e-4)


def test_training_moves_every_scale_and_keeps_it_positive(learned, images) -> None:
    """Even when a step of the optimizer is absurdly large."""
    model = learned("residual")
    before = {n: p.detach().clone() for n, p in model.named_parameters() if "log_scale" in n}
    optimizer = torch.optim.Adam(model.parameters(), lr=20.0)
    F.mse_loss(model(images(16)), torch.randn(16, 4)).backward()
    optimizer.step()
    after = {n: p.detach() for n, p in model.named_parameters() if "log_scale" in n}

    assert len(before) == len(list(model.activations())) + 5
    assert all(not torch.equal(before[name], after[name]) for name in before)
    assert all(quantizer.step() > 0 for quantizer in model.activations())
    assert model.calibrated


def test_training_beats_calibration_at_four_bits(learned, network, images) -> None:
    """Scales and weights together come nearer to the float network than where they started."""
    model, x = learned("residual", bits=4), images(64, seed=3)
    with torch.no_grad():
        exact = network("residual")(x)
        before = F.mse_loss(model(x), exact).item()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(30):
        optimizer.zero_grad()
        F.mse_loss(model(x), exact).backward()
        optimizer.step()
    with torch.no_grad():
        assert F.mse_loss(model(x), exact).item() < 0.6 * before


def test_what_was_learned_is_what_is_emitted(learned, images) -> None:
    """trt is the trained network bit for bit, with moved scales; weights stay on their grid."""
    model = learned("unet", bits=4)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "log_scale" in name:
                parameter.sub_(0.2)
    emitted, x = emit(model, "trt"), images(8, seed=5)
    integers = [b for n, b in emitted.named_buffers() if n.endswith("integers")]

    with torch.no_grad():
        assert torch.equal(emitted(x), model(x))
    assert all((t >= -8).all() and (t <= 7).all() for t in integers)


def test_a_state_dict_restores_learned_scales(learned, network, images) -> None:
    """Bit for bit, into a fresh network."""
    model = learned("mixed")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.01)
    fresh = insert(capture(network("mixed"), images(2)), Policy(learned=True))
    fresh.load_state_dict(copy.deepcopy(model.state_dict()))

    assert torch.equal(fresh(images(5)), model(images(5)))


def test_learned_scales_cannot_be_tracked(learned) -> None:
    """Two masters would pull at one scale."""
    with pytest.raises(UsageError, match="learned"):
        learned("residual").track()
