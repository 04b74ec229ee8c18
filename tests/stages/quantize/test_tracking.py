"""Scales that follow the activations while the network trains, and stand still when told to."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from kdpipe.stages.quantize.capture import capture
from kdpipe.stages.quantize.engine import QuantizedModel, insert
from kdpipe.stages.quantize.observers import Percentile
from kdpipe.stages.quantize.policy import Policy


def scales(model: QuantizedModel) -> Tensor:
    return torch.stack([quantizer.scale.clone() for quantizer in model.activations()])


def test_scales_move_while_tracking_in_training_only(quantized, images) -> None:
    """Not in eval mode, not before, not after they are frozen."""
    model = quantized("residual")
    moved = []
    for on, training in ((False, True), (True, False), (True, True), (False, True)):
        before = scales(model)
        model.train(training)
        model.track(on)
        model(images(8) * 2)
        moved.append(not torch.equal(before, scales(model)))

    assert moved == [False, False, True, False]


def test_one_step_is_a_hundredth_of_the_way(quantized, images) -> None:
    """scale <- scale + (max |x| / 127 - scale) / 100 for the network's input, after the batch."""
    model, x = quantized("residual").train(), images(8) * 3
    model.track()
    quantizer = model.get_submodule("body.quantize_x")
    old, ratio = quantizer.scale.item(), quantizer.ratio.item()
    with torch.no_grad():
        fixed = copy.deepcopy(model)
        fixed.track(False)

        assert torch.equal(model(x), fixed(x))
    target = ratio * x.abs().max().item()

    assert ratio == pytest.approx(1 / 127, rel=0.03)
    assert quantizer.scale.item() == pytest.approx(old + 0.01 * (target - old), rel=1e-5)


def test_tracked_scales_end_where_calibration_would(quantized, images) -> None:
    """After many batches of twice the size, scales have doubled in a network of ReLUs' input."""
    model = quantized("residual").train()
    quantizer = model.get_submodule("body.quantize_x")
    old = quantizer.scale.item()
    model.track()
    with torch.no_grad():
        for seed in range(400):
            model(images(32, seed % 4) * 2)

    assert quantizer.scale.item() == pytest.approx(2 * old, rel=0.05)


def test_clipping_chosen_in_calibration_is_kept(quantized, images) -> None:
    """A percentile's range goes on leaving out the tail."""
    model = quantized("residual", Policy(observer=lambda: Percentile(98.0))).train()
    before = scales(model)
    model.track()
    with torch.no_grad():
        for seed in range(100):
            model(images(32, seed % 4))

    assert ((scales(model) / before - 1).abs() < 0.1).all()


def test_tensors_of_one_scale_move_it_once(quantized, images) -> None:
    """The concatenation's scale is moved by the largest of its five tensors, after the batch."""
    model = quantized("unet").train()
    quantizer = model.get_submodule("body.quantize_relu")
    peaks = []
    quantizer.register_forward_pre_hook(lambda _, args: peaks.append(args[0].abs().max().item()))
    model.track()
    old = quantizer.scale.item()
    with torch.no_grad():
        model(images(8) * 4)
    target = quantizer.ratio.item() * max(peaks)

    assert len(peaks) == 5
    assert quantizer.scale.item() == pytest.approx(old + 0.01 * (target - old), rel=1e-5)


def test_a_batch_that_is_not_finite_moves_nothing(quantized, images) -> None:
    """One bad batch would otherwise make the scale NaN for good."""
    model, x = quantized("residual").train(), images(4)
    x[0, 0, 0, 0] = float("nan")
    before = scales(model)
    model.track()
    model(x)

    assert torch.equal(scales(model), before)


def test_interrupted_training_goes_on_bit_for_bit(network, quantized, images) -> None:
    """Everything that tracking depends on is in the state dict."""

    def step(model: QuantizedModel, seed: int) -> None:
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        model(images(8, seed)).square().mean().backward()
        optimizer.step()

    whole = quantized("unet").train()
    whole.track()
    step(whole, 1)
    resumed = insert(capture(network("unet"), images(2))).train()
    resumed.load_state_dict(copy.deepcopy(whole.state_dict()))
    resumed.track()
    for model in (whole, resumed):
        model.zero_grad()
        step(model, 2)

    a, b = whole.state_dict(), resumed.state_dict()
    assert a.keys() == b.keys()
    assert all(torch.equal(a[key], b[key]) for key in a)
