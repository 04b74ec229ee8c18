"""TensorRT on an NVIDIA GPU: the artifact is an engine built for this one kind of GPU.

Unlike the CPU targets it takes the exporter's `trt` flavour (int8, every zero point 0). Written
for TensorRT 10 and 11, whose networks are strongly typed: the precision is what the ONNX file
says, there is no calibrator and no builder flag for it. Unverified on hardware by kdpipe's own
tests, which have no GPU; the build half is known to work in TensorRT-RTX, which shares the API.
"""

from __future__ import annotations

import json
import math
import threading
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from kdpipe.targets import sdk
from kdpipe.targets.audit import Executed, Layer
from kdpipe.targets.base import Audit, Missing, Session, Target, Tensors, TensorSpec
from kdpipe.targets.device.cuda import CudaError, Device, gpus
from kdpipe.targets.errors import StageError, listing
from kdpipe.targets.zeropoints import unfit_for_tensorrt

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
else:
    from kdpipe.targets.lazy import np

_INSTALL = "pip install 'kdpipe[tensorrt]'"
_COMPUTE = ("conv", "deconv", "gemm", "matrixmultiply", "fullyconnected")
_CONVERSIONS = ("reformat", "shuffle")
_EXECUTED: Mapping[str, Executed] = {"int8": "int8", "bf16": "bf16", "fp16": "fp16", "half": "fp16"}
"""How the inspector describes a tensor's type -> the precision; anything else is fp32."""


class TensorRt(Target):
    """NVIDIA GPUs, servers and Jetson; an engine runs on the kind of GPU it was built on."""

    flavour: ClassVar[str] = "trt"
    packages: ClassVar[tuple[str, ...]] = ("tensorrt",)
    device: ClassVar[str] = "GPU"
    reproducible: ClassVar[bool] = False  # the builder times kernels and keeps the fastest
    summary: ClassVar[str] = "TensorRT 10 and 11, NVIDIA GPUs"

    name: Literal["tensorrt"] = "tensorrt"
    batch: PositiveInt = Field(1, description="batch size that kernels are chosen for")
    max_batch: PositiveInt = Field(64, description="largest batch size the engine will take")
    tf32: bool = Field(
        False, description="let fp32 kernels round their inputs to 10 bits of mantissa"
    )

    @model_validator(mode="after")
    def _batch_in_range(self) -> Self:
        if self.batch > self.max_batch:
            raise ValueError(f"batch {self.batch} is larger than max_batch {self.max_batch}")
        return self

    def missing(self) -> Missing | None:
        """See Target; looks for the package first, then for the driver."""
        return sdk.absent("tensorrt", _INSTALL) or _no_gpu()

    def broken(self) -> Missing | None:
        """See Target."""
        return sdk.broken("tensorrt")

    def compile(self, onnx: Path, folder: Path) -> Path:
        """Build `model.engine`; takes seconds to minutes. Raises StageError with all reasons."""
        problems = unfit_for_tensorrt(onnx)
        if problems:
            raise StageError(
                f"TensorRT cannot take {onnx.name} as it is quantized",
                found=listing(problems, 5),
                fix="export the model again: the `trt` flavour of the int8 file is made for this",
            )
        artifact = folder / "model.engine"
        artifact.write_bytes(self._build(onnx))
        self.open(artifact).close()
        return artifact

    def open(self, artifact: Path) -> Session:
        """See Target; an engine of another GPU or version is an error."""
        return _TensorRtSession(_Engine(artifact))

    def audit(self, artifact: Path) -> Audit:
        """Read layer types and tensor formats from the deserialized engine's inspector."""
        trt = sdk.load("tensorrt", _INSTALL)
        engine = _Engine(artifact)
        try:
            inspector = engine.cuda_engine.create_engine_inspector()
            report = inspector.get_engine_information(trt.LayerInformationFormat.JSON)
            del inspector
        finally:
            engine.close()
        return _audit(json.loads(report)["Layers"])

    def _build(self, onnx: Path) -> bytes:
        trt = sdk.load("tensorrt", _INSTALL)
        log = _log(trt)
        builder = trt.Builder(log)
        network = builder.create_network(_network_flags(trt))
        parser = trt.OnnxParser(network, log)
        if not parser.parse(onnx.read_bytes()):
            errors = [parser.get_error(index).desc() for index in range(parser.num_errors)]
            raise StageError(f"TensorRT cannot parse {onnx.name}", found=listing(errors, 5))
        config = builder.create_builder_config()
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # what `audit` reads
        if not self.tf32:
            config.clear_flag(trt.BuilderFlag.TF32)
        config.add_optimization_profile(self._profile(builder, network))
        engine = builder.build_serialized_network(network, config)
        if engine is None:
            raise StageError(f"TensorRT cannot build {onnx.name}", found=listing(log.messages, 5))
        return bytes(engine)

    def _profile(self, builder: Any, network: Any) -> Any:
        """Shapes from batch 1 to `max_batch`, kernels chosen for `batch`."""
        profile = builder.create_optimization_profile()
        for index in range(network.num_inputs):
            tensor = network.get_input(index)
            shape = tuple(tensor.shape)
            if -1 in shape[1:]:
                raise StageError(
                    f"input {tensor.name!r} has free dimensions besides the batch",
                    found=str(shape),
                    fix="export the model with a fixed image size",
                )
            if shape[:1] == (-1,):
                sizes = (1, self.batch, self.max_batch)
                profile.set_shape(tensor.name, *((size, *shape[1:]) for size in sizes))
        return profile


class _Engine:
    """A deserialized engine, on the GPU that it was deserialized for."""

    def __init__(self, artifact: Path) -> None:
        trt = sdk.load("tensorrt", _INSTALL)
        try:
            self.device = Device()
        except CudaError as error:
            raise StageError("no NVIDIA GPU can be used", found=str(error)) from error
        log = _log(trt)
        self._runtime = trt.Runtime(log)
        self.cuda_engine = self._runtime.deserialize_cuda_engine(artifact.read_bytes())
        if self.cuda_engine is None:
            self.close()
            raise StageError(
                f"{artifact.name} is no engine for this GPU and this TensorRT {trt.__version__}",
                found=listing(log.messages, 5),
                fix="compile it again on this machine: kdpipe run",
            )

    def close(self) -> None:
        """Free it in order: what lives in the GPU's context goes before the context."""
        self.cuda_engine = self._runtime = None
        self.device.close()


class _TensorRtSession(Session):
    """One execution context with buffers of its own: callers take turns."""

    def __init__(self, engine: _Engine) -> None:
        self._turn = threading.Lock()
        self._engine: _Engine | None = engine
        self._context = engine.cuda_engine.create_execution_context()
        inputs, outputs = _specs(engine.cuda_engine)
        self.inputs = inputs
        self.outputs = outputs

    def run(self, feeds: Tensors) -> dict[str, NDArray[np.generic]]:
        """Upload, execute, download: a latency measured of this is what an application sees."""
        self.check(feeds)
        with self._turn:
            if self._engine is None:
                raise StageError("the session is closed")
            return self._run(self._engine.device, feeds)

    def _run(self, device: Device, feeds: Tensors) -> dict[str, NDArray[np.generic]]:
        context = self._context
        device.use()
        held = {name: np.ascontiguousarray(array) for name, array in feeds.items()}
        for name, array in held.items():
            if not context.set_input_shape(name, array.shape):
                raise StageError(f"the engine was not built for {name!r} of shape {array.shape}")
            context.set_tensor_address(name, device.upload(name, array))
        results = {
            spec.name: np.empty(tuple(context.get_tensor_shape(spec.name)), spec.dtype)
            for spec in self.outputs
        }
        for name, array in results.items():
            context.set_tensor_address(name, device.buffer(name, array.nbytes))
        if not context.execute_async_v3(device.stream):
            raise StageError("TensorRT could not run the engine")
        for name, array in results.items():
            device.download(name, array)
        device.wait()
        return results

    def close(self) -> None:
        with self._turn:
            if self._engine is not None:
                self._context = None
                self._engine.close()
                self._engine = None


def _no_gpu() -> Missing | None:
    try:
        gpus()
    except CudaError as error:
        fix = "run on a machine with an NVIDIA GPU and its driver"
        return Missing(f"no NVIDIA GPU: {error}", fix)
    return None


def _network_flags(trt: Any) -> int:
    """TensorRT 10 has to be asked for strong typing; 11 knows nothing else."""
    if int(trt.__version__.split(".")[0]) >= 11:
        return 0
    return 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)


def _log(trt: Any) -> Any:
    """A TensorRT logger that keeps errors as `messages` in place of printing them."""

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.messages: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.Severity.ERROR:
                self.messages.append(message)

    return Log()


def _audit(layers: list[dict[str, Any]]) -> Audit:
    """Layers as the inspector lists them, in detail, from TensorRT 8.2 on.

    A fused region that TensorRT shows as one opaque kernel is counted in `kernels` only.
    """
    kernels: Counter[str] = Counter()
    conversions: Counter[str] = Counter()
    found = []
    for layer in layers:
        kind = str(layer.get("ParameterType") or layer["LayerType"])
        used = _precision(layer)
        kernels[f"{kind}:{used}"] += 1
        if kind.lower().startswith(_COMPUTE):
            found.append(Layer(str(layer["Name"]), kind, used, _macs(kind.lower(), layer)))
        elif kind.lower().startswith(_CONVERSIONS):
            conversions[kind] += 1
    return Audit(tuple(found), kernels, conversions=conversions)


def _precision(layer: dict[str, Any]) -> Executed:
    """That of the first input, e.g. `Channel major FP16 format where channel % 8 == 0`."""
    used = " ".join(str(tensor["Format/Datatype"]) for tensor in layer["Inputs"][:1]).lower()
    for word, precision in _EXECUTED.items():
        if word in used:
            return precision
    return "fp32"


def _macs(kind: str, layer: dict[str, Any]) -> int | None:
    """For one sample: every position takes every weight, whatever the groups.

    A transposed convolution has as many positions as its input. None where a free side, or an
    inspector that says less, leaves it open.
    """
    weights = layer.get("Weights", {}).get("Count")
    tensors = layer.get("Inputs" if "deconv" in kind else "Outputs") or [{}]
    sides: list[int] = tensors[0].get("Dimensions", [])[2:]
    if "conv" not in kind or not weights or not sides or min(sides) < 1:
        return None
    return math.prod(sides) * int(weights)


def _specs(engine: Any) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Inputs and outputs of an engine; -1 stands for a free dimension."""
    trt = sdk.load("tensorrt", _INSTALL)
    inputs: list[TensorSpec] = []
    outputs: list[TensorSpec] = []
    for name in (engine.get_tensor_name(index) for index in range(engine.num_io_tensors)):
        shape = tuple(None if size == -1 else int(size) for size in engine.get_tensor_shape(name))
        dtype = np.dtype(trt.nptype(engine.get_tensor_dtype(name))).name
        is_input = engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
        (inputs if is_input else outputs).append(TensorSpec(name, shape, dtype))
    return tuple(inputs), tuple(outputs)
