"""Fake quantizers against ONNX Runtime's own rounding, their gradients, and how ranges are seen."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

from kdpipe.stages.quantize.fake import ActivationQuantizer, Grid, Mode, WeightQuantizer
from kdpipe.stages.quantize.observers import MovingRange, Percentile
from kdpipe.stages.quantize.ops import requantize
from kdpipe.targets.errors import StageError


def runtime_rounding(x: np.ndarray, scale: float, zero_point: int, kind: int) -> np.ndarray:
    """What ONNX Runtime makes of QuantizeLinear and DequantizeLinear."""
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    constants = [
        helper.make_tensor("s", TensorProto.FLOAT, [], [scale]),
        helper.make_tensor("z", kind, [], [zero_point]),
    ]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [None]) for n in "xy"]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    return session.run(None, {"x": x})[0]


def with_ties(scale: float) -> torch.Tensor:
    """Values on and around every grid point, every tie, and beyond both ends."""
    steps = torch.arange(-300, 301) / 2
    spread = torch.randn(2000, generator=torch.Generator().manual_seed(0)) * 60
    return torch.cat([steps, spread]) * scale


@pytest.mark.parametrize("scale", [0.5, 0.1, 0.0237, 6 / 255])
def test_rounds_bit_for_bit_like_onnx(scale: float) -> None:
    """Training, emission and ONNX Runtime agree on every bit, ties included."""
    x = with_ties(scale)
    fake = Grid(8).round(x, torch.tensor(scale)).numpy()
    expected = runtime_rounding(x.numpy(), scale, 0, TensorProto.INT8)

    assert (fake == expected).all()
    assert (requantize(x, torch.tensor(scale), 0, -128, 127).numpy() == expected).all()


@pytest.mark.parametrize("zero_point", [0, 128])
def test_emitted_uint8_rounds_bit_for_bit_like_onnx(zero_point: int) -> None:
    """The cpu flavour's operator is QuantizeLinear with uint8."""
    x = with_ties(0.1)
    emitted = requantize(x, torch.tensor(0.1), zero_point, 0, 255).numpy()

    assert (emitted == runtime_rounding(x.numpy(), 0.1, zero_point, TensorProto.UINT8)).all()


def test_ties_go_to_even() -> None:
    """0.5, 1.5 and 2.5 steps round to 0, 2 and 2."""
    rounded = Grid(8).round(torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5]), torch.tensor(1.0))

    assert rounded.tolist() == [0, 2, 2, 0, -2]


def test_gradient_passes_inside_and_stops_where_it_clips() -> None:
    """The straight-through estimator: 1 on the grid, 0 beyond its ends."""
    x = torch.tensor([-200.0, -128.4, 0.3, 127.4, 127.6, 200.0], requires_grad=True)
    Grid(8).round(x, torch.tensor(1.0)).sum().backward()

    assert x.grad.tolist() == [0, 1, 1, 1, 0, 0]


def test_bfloat16_is_rounded_in_fp32() -> None:
    """A bf16 input gives the fp32 result, cast once; the dtype is kept."""
    x = torch.randn(1000, generator=torch.Generator().manual_seed(0)).bfloat16()
    scale = torch.tensor(0.0237)
    rounded = Grid(8).round(x, scale)

    assert rounded.dtype is torch.bfloat16
    assert torch.equal(rounded, Grid(8).round(x.float(), scale).bfloat16())


def test_channels_last_stays_channels_last() -> None:
    """Rounding changes no memory layout, in training and in the emitted operator."""
    x = torch.randn(2, 8, 4, 4).to(memory_format=torch.channels_last)
    scale = torch.tensor(0.1)

    for rounded in (Grid(8).round(x, scale), requantize(x, scale, 0, -128, 127)):
        assert rounded.is_contiguous(memory_format=torch.channels_last)


def test_grid_has_the_ends_of_its_format() -> None:
    """4 bits are -8..7."""
    assert (Grid(4).low, Grid(4).high) == (-8, 7)
    assert (Grid().low, Grid().high) == (-128, 127)


@pytest.mark.parametrize(("axis", "shape"), [(0, (3, 2, 5, 5)), (1, (2, 3, 5, 5)), (0, (3, 7))])
def test_weight_scale_maps_each_channels_peak_to_127(axis: int, shape: tuple[int, ...]) -> None:
    """Symmetric, per output channel: the largest magnitude of each is 127 steps."""
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    steps = WeightQuantizer(Grid(), axis).integers(weight).movedim(axis, 0).flatten(1)

    assert steps.dtype is torch.int8
    assert steps.abs().amax(1).tolist() == [127, 127, 127]


def test_integers_times_scale_is_what_training_saw() -> None:
    """The stored weight is bit for bit the weight that the network was trained with."""
    weight = torch.randn(8, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    quantizer = WeightQuantizer(Grid(), 0)
    quantizer.mode = Mode.QUANTIZE

    assert torch.equal(quantizer.integers(weight) * quantizer.scale(weight), quantizer(weight))


def test_a_channel_of_zeros_stays_zero() -> None:
    """A pruned channel has no peak to divide by, and no NaN comes of it."""
    quantizer = WeightQuantizer(Grid(), 0)
    quantizer.mode = Mode.QUANTIZE

    assert torch.equal(quantizer(torch.zeros(2, 3)), torch.zeros(2, 3))


def test_scale_comes_from_the_larger_end() -> None:
    """Range -3..1 gives 3/127."""
    quantizer = ActivationQuantizer(Grid(), MovingRange(), "x")
    quantizer.mode = Mode.OBSERVE
    quantizer(torch.tensor([-3.0, 1.0]))
    quantizer.observer.end_batch()
    quantizer.settle()

    assert quantizer.scale.item() == pytest.approx(3 / 127)


def test_dead_activation_is_named() -> None:
    """An activation that is always zero has no scale; the error says which one it is."""
    quantizer = ActivationQuantizer(Grid(), MovingRange(), "relu_7 (in layer4)")
    quantizer.observer.see(torch.zeros(3))
    quantizer.observer.end_batch()

    with pytest.raises(StageError, match=r"relu_7 \(in layer4\)"):
        quantizer.settle()


def test_moving_range_averages_batches_and_joins_tensors_of_one_batch() -> None:
    """Two tensors of one batch are joined; the second batch moves the range by a tenth."""
    observer = MovingRange()
    observer.see(torch.tensor([-1.0, 2.0]))
    observer.see(torch.tensor([0.0, 4.0]))
    observer.end_batch()

    assert observer.range == (-1.0, 4.0)

    observer.see(torch.tensor([-2.0, 14.0]))
    observer.end_batch()

    assert observer.range == pytest.approx((-1.1, 5.0))


def test_percentile_leaves_out_the_tail() -> None:
    """One outlier among 10,000 values does not stretch the range."""
    x = torch.linspace(-1, 1, 10_000)
    x[5000] = 1000.0
    observer = Percentile(99.9)
    observer.see(x)
    observer.end_batch()

    assert observer.range == pytest.approx((-0.998, 0.998), abs=2e-3)


def test_importing_the_package_imports_no_torch() -> None:
    """`kdpipe --help` and `kdpipe plan` pay nothing for quantization."""
    code = "import sys, kdpipe.stages.quantize; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "False"
