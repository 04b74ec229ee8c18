"""Audits of networks of the zoo: MACs against torch's own count, layers by the user's names."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from kdpipe.stages.models.blueprint import Blueprint
from kdpipe.stages.models.size import macs
from kdpipe.stages.onnx_export import export_onnx
from kdpipe.stages.quantize.capture import capture
from kdpipe.stages.quantize.emit import emit
from kdpipe.stages.quantize.engine import calibrate, insert
from kdpipe.targets.base import Target
from kdpipe.targets.onnxruntime import OnnxRuntime
from kdpipe.targets.openvino import OpenVino

SHAPE = (3, 16, 16)
TARGETS = (OnnxRuntime(), OpenVino(), OpenVino(batch=None), OpenVino(batch=3))


def odd() -> nn.Module:
    """Channels that no block size divides, groups, strides, a transposed convolution, 3-d input
    of a linear layer: where a count by the runtime's own shapes could go wrong."""
    return nn.Sequential(
        nn.Conv2d(3, 20, 3, 2, 1, groups=1),
        nn.ReLU(),
        nn.Conv2d(20, 20, 3, 1, 1, groups=20),
        nn.ReLU(),
        nn.Conv2d(20, 10, 5, 1, 2, groups=2),
        nn.ReLU(),
        nn.ConvTranspose2d(10, 12, 3, 2, 1, output_padding=1, groups=2),
        nn.ReLU(),
        nn.Flatten(2),
        nn.Linear(256, 7),
        nn.Flatten(),
        nn.Linear(84, 5),
    )


def up() -> nn.Module:
    """A convolution and a transposed one of as many channels."""
    layers = (nn.Conv2d(3, 16, 3, 1, 1), nn.ReLU(), nn.ConvTranspose2d(16, 16, 2, 2))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4))


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    own = {"odd": odd, "up": up}
    made = own[name]() if name in own else Blueprint(name, {"width": 0.5}, SHAPE, 5).build()
    return made.eval()


def title(target: Target) -> str:
    return f"{target.name} batch={getattr(target, 'batch', 'free')}"


@pytest.fixture(scope="module", params=["resnet8", "odd"])
def exported(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[nn.Module, Path]:
    """A network and its fp32 file."""
    torch.set_num_threads(1)
    model, file = network(request.param), tmp_path_factory.mktemp("fp32") / "model.onnx"
    export_onnx(model, torch.randn(2, *SHAPE), file)
    return model, file


@pytest.mark.parametrize("target", TARGETS, ids=title)
def test_macs_are_those_that_torch_counts(
    exported: tuple[nn.Module, Path], target: Target, tmp_path: Path
) -> None:
    """For one sample, whatever the batch, and layer by layer under the module's own name."""
    model, file = exported

    audit = target.audit(target.compile(file, tmp_path))

    weighted = [path for path, m in model.named_modules() if hasattr(m, "weight")]
    assert sum(layer.macs or 0 for layer in audit.layers) == macs(model, SHAPE)
    assert {layer.name for layer in audit.layers} == {p for p in weighted if "norm" not in p}
    assert {layer.precision for layer in audit.layers} == {"fp32"}


def test_an_emitted_file_keeps_the_names_of_the_model(tmp_path: Path) -> None:
    """So that a culprit is found in the user's code, and not under a number of the exporter."""
    torch.set_num_threads(1)
    x = torch.randn(4, *SHAPE)
    model = network("resnet8")
    quantized = insert(capture(model, x), None)
    calibrate(quantized, [x])
    export_onnx(emit(quantized, "cpu"), x, tmp_path / "int8.onnx")

    audit = OnnxRuntime().audit(tmp_path / "int8.onnx")

    names = {path for path, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    assert {layer.name for layer in audit.layers} == names
    assert sum(layer.macs or 0 for layer in audit.layers) == macs(model, SHAPE)
    assert audit.int8_fraction == 1


def test_zero_points_in_common_do_not_cost_int8(tmp_path: Path) -> None:
    """Equal constants are stored once. Where a convolution and a transposed one have their zero
    points in common, OpenVINO's own `reshape` to a fixed batch makes every convolution float."""
    torch.set_num_threads(1)
    x, model = torch.randn(4, *SHAPE), network("up")
    quantized = insert(capture(model, x), None)
    calibrate(quantized, [x])
    export_onnx(emit(quantized, "cpu"), x, tmp_path / "int8.onnx")
    (tmp_path / "out").mkdir()
    target = OpenVino(precision="int8")

    audit = target.audit(target.compile(tmp_path / "int8.onnx", tmp_path / "out"))

    assert audit.float_kernels == ()
