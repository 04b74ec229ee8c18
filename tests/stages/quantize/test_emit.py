"""What is emitted: both flavours against the trained network, and how their tensors are stored."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch.nn import functional as F

from kdpipe.stages.quantize.capture import capture
from kdpipe.stages.quantize.emit import Emitted, Rounded, StoredWeight, emit
from kdpipe.stages.quantize.engine import calibrate, insert
from kdpipe.stages.quantize.fake import Grid
from kdpipe.stages.quantize.histograms import LeastSquares
from kdpipe.stages.quantize.observers import Percentile
from kdpipe.stages.quantize.policy import Policy
from kdpipe.targets.errors import StageError, UsageError

ATEN = torch.ops.aten


def stored(module: Emitted, name: str) -> Rounded:
    """How the tensor behind the quantizer called `name` is stored."""
    return module.get_submodule(f"body.{name}_stored")


def rounded(module: Emitted) -> list[Rounded]:
    return [m for m in module.modules() if isinstance(m, Rounded)]


def test_trt_is_the_trained_network_bit_for_bit(case, images) -> None:
    """int8 with zero point 0 is the grid that was trained."""
    x = images(32, seed=7)

    assert torch.equal(case.emitted["trt"](x), case.quantized(x))
    assert {
        (m.stored.zero_point, m.stored.low, m.stored.high) for m in rounded(case.emitted["trt"])
    } == {(0, -128, 127)}


def test_cpu_is_close_to_the_trained_network(case, images) -> None:
    """It differs above the trained range and on ReLU6's finer grid only: same decisions."""
    x = images(64, seed=7)
    with torch.no_grad():
        expected, actual = case.quantized(x), case.emitted["cpu"](x)

    assert (actual - expected).square().mean().sqrt() < 0.05 * expected.std()
    assert (actual.argmax(1) == expected.argmax(1)).float().mean() > 0.97


def test_cpu_is_uint8_with_zero_point_128_or_0(case) -> None:
    """Signed tensors keep the trained grid, unsigned ones start at 0; no other zero point."""
    kinds = {
        (m.stored.zero_point, m.stored.low, m.stored.high) for m in rounded(case.emitted["cpu"])
    }

    assert kinds == {(0, 0, 255), (128, 0, 255)}


def test_no_float_copy_of_a_quantized_weight_is_kept(case) -> None:
    """Biases are all that is trained and stored in float."""
    for module in case.emitted.values():
        weights = [m for m in module.modules() if isinstance(m, StoredWeight)]
        assert len(weights) == len([n for n in module.body.graph.nodes if "_weight" in n.name])
        assert all(m.integers.dtype is torch.int8 for m in weights)
        assert all(parameter.ndim == 1 for parameter in module.parameters())


def test_transposed_convolutions_count_channels_along_axis_1(quantized) -> None:
    """Every other weight counts them along axis 0."""
    module = emit(quantized("mixed"), "cpu")
    axes = {
        name.removeprefix("quantize_").removesuffix("_weight_stored"): m.axis
        for name, m in module.body.named_children()
        if isinstance(m, StoredWeight)
    }

    assert axes.pop("conv_transpose2d") == 1
    assert len(axes) == 7
    assert set(axes.values()) == {0}


def test_a_relu_that_rounding_implies_is_dropped(quantized) -> None:
    """cpu: zero point 0 clamps already, and ONNX Runtime fuses only then. trt keeps them."""
    clips = {ATEN.relu.default, ATEN.hardtanh.default}
    for name, kept in (("residual", 4), ("mobile", 4), ("unet", 4)):
        model = quantized(name)
        count = {
            f: sum(n.target in clips for n in emit(model, f).body.graph.nodes)
            for f in ("cpu", "trt")
        }
        assert count == {"cpu": 0, "trt": kept}, name


@pytest.mark.parametrize(("trained", "step"), [(10.0, 6 / 255), (3.0, 3 / 255)])
def test_behind_relu6_all_255_steps_lie_below_the_bound(trained, step, quantized) -> None:
    """The scale is hi/255: with hi/127 values between 6 and 2 hi would pass without the clip."""
    model = quantized("mobile")
    quantizer = model.get_submodule("body.quantize_hardtanh")
    quantizer.scale.fill_(trained / 127)
    module = emit(model, "cpu")

    assert stored(module, "quantize_hardtanh").scale.item() == pytest.approx(step)
    assert stored(module, "quantize_hardtanh").stored.zero_point == 0
    assert stored(emit(model, "trt"), "quantize_hardtanh").scale == quantizer.scale


def test_a_concatenation_has_one_scale_and_zero_point(quantized) -> None:
    """ReLUs, their pooled and upsampled values and the concatenation: one grid, bit for bit."""
    model = quantized("unet")
    names = [n.name for n in model.body.graph.nodes if n.target == "quantize_relu"]
    module = emit(model, "cpu")

    assert len(names) == 5
    (scale,) = {stored(module, name).scale.item() for name in names}
    assert scale == pytest.approx(
        model.get_submodule("body.quantize_relu").scale.item() * 127 / 255
    )
    assert {stored(module, name).stored.zero_point for name in names} == {0}


def test_a_mixed_concatenation_shares_the_clip_but_not_the_sign(quantized) -> None:
    """A ReLU beside a signed tensor keeps zero point 0, so that its convolution fuses."""
    model = quantized("mixed")
    names = [n.name for n in model.body.graph.nodes if n.target == "quantize_conv_transpose2d"]
    parts = [stored(emit(model, "cpu"), name) for name in names]

    assert [part.stored.zero_point for part in parts] == [128, 0, 128]
    signed, rectified, joined = (part.scale.item() for part in parts)
    assert signed == joined
    assert rectified * 255 == pytest.approx(signed * 127)


@pytest.mark.parametrize(
    "policy",
    [Policy(observer=partial(Percentile, 99.0)), Policy(observer=LeastSquares, learned=True)],
)
def test_a_cpu_file_clips_as_the_model_does(policy: Policy, digits) -> None:
    """What an observer chose to clip, or training learned to: the outputs differ by the finer
    grid's share of the rounding alone. A range twice as wide is 8 and 600 times further off."""
    model = insert(capture(digits.network, digits.x[:2]), policy)
    calibrate(model, digits.batches)
    with torch.no_grad():
        for quantizer in model.activations():
            if quantizer.learned:
                quantizer.log_scale -= 0.5  # as far as training would move it
        trained, emitted = model(digits.x), emit(model, "cpu")(digits.x)

    assert F.mse_loss(emitted, trained) < 1e-3 * trained.var()


def test_emitting_changes_nothing_in_the_model(quantized, images) -> None:
    """Training goes on after a snapshot was emitted."""
    model = quantized("residual")
    x = images(4)
    before, state = model(x), {k: v.clone() for k, v in model.state_dict().items()}
    emit(model, "cpu")
    emit(model, "trt")

    assert torch.equal(model(x), before)
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    model(x).sum().backward()


def test_an_uncalibrated_model_is_refused(network, images) -> None:
    """There are no scales to write."""
    with pytest.raises(StageError, match="no scales"):
        emit(insert(capture(network("unet"), images(2))), "cpu")


def test_activations_of_other_widths_are_refused(quantized) -> None:
    """QuantizeLinear at opset 20 has no 4-bit integers."""
    with pytest.raises(StageError, match="8 bits"):
        emit(quantized("residual", Policy(activations=Grid(4))), "cpu")


def test_an_unknown_flavour_is_refused(quantized) -> None:
    """The error lists those there are."""
    with pytest.raises(UsageError, match="cpu or trt"):
        emit(quantized("residual"), "gpu")
