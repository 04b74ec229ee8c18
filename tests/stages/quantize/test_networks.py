"""Whole networks, of the zoo and of timm: captured as they are, exported, and int8 to the last
layer in both runtimes of the CPU and in TensorRT-RTX."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from kdpipe.stages.models import FAMILIES, timm
from kdpipe.stages.onnx_export import export_onnx
from kdpipe.stages.quantize.capture import capture
from kdpipe.stages.quantize.emit import PARITY_STEPS, Emitted, emit
from kdpipe.stages.quantize.engine import QuantizedModel, calibrate, insert, layers
from kdpipe.stages.quantize.policy import Policy
from kdpipe.targets.onnxruntime import OnnxRuntime
from kdpipe.targets.openvino import OpenVino
from kdpipe.targets.zeropoints import unfit_for_tensorrt

ZOO = {
    "resnet20": {},
    "mobilenet": {"width": 0.5, "depth": 0.35},
    "unet": {"width": 0.25, "depth": 2},
    "vit": {"width": 0.5, "blocks": 1},
}
TIMM = ("resnet18", "mobilenetv2_100", "efficientnet_lite0", "mobilenetv4_conv_small")
SIDES = {**dict.fromkeys(ZOO, 32), **dict.fromkeys(TIMM, 96)}


def pictures(count: int, side: int, seed: int = 0) -> Tensor:
    """Smooth random images, each with a colour of its own, (count, 3, side, side)."""
    generator = torch.Generator().manual_seed(seed)
    shapes = torch.randn(count, 3, 4, 4, generator=generator)
    colours = 2 * torch.randn(count, 3, 1, 1, generator=generator)
    return F.interpolate(shapes, size=(side, side), mode="bilinear") + colours


def random_network(name: str) -> nn.Module:
    """Random weights that pass a signal on, and batch norms that have seen data.

    Random kernels are high-pass filters. Behind dozens of them, each made large again by its batch
    norm, nothing is left but the noise of rounding. Trained ones average more than they subtract.
    """
    torch.manual_seed(0)
    if name in ZOO:
        family = next(family for family in FAMILIES if name in family.names())
        arguments = family.arguments(name, ZOO[name])
        model = family.build(name, arguments, 3, 10)
    else:
        if find_spec("timm") is None:
            pytest.skip("needs timm")
        model = timm.build(name, {}, 3, 10)
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size != (1, 1):
            weight = module.weight.data
            weight.copy_(weight.abs() if module.groups > 1 else weight + 0.3 * weight.std())
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)  # timm starts those before a sum at zero
            module.momentum = None
    with torch.no_grad():
        for seed in range(4):
            model.train()(pictures(16, SIDES[name], seed))
    return model.eval()


@dataclass(frozen=True)
class Subject:
    """One network through the engine."""

    name: str
    model: nn.Module
    graph: fx.GraphModule
    quantized: QuantizedModel
    emitted: Emitted
    file: Path

    def pictures(self, count: int, seed: int = 0) -> Tensor:
        return pictures(count, SIDES[self.name], seed)


@pytest.fixture(scope="module", params=[*ZOO, *TIMM])
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """Calibrated, and exported for CPUs."""
    name, path = request.param, tmp_path_factory.mktemp(request.param) / "cpu.onnx"
    model, side = random_network(name), SIDES[name]
    graph = capture(model, pictures(2, side))
    quantized = insert(graph, Policy(heads=name == "unet"))
    calibrate(quantized, [pictures(16, side, seed) for seed in range(2)])
    emitted = emit(quantized, "cpu")
    export_onnx(emitted, pictures(2, side), path)
    return Subject(name, model, graph, quantized, emitted, path)


def test_it_is_captured_unmodified(subject: Subject) -> None:
    """The graph computes what the network does, for any batch."""
    x = subject.pictures(7, seed=9)
    with torch.no_grad():
        exact = subject.model(x)
        error = (subject.graph(x) - exact).abs().max()

    assert error < 1e-5 * exact.abs().max()


@pytest.mark.parametrize("target", [OnnxRuntime(precision="int8"), OpenVino(precision="int8")])
def test_a_runtime_computes_it_all_in_int8(
    target: OnnxRuntime | OpenVino, subject: Subject, tmp_path: Path
) -> None:
    """Every layer, and what comes out is what the emitted module says, sample by sample.

    OpenVINO's batch of one is compiled in: once that made half of a transformer run in float. A
    rounding that falls on the other side of a tie grows in fifty layers of random weights as the
    error of rounding itself does; there the one is measured by the other.
    """
    artifact = target.compile(subject.file, tmp_path)
    audit = target.audit(artifact)
    x = subject.pictures(8, seed=9)
    with torch.no_grad():
        expected, exact = subject.emitted(x).numpy(), subject.model(x).numpy()
    with target.open(artifact) as session:
        actual = np.concatenate([session.run({"input": row[None]})["output"] for row in x.numpy()])
    error = np.abs(actual - expected)

    assert audit.float_kernels == ()
    assert audit.int8_fraction == 1
    if subject.name in ZOO:
        assert error.max() < PARITY_STEPS * np.abs(expected).max() / 127
    else:
        assert np.linalg.norm(error) < 0.5 * np.linalg.norm(expected - exact)


def test_tensorrt_takes_it(subject: Subject, build_engine, tmp_path: Path) -> None:
    """With fp16 around the int8 layers, which all read int8; and not the file for CPUs.

    Of attention it fuses the second product with the softmax, which are not told apart then.
    """
    file = tmp_path / "half.onnx"
    emitted = emit(subject.quantized, "trt", half=True)
    export_onnx(emitted, subject.pictures(2), file)
    engine = build_engine(file)

    assert unfit_for_tensorrt(file) == []
    assert engine.errors == []
    assert {kind for layer in engine.layers for kind in layer[1:]} == {"Int8"}
    assert engine.layers.total() + engine.fused == len(layers(subject.graph))
    assert unfit_for_tensorrt(subject.file)
    assert build_engine(subject.file).errors
