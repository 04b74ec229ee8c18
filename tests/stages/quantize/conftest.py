"""Small networks for the quantization tests, one for each shape that runtimes fuse differently."""

from __future__ import annotations

import copy
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdpipe.stages.onnx_export import export_onnx
from kdpipe.stages.quantize.capture import capture
from kdpipe.stages.quantize.emit import Emitted, emit
from kdpipe.stages.quantize.engine import QuantizedModel, calibrate, insert
from kdpipe.stages.quantize.policy import Policy


def block(
    inputs: int, outputs: int, act: Callable[[], nn.Module], stride: int = 1, groups: int = 1
) -> nn.Sequential:
    """3x3 convolution without bias, batch norm, activation."""
    conv = nn.Conv2d(inputs, outputs, 3, stride, 1, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), act())


class Residual(nn.Module):
    """ResNet-like: nn.ReLU(inplace=True), a functional relu, a residual add, a linear head."""

    def __init__(self) -> None:
        super().__init__()
        relu = lambda: nn.ReLU(inplace=True)  # noqa: E731
        self.stem = block(3, 16, relu)
        self.first = block(16, 16, relu)
        self.second = nn.Sequential(nn.Conv2d(16, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16))
        self.down = block(16, 32, relu, stride=2)
        self.unused = nn.Conv2d(3, 3, 1)
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = F.relu(x + self.second(self.first(x)))
        x = F.adaptive_avg_pool2d(self.down(x), 1)
        return self.head(self.dropout(torch.flatten(x, 1)))


class Mobile(nn.Module):
    """MobileNet-like: ReLU6, depthwise convolutions, a linear bottleneck, a residual add."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = block(3, 16, nn.ReLU6, stride=2)
        self.expand = nn.Sequential(
            nn.Conv2d(16, 32, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU6(inplace=True)
        )
        self.depthwise = block(32, 32, nn.ReLU6, groups=32)
        self.project = nn.Sequential(nn.Conv2d(32, 16, 1, bias=False), nn.BatchNorm2d(16))
        self.last = block(16, 32, nn.ReLU6)
        self.head = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.project(self.depthwise(self.expand(x)))
        return self.head(self.last(x).mean((2, 3)))


class Unet(nn.Module):
    """U-Net-like: max pooling, nearest upsampling, a concatenation, a convolution as head."""

    def __init__(self) -> None:
        super().__init__()
        self.outer = block(3, 16, nn.ReLU)
        self.inner = block(16, 32, nn.ReLU)
        self.bottom = block(32, 16, nn.ReLU)
        self.merge = block(32, 16, nn.ReLU)
        self.head = nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.outer(x)
        x = self.bottom(self.inner(F.max_pool2d(skip, 2)))
        x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        return self.head(self.merge(torch.cat([x, skip], 1)))


class Mixed(nn.Module):
    """Grouped and "same" convolutions, squeeze-and-excitation, a transposed convolution whose
    signed output is concatenated with a ReLU's, and bilinear upsampling."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = block(3, 16, nn.ReLU, stride=2)
        self.grouped = nn.Conv2d(16, 16, 3, padding="same", groups=4, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.squeeze = nn.Conv2d(16, 4, 1)
        self.excite = nn.Conv2d(4, 16, 1)
        self.up = nn.ConvTranspose2d(16, 8, 2, stride=2, bias=False)
        self.up_norm = nn.BatchNorm2d(8)
        self.side = block(3, 8, nn.ReLU)
        self.merge = block(16, 16, nn.ReLU)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm(self.grouped(self.stem(x))))
        gate = self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(y, 1))))
        y = self.up_norm(self.up(y * torch.sigmoid(gate)))
        y = torch.cat([y, self.side(x)], 1)
        y = F.interpolate(self.merge(y), scale_factor=2.0, mode="bilinear")
        return self.head(F.adaptive_avg_pool2d(y, 1).flatten(1))


NETS: tuple[type[nn.Module], ...] = (Residual, Mobile, Unet, Mixed)


def _images(count: int, seed: int = 0) -> Tensor:
    """Smooth random images with values of both signs, (count, 3, 16, 16)."""
    noise = torch.randn(count, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(noise, size=(16, 16), mode="bilinear", align_corners=False)


def _warmed(net: type[nn.Module]) -> nn.Module:
    """A network whose batch norms have seen data and have gains and shifts of their own."""
    torch.manual_seed(1)
    model = net()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    with torch.no_grad():
        for seed in range(20):
            model(_images(64, seed))
    return model.eval()


@dataclass(frozen=True)
class Case:
    """One network through the whole engine. Tests share it, and must leave it as it is."""

    name: str
    model: nn.Module
    quantized: QuantizedModel
    emitted: dict[str, Emitted]
    files: dict[str, Path]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Small tensors: one thread is the fastest, and the machine may be shared."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def images() -> Callable[..., Tensor]:
    """images(count, seed=0): smooth random images."""
    return _images


@pytest.fixture(scope="session")
def network() -> Callable[[str], nn.Module]:
    """network("unet"): a fresh network of that name, the same one each time."""
    make = cache(lambda name: _warmed({net.__name__.lower(): net for net in NETS}[name]))
    return lambda name: copy.deepcopy(make(name))


@pytest.fixture(scope="session")
def quantized(network: Callable[[str], nn.Module]) -> Callable[..., QuantizedModel]:
    """quantized("unet", policy=None): a fresh, calibrated network."""

    @cache
    def make(name: str, policy: Policy | None) -> QuantizedModel:
        model = insert(capture(network(name), _images(2)), policy)
        calibrate(model, (_images(32, seed) for seed in range(4)))
        return model

    return lambda name, policy=None: copy.deepcopy(make(name, policy))


@pytest.fixture(scope="session")
def cases(
    tmp_path_factory: pytest.TempPathFactory,
    network: Callable[[str], nn.Module],
    quantized: Callable[..., QuantizedModel],
) -> Callable[[str], Case]:
    """cases("unet"): exporting costs seconds, so each network is exported once, for all tests."""

    @cache
    def make(name: str) -> Case:
        model = quantized(name)
        folder = tmp_path_factory.mktemp(name)
        emitted = {flavour: emit(model, flavour) for flavour in ("cpu", "trt")}
        emitted["half"] = emit(model, "trt", half=True)
        files = {flavour: folder / f"{flavour}.onnx" for flavour in emitted}
        for flavour, module in emitted.items():
            export_onnx(module, _images(2), files[flavour])
        return Case(name, network(name), model, emitted, files)

    return make


@pytest.fixture(params=[net.__name__.lower() for net in NETS])
def case(request: pytest.FixtureRequest, cases: Callable[[str], Case]) -> Case:
    """Every network, calibrated, emitted and exported as `cpu`, `trt` and `half`, trt in fp16."""
    return cases(request.param)


class Separable(nn.Module):
    """DS-CNN-like with ReLU: a depthwise convolution, and a head behind pooling and flattening."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = block(1, 16, nn.ReLU)
        self.depthwise = block(16, 16, nn.ReLU, groups=16)
        self.pointwise = nn.Sequential(
            nn.Conv2d(16, 32, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU()
        )
        self.head = nn.Linear(32 * 4, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.pointwise(self.depthwise(self.stem(x))), 4)
        return self.head(x.flatten(1))


@dataclass(frozen=True)
class Digits:
    """A network that has learned 8x8 digits, calibration batches, and 597 digits it never saw."""

    network: nn.Module
    batches: tuple[Tensor, ...]
    x: Tensor
    y: Tensor

    @torch.no_grad()
    def accuracy(self, model: nn.Module) -> float:
        """Share of right answers."""
        return (model(self.x).argmax(1) == self.y).float().mean().item()

    @torch.no_grad()
    def error(self, model: nn.Module) -> float:
        """Mean squared distance of the logits to the float network's, over their variance."""
        exact = self.network(self.x)
        return (F.mse_loss(model(self.x), exact) / exact.var()).item()


@pytest.fixture(scope="session")
def digits() -> Digits:
    """Trained once, in about two seconds. Tests share it, and must leave it as it is."""
    from sklearn.datasets import load_digits

    data = load_digits()
    x = torch.tensor(data.images, dtype=torch.float32).unsqueeze(1) / 8 - 1
    y = torch.tensor(data.target)
    torch.manual_seed(0)
    order = torch.randperm(len(x))
    x, y = x[order], y[order]
    model = Separable()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(8):
        for rows in torch.randperm(1200).split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
    return Digits(model.eval(), x[:512].split(64), x[1200:], y[1200:])


@dataclass(frozen=True)
class Engine:
    """What TensorRT-RTX makes of a file: why it refuses it, of what it warns, and the layers.

    `layers`: kind of layer and the types of its inputs -> how many; element-wise ones left out.
    `fused`: how many fusions there are beside them, those of a product with a softmax.
    """

    errors: list[str]
    warnings: list[str]
    layers: Counter[tuple[str, ...]]
    fused: int


_LAYER = re.compile(r"^Name: \S+, LayerType: (\w+), Inputs: \[(.*?)\], Constants", re.MULTILINE)
_MULTIPLIES = ("correlation", "deconv", "gemm")


@pytest.fixture(scope="session")
def build_engine() -> Callable[[Path], Engine]:
    """build_engine(path): parses and builds, which takes no GPU. It tells layers in its log alone:
    reading the engine back takes one."""
    trt = pytest.importorskip("tensorrt_rtx")
    logged: list[tuple[bool, str]] = []

    class Log(trt.ILogger):  # type: ignore[misc]
        def log(self, severity, message: str) -> None:
            logged.append((severity <= trt.ILogger.WARNING, message))

    logger = Log()

    def build(path: Path) -> Engine:
        logged.clear()
        builder = trt.Builder(logger)
        network = builder.create_network()
        parser = trt.OnnxParser(network, logger)
        if parser.parse(path.read_bytes()):
            config, profile = builder.create_builder_config(), builder.create_optimization_profile()
            sides = tuple(network.get_input(0).shape)[1:]
            profile.set_shape("input", (1, *sides), (8, *sides), (16, *sides))
            config.add_optimization_profile(profile)
            config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
            assert builder.build_serialized_network(network, config) is not None
        errors = [parser.get_error(i).desc() for i in range(parser.num_errors)]
        told = _LAYER.findall("\n".join(message for _, message in logged))
        layers = [(kind, *re.findall(r"Datatype: (\w+)", inputs)) for kind, inputs in told]
        multiply = Counter(layer for layer in layers if layer[0] in _MULTIPLIES)
        fused = sum(kind == "runtime_fusion" for kind, *_ in layers)
        return Engine(errors, [message for warns, message in logged if warns], multiply, fused)

    return build
