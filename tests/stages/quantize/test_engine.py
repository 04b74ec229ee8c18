"""A quantized network in a plain training loop: it starts as the model, learns, and is saved."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdpipe.stages.quantize.capture import capture
from kdpipe.stages.quantize.engine import QuantizedModel, calibrate, insert
from kdpipe.stages.quantize.fake import Grid, Mode
from kdpipe.stages.quantize.observers import Percentile
from kdpipe.stages.quantize.policy import Policy
from kdpipe.targets.errors import StageError

NAMES = ("residual", "mobile", "unet", "mixed")


def train(model: QuantizedModel, x: Tensor, targets: Tensor, steps: int) -> list[float]:
    """The loss before each of `steps` steps, and after the last."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = F.mse_loss(model(x), targets)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return [*losses, F.mse_loss(model(x), targets).item()]


def test_before_calibration_it_computes_in_float(network, images) -> None:
    """Inserting changes no bit, and leaves the captured graph alone."""
    graph = capture(network("mixed"), images(2))
    code = graph.code
    model = insert(graph)
    x = images(5)

    assert torch.equal(model(x), graph(x))
    assert graph.code == code


@pytest.mark.parametrize("name", NAMES)
def test_calibrated_network_is_close_to_its_model(name: str, network, quantized, images) -> None:
    """8 bits cost a few percent of the outputs' spread, and rounding does happen."""
    model, x = network(name), images(64, seed=9)
    with torch.no_grad():
        error = (quantized(name)(x) - model(x)).square().mean().sqrt()
        spread = model(x).std()

    assert 0 < error < 0.06 * spread


def test_coarser_grids_lose_more(network, quantized, images) -> None:
    """A policy's bit width takes effect: 4-bit weights err more than 8-bit ones."""
    x = images(64, seed=9)
    with torch.no_grad():
        exact = network("residual")(x)
        fine = F.mse_loss(quantized("residual")(x), exact)
        coarse = F.mse_loss(quantized("residual", Policy(weights=Grid(4)))(x), exact)

    assert coarse > 4 * fine


def test_another_observer_gives_other_scales(quantized) -> None:
    """A policy's observer takes effect: a percentile is narrower than the maximum."""
    widest = list(quantized("residual").activations())
    narrow = list(quantized("residual", Policy(observer=lambda: Percentile(99.0))).activations())

    assert [a.label for a in widest] == [b.label for b in narrow]
    assert sum(b.scale < a.scale for a, b in zip(widest, narrow, strict=True)) >= 5


@pytest.mark.parametrize("training", [True, False])
def test_a_plain_loop_trains_it(training: bool, network, quantized, images) -> None:
    """In .train() and .eval() alike: the loss falls, every weight moves, no other model does."""
    source = network("residual")
    before = copy.deepcopy(source.state_dict())
    model = quantized("residual").train(training)
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    targets = torch.randn(32, 4, generator=torch.Generator().manual_seed(3))
    losses = train(model, images(32), targets, steps=15)

    assert losses[-1] < 0.9 * losses[0]
    assert all(not torch.equal(weights[name], p) for name, p in model.named_parameters())
    assert all(torch.equal(before[key], value) for key, value in source.state_dict().items())


def test_bfloat16_autocast_trains(quantized, images) -> None:
    """Under bf16 autocast and channels_last, loss and gradients are finite and the loss falls."""
    model = quantized("mobile").to(memory_format=torch.channels_last)
    x = images(32).contiguous(memory_format=torch.channels_last)
    targets = torch.randn(32, 4, generator=torch.Generator().manual_seed(3))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = train(model, x, targets, steps=10)

    assert all(math.isfinite(loss) for loss in losses)
    assert losses[-1] < losses[0]
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_a_state_dict_restores_it_bit_for_bit(network, quantized, images) -> None:
    """Capture and insert on a fresh model, load: the same outputs, and it goes on rounding."""
    trained = quantized("unet")
    train(trained, images(8), torch.randn(8, 4, 16, 16), steps=2)
    fresh = insert(capture(network("unet"), images(2)))
    fresh.load_state_dict(trained.state_dict())
    x = images(9, seed=4)

    assert torch.equal(fresh(x), trained(x))
    assert all(isinstance(value, Tensor) for value in trained.state_dict().values())


def test_a_state_dict_of_a_float_network_restores_as_float(network, images) -> None:
    """Without scales there is nothing to round with."""
    first, second = (insert(capture(network("unet"), images(2))) for _ in range(2))
    second.load_state_dict(first.state_dict())

    assert torch.equal(second(images(3)), first(images(3)))
    assert not second.calibrated


def test_calibrating_again_starts_afresh(quantized, images) -> None:
    """Scales depend on the last calibration alone."""
    model, again = quantized("residual"), quantized("residual")
    calibrate(again, [images(8) * 100])
    calibrate(again, (images(32, seed) for seed in range(4)))

    assert [q.scale for q in again.activations()] == [q.scale for q in model.activations()]


def test_calibrating_needs_samples(network, images) -> None:
    """No batch, no scales, no guess."""
    with pytest.raises(StageError, match="no calibration samples"):
        calibrate(insert(capture(network("residual"), images(2))), [])


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_values_that_are_not_finite_are_traced_to_their_place(value, network, images) -> None:
    """The message names the first place in the user's model, and the batch."""
    network = network("residual")
    with torch.no_grad():
        network.first[0].weight[0, 0, 0, 0] = value
    model = insert(capture(network, images(2)))
    with pytest.raises(StageError, match=r"relu__1 \(in first\.2\).* batch 1"):
        calibrate(model, [images(4)])

    assert not model.calibrated
    assert all(quantizer.mode is Mode.FLOAT for quantizer in model.activations())


def test_a_dead_layer_is_traced_to_its_place(network, images) -> None:
    """A ReLU that never opens is named."""
    network = network("residual")
    with torch.no_grad():
        network.down[1].weight.zero_()
        network.down[1].bias.fill_(-1)
    with pytest.raises(StageError, match=r"down\.2.*zero"):
        calibrate(insert(capture(network, images(2))), [images(4)])


def test_a_model_without_layers_is_refused(images) -> None:
    """Nothing to quantize is not a quantized model."""
    with pytest.raises(StageError, match="no layer"):
        insert(capture(nn.Sequential(nn.ReLU(), nn.Flatten()), images(2)))
