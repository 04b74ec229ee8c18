"""ONNX Runtime's static quantization of float ONNX files: what the int8 files hold and compute."""

from __future__ import annotations

import collections
import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
import torch
from onnx import TensorProto, numpy_helper
from torch import Tensor, nn

from kdpipe.stages.dataset import Split
from kdpipe.stages.quantize.settings import LeastDivergence, Moving, Quantile
from kdpipe.stages.quantize.static import Ranges, quantize_static
from kdpipe.stages.torchscript import export_torchscript
from kdpipe.targets.device.preprocess import Preprocess
from kdpipe.targets.errors import StageError, UsageError
from kdpipe.targets.zeropoints import unfit_for_tensorrt

NAMES = ("residual", "mobile", "unet", "mixed")
FLAVOURS = ("cpu", "trt")
MOVING = Moving()
CONVOLUTIONS = {"residual": 4, "mobile": 5, "unet": 5, "mixed": 6}
"""How many convolutions each network has; transposed ones not counted, for which ONNX Runtime has
no int8 kernel."""


def calibration_split(count: int, seed: int = 3) -> Split:
    """Random smooth uint8 pictures (count, 16, 16, 3), normalised to about -2..2."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 4, 4, generator=generator)
    smooth = nn.functional.interpolate(coarse, size=(16, 16), mode="bilinear")
    pixels = (smooth * 255).byte().permute(0, 2, 3, 1).numpy()
    preprocess = Preprocess(16, 16, mean=[0.5] * 3, std=[0.25] * 3)
    return Split("calibration", pixels, np.zeros(count, np.int64), preprocess)


@pytest.fixture(scope="module")
def samples() -> Split:
    """Two batches of 64 and an incomplete one."""
    return calibration_split(150)


@pytest.fixture(scope="module")
def floats(network, images, tmp_path_factory) -> Callable[[str], Path]:
    """floats("unet"): the network in fp32 as ONNX."""

    @cache
    def make(name: str) -> Path:
        path = tmp_path_factory.mktemp(name) / f"{name}.onnx"
        export_torchscript(network(name), images(2), path)
        return path

    return make


@pytest.fixture(scope="module")
def static(floats, samples) -> Callable[..., Path]:
    """static("unet", "trt", Moving()): the network in int8."""

    @cache
    def make(name: str, flavour: str, ranges: Ranges = MOVING) -> Path:
        given = floats(name)
        path = given.with_name(f"{name}.{flavour}.{len(list(given.parent.iterdir()))}.onnx")
        quantize_static(given, path, flavour, samples, ranges)
        return path

    return make


def run(path: Path, x: np.ndarray, optimized: Path | None = None) -> np.ndarray:
    """The file's output in ONNX Runtime; without `optimized` its graph as it is written."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    if optimized is None:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    else:
        options.optimized_model_filepath = str(optimized)
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {session.get_inputs()[0].name: x})
    return output


def assert_close(found: np.ndarray, expected: np.ndarray) -> None:
    """As close as eight bits come: a percent of the range, and the same decisions."""
    assert np.abs(found - expected).mean() < 0.01 * np.ptp(expected)
    assert (found.argmax(1) == expected.argmax(1)).mean() > 0.95


@pytest.mark.parametrize("name", NAMES)
def test_the_cpu_file_in_both_runtimes(name: str, static, floats, samples, tmp_path) -> None:
    """It computes what the float file does, and every convolution is an int8 kernel."""
    x = calibration_split(100, seed=8).inputs(np.arange(100))
    path, expected = static(name, "cpu"), run(floats(name), x)
    assert_close(run(path, x, tmp_path / "optimized.onnx"), expected)
    ran = collections.Counter(n.op_type for n in onnx.load(tmp_path / "optimized.onnx").graph.node)

    assert ran["QLinearConv"] == CONVOLUTIONS[name]
    assert ran["Conv"] + ran["FusedConv"] == 0

    properties = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    compiled = openvino.Core().compile_model(path, "CPU", properties)
    assert_close(compiled.create_infer_request().infer([x])[0].copy(), expected)


@pytest.mark.parametrize("name", NAMES)
def test_the_trt_file_is_symmetric_and_fit_for_tensorrt(name: str, static, floats) -> None:
    """Operator by operator it computes what the float file does, with zero points of int8 0."""
    x = calibration_split(100, seed=8).inputs(np.arange(100))
    path = static(name, "trt")

    assert unfit_for_tensorrt(path) == []
    assert not [t for t in onnx.load(path).graph.initializer if t.data_type == TensorProto.INT32]
    assert_close(run(path, x), run(floats(name), x))


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_weights_are_int8_with_a_scale_for_each_channel(flavour: str, static, floats) -> None:
    """On a grid of 127 steps up to the largest weight of each output channel."""
    given = {t.name: numpy_helper.to_array(t) for t in onnx.load(floats("unet")).graph.initializer}
    model = onnx.load(static("unet", flavour))
    values = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    weights = {
        name: value for name, value in values.items() if value.dtype == np.int8 and value.ndim == 4
    }

    assert len(weights) == CONVOLUTIONS["unet"]
    for name, integers in weights.items():
        original = given[name.removesuffix("_quantized")]
        scale = values[name.removesuffix("_quantized") + "_scale"]
        largest = np.abs(original).reshape(len(original), -1).max(1)
        np.testing.assert_allclose(scale, largest / 127, rtol=1e-5)
        np.testing.assert_allclose(integers, np.rint(original / scale.reshape(-1, 1, 1, 1)), atol=1)


def activation_scale(path: Path, tensor: str) -> float:
    """The scale that a tensor of the float file is rounded with."""
    values = {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}
    return float(values[f"{tensor}_scale"])


def test_moving_ranges_are_those_of_the_graph_engine(static, samples) -> None:
    """Minimum and maximum of each batch, averaged with the momentum."""
    low = high = None
    for x, _ in samples.batches(64):
        low = x.min() if low is None else low + 0.5 * (x.min() - low)
        high = x.max() if high is None else high + 0.5 * (x.max() - high)
    scales = {
        flavour: activation_scale(static("unet", flavour, Moving(momentum=0.5)), "input")
        for flavour in FLAVOURS
    }

    assert scales["cpu"] == pytest.approx((high - low) / 255, rel=1e-5)
    assert scales["trt"] == pytest.approx(max(-low, high) / 127, rel=1e-5)


def test_a_percentile_holds_that_share_at_each_end(static, samples) -> None:
    """As `Percentile` does; ONNX Runtime's own number is the share between both ends."""
    values = np.concatenate([x.ravel() for x, _ in samples.batches(64)])
    low, high = np.quantile(values, [0.05, 0.95])
    found = activation_scale(static("unet", "cpu", Quantile(percent=95.0)), "input")

    assert found == pytest.approx((high - low) / 255, rel=0.01)


def test_entropy_is_a_method_of_its_own(static, floats) -> None:
    """The ranges differ from the moving ones, and the file still computes the same."""
    x = calibration_split(100, seed=8).inputs(np.arange(100))
    path = static("residual", "cpu", LeastDivergence())

    assert path.read_bytes() != static("residual", "cpu").read_bytes()
    assert_close(run(path, x), run(floats("residual"), x))


def test_the_same_file_gives_the_same_bytes_in_another_process(
    static, floats, tmp_path: Path
) -> None:
    """Nothing depends on hash seeds, temporary folders or what ran before."""
    code = (
        "import sys; from pathlib import Path\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "from test_static import FLAVOURS, MOVING, calibration_split, quantize_static\n"
        "given, out = Path(sys.argv[2]), Path(sys.argv[3])\n"
        "for flavour in FLAVOURS:\n"
        "    quantize_static(given, out / flavour, flavour, calibration_split(150), MOVING)\n"
    )
    arguments = [str(Path(__file__).parent), str(floats("mixed")), str(tmp_path)]
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, env=environment)

    for flavour in FLAVOURS:
        assert (tmp_path / flavour).read_bytes() == static("mixed", flavour).read_bytes()


def test_the_file_is_one_and_tells_nothing(static) -> None:
    """The opset stays, no unused operator set is declared, and no path is in the bytes."""
    path = static("mobile", "cpu")
    model = onnx.load(path)

    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 20)]
    assert not model.metadata_props
    data = path.read_bytes()
    for text in (str(Path.cwd()), sys.prefix, str(Path.home()), "/tmp/", ".py"):
        assert text.encode() not in data


def test_it_is_silent(floats, samples, tmp_path: Path, capfd, recwarn) -> None:
    """onnxruntime prints while it makes histograms; the user does not see it."""
    quantize_static(floats("residual"), tmp_path / "int8.onnx", "cpu", samples, Quantile())

    assert capfd.readouterr() == ("", "")
    assert not recwarn.list


def old_export(
    model: nn.Module, example: Tensor, path: Path, opset: int, batch: int | None
) -> None:
    """As other tools left them: an old opset, weights among the inputs, perhaps a fixed batch."""
    free = {"x": {0: "N"}, "y": {0: "N"}} if batch is None else None
    torch.onnx.export(
        model,
        (example,),
        path,
        dynamo=False,
        opset_version=opset,
        input_names=["x"],
        output_names=["y"],
        dynamic_axes=free,
        keep_initializers_as_inputs=True,
    )


@pytest.fixture
def old_network() -> nn.Module:
    """Convolutions and a linear layer, which every opset has."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(392, 4)
    ).eval()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("opset", [10, 11, 17])
def test_a_file_of_another_opset(
    opset: int, flavour: str, old_network, images, samples, tmp_path: Path
) -> None:
    """Opset 13 is the oldest that can hold int8 weights by channel; newer ones stay."""
    old_export(old_network, images(2), tmp_path / "old.onnx", opset, batch=None)
    quantize_static(tmp_path / "old.onnx", tmp_path / "int8.onnx", flavour, samples, MOVING)
    model = onnx.load(tmp_path / "int8.onnx")
    x = samples.inputs(np.arange(100))

    assert [entry.version for entry in model.opset_import] == [max(opset, 13)]
    assert [value.name for value in model.graph.input] == ["x"]
    with torch.no_grad():
        assert_close(run(tmp_path / "int8.onnx", x), old_network(torch.from_numpy(x)).numpy())


@pytest.mark.filterwarnings("ignore")
def test_a_fixed_batch_is_filled(old_network, images, samples, tmp_path: Path) -> None:
    """150 samples in batches of 4: the last one has two, and copies of the last.

    An average over batches so small would clip; the range holds all samples.
    """
    old_export(old_network, images(4), tmp_path / "old.onnx", 17, batch=4)
    quantize_static(tmp_path / "old.onnx", tmp_path / "int8.onnx", "cpu", samples, MOVING)
    x = samples.inputs(np.arange(150))
    pieces = [run(tmp_path / "int8.onnx", x[start : start + 4]) for start in range(0, 148, 4)]

    assert activation_scale(tmp_path / "int8.onnx", "x") == pytest.approx(np.ptp(x) / 255)
    with torch.no_grad():
        assert_close(np.concatenate(pieces), old_network(torch.from_numpy(x[:148])).numpy())

    slow = Moving(momentum=0.01)
    with pytest.raises(UsageError, match="momentum does nothing") as error:
        quantize_static(tmp_path / "old.onnx", tmp_path / "b.onnx", "cpu", samples, slow)
    assert error.value.found == "a file with a fixed batch of 4; averages take 64"


def test_a_quantized_file_is_refused(static, samples, tmp_path: Path) -> None:
    """Rounding twice would lose accuracy, and nobody asked for it."""
    with pytest.raises(StageError, match="is quantized already"):
        quantize_static(static("residual", "cpu"), tmp_path / "int8.onnx", "cpu", samples, MOVING)


def test_a_file_without_layers_is_refused(images, samples, tmp_path: Path) -> None:
    """An int8 file in which nothing is int8 is no int8 file."""
    export_torchscript(nn.Sequential(nn.Sigmoid(), nn.Flatten()), images(2), tmp_path / "a.onnx")
    with pytest.raises(StageError, match="no layer that ONNX Runtime can quantize"):
        quantize_static(tmp_path / "a.onnx", tmp_path / "int8.onnx", "cpu", samples, MOVING)

    assert not (tmp_path / "int8.onnx").exists()


@pytest.mark.parametrize("count", [60, 150])
def test_infinite_activations_are_refused(count: int, images, tmp_path: Path, recwarn) -> None:
    """In one batch the range is infinite, and over several their average is NaN."""
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(), nn.Linear(1024, 2))
    with torch.no_grad():
        model[0].bias[0] = torch.inf
    export_torchscript(model, images(2), tmp_path / "a.onnx")
    samples = calibration_split(count)
    with pytest.raises(StageError) as error:
        quantize_static(tmp_path / "a.onnx", tmp_path / "int8.onnx", "cpu", samples, MOVING)

    assert "NaN or infinity" in error.value.fix
    assert not recwarn.list
