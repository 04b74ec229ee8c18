"""Tiny networks as ONNX files, made without torch, and the samples to run them on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper, save
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_static,
)

from kdpipe.targets import GROUP, target_named
from kdpipe.targets.base import Target
from kdpipe.targets.onnxruntime import OnnxRuntime
from kdpipe.targets.process import Job

SHAPE = (3, 16, 16)
SYMMETRIC = {
    "ActivationSymmetric": True,
    "WeightSymmetric": True,
    "AddQDQPairToWeight": True,
    "QuantizeBias": False,
}


class Reader(CalibrationDataReader):
    """Feeds samples one at a time."""

    def __init__(self, samples: NDArray[np.float32]) -> None:
        self._left = iter(samples[:, None])

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        sample = next(self._left, None)
        return None if sample is None else {"input": sample}


def network(width: int = 8, batch: int | str = "batch") -> ModelProto:
    """conv, residual conv, concatenation, pooling, linear: (batch, 3, 16, 16) -> (batch, 5)."""
    random = np.random.default_rng(0)
    weights = {
        "w1": random.normal(0, 0.3, (width, 3, 3, 3)),
        "b1": random.normal(0, 0.1, width),
        "w2": random.normal(0, 0.1, (width, width, 3, 3)),
        "w3": random.normal(0, 0.3, (2 * width, 5)),
        "b3": random.normal(0, 0.1, 5),
    }
    make = helper.make_node
    nodes = [
        make("Conv", ["input", "w1", "b1"], ["c1"], name="stem", pads=[1] * 4),
        make("Relu", ["c1"], ["r1"]),
        make("Conv", ["r1", "w2", "b1"], ["c2"], name="block", pads=[1] * 4),
        make("Add", ["r1", "c2"], ["a"]),
        make("Relu", ["a"], ["r2"]),
        make("Concat", ["r1", "r2"], ["cat"], axis=1),
        make("GlobalAveragePool", ["cat"], ["pooled"]),
        make("Flatten", ["pooled"], ["flat"]),
        make("Gemm", ["flat", "w3", "b3"], ["output"], name="head"),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "tiny",
        [value("input", TensorProto.FLOAT, [batch, *SHAPE])],
        [value("output", TensorProto.FLOAT, [batch, 5])],
        [numpy_helper.from_array(w.astype(np.float32), name) for name, w in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.fixture(scope="session")
def samples() -> NDArray[np.float32]:
    """(24, 3, 16, 16) standard normal values."""
    return np.random.default_rng(1).normal(size=(24, *SHAPE)).astype(np.float32)


@pytest.fixture(scope="session")
def inputs(samples: NDArray[np.float32], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The samples as an .npy file."""
    file = tmp_path_factory.mktemp("samples") / "inputs.npy"
    np.save(file, samples)
    return file


@pytest.fixture(scope="session")
def fp32(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny network with a free batch."""
    file = tmp_path_factory.mktemp("fp32") / "fp32.onnx"
    save(network(), file)
    return file


@pytest.fixture(scope="session")
def int8(fp32: Path, samples: NDArray[np.float32]) -> Callable[[str], Path]:
    """The tiny network quantized, by flavour: `cpu` (uint8) or `trt` (int8, zero point 0)."""
    activations = {"cpu": QuantType.QUInt8, "trt": QuantType.QInt8}
    extra = {"cpu": {}, "trt": SYMMETRIC}
    for flavour, activation in activations.items():
        quantize_static(
            fp32,
            fp32.with_name(f"{flavour}.onnx"),
            Reader(samples),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=activation,
            weight_type=QuantType.QInt8,
            extra_options=extra[flavour],
        )
    return lambda flavour: fp32.with_name(f"{flavour}.onnx")


@pytest.fixture
def fixed_batch(tmp_path: Path) -> Path:
    """The tiny network with the batch fixed to 4."""
    file = tmp_path / "fixed.onnx"
    save(network(batch=4), file)
    return file


@pytest.fixture
def wide(tmp_path: Path) -> Path:
    """The network with about 34 MB of weights."""
    file = tmp_path / "wide.onnx"
    save(network(width=968), file)
    return file


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], type[Target]]:
    """plugin("chatty", source): the target of another package, found here and in the processes
    that measure; its class has the name with a capital letter."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def install(name: str, source: str) -> type[Target]:
        (tmp_path / f"{name}_target.py").write_text(source)
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        entry = f"{name} = {name}_target:{name.capitalize()}"
        (info / "entry_points.txt").write_text(f"[{GROUP}]\n{entry}\n")
        return target_named(name)

    return install


@pytest.fixture
def job(fp32: Path, inputs: Path) -> Job:
    """The tiny network in ONNX Runtime, whose artifact is the ONNX file itself."""
    return Job(OnnxRuntime(), fp32, inputs)


@pytest.fixture
def rapl_tree(tmp_path: Path) -> Path:
    """Two packages, their cores and memory, and the same package through another door."""
    zones = {
        "intel-rapl:0": "package-0", "intel-rapl:1": "package-1", "intel-rapl:0:0": "core",
        "intel-rapl:0:1": "dram", "intel-rapl:2": "psys", "intel-rapl-mmio:0": "package-0",
    }  # fmt: skip
    root = tmp_path / "machine"
    for zone, name in zones.items():
        folder = root / "sys/class/powercap" / zone
        folder.mkdir(parents=True)
        (folder / "name").write_text(f"{name}\n")
        (folder / "energy_uj").write_text("7000000\n")
        (folder / "max_energy_range_uj").write_text("262143328850\n")
    return root


class Burning:
    """Packages under `root` that consume `watts` each, from now on."""

    def __init__(self, root: Path) -> None:
        self.root, self.watts, self.done = root, 5.0, threading.Event()
        self._joules, self._before = 7.0, time.monotonic()

    def burn(self) -> None:
        """Let the counters rise, renamed into place as a kernel would show them."""
        while not self.done.wait(0.005):
            now = time.monotonic()
            self._joules, self._before = self._joules + self.watts * (now - self._before), now
            for zone in ("intel-rapl:0", "intel-rapl:1"):
                file = self.root / f"sys/class/powercap/{zone}/energy_uj"
                file.with_suffix(".new").write_text(f"{int(self._joules * 1e6)}\n")
                file.with_suffix(".new").rename(file)


@pytest.fixture
def burning(rapl_tree: Path) -> Iterator[Burning]:
    """The two packages at work while the test runs, 5 W each unless it says otherwise."""
    packages = Burning(rapl_tree)
    thread = threading.Thread(target=packages.burn)
    thread.start()
    yield packages
    packages.done.set()
    thread.join()
