"""OpenVINO on the CPU: the artifact is a folder of its own files, where ONNX Runtime keeps ONNX."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, PositiveInt

from kdpipe.targets import sdk
from kdpipe.targets.base import Audit, Missing, Session, Target, Tensors, TensorSpec
from kdpipe.targets.errors import StageError, listing

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
else:
    from kdpipe.targets.lazy import np

_INSTALL = "pip install openvino"
_COMPUTE = frozenset(("Convolution", "Deconvolution", "FullyConnected", "MatMul"))
_INT8 = frozenset(("u8", "i8"))
_HALF = frozenset(("bf16", "f16"))

_COUNTED = re.compile(r"[A-Z][A-Za-z0-9]*_[0-9]+")
"""A name that OpenVINO makes up: the type of the layer and a number."""

# One stream, one request. Without the precision hint OpenVINO runs fp32 models in bf16 on CPUs
# that can, in silence; without pinning the tail is shorter on machines that others use too.
_PROPERTIES = {
    "PERFORMANCE_HINT": "LATENCY",
    "INFERENCE_PRECISION_HINT": "f32",
    "ENABLE_CPU_PINNING": False,
}


class OpenVino(Target):
    """Intel's runtime; runs int8 graphs that ONNX Runtime cannot fuse, on x86 and ARM CPUs."""

    packages: ClassVar[tuple[str, ...]] = ("openvino",)
    summary: ClassVar[str] = "OpenVINO, CPU plugin"

    name: Literal["openvino"] = "openvino"
    batch: PositiveInt | None = Field(
        1, description="batch size compiled in, about a fifth faster; null leaves it free"
    )

    def missing(self) -> Missing | None:
        """See Target."""
        return sdk.absent("openvino", _INSTALL)

    def broken(self) -> Missing | None:
        """See Target."""
        _without_telemetry()
        return sdk.broken("openvino")

    def compile(self, onnx: Path, folder: Path) -> Path:
        """Write `model.xml`, `model.bin` and, with what is needed to load them, `model.json`.

        The artifact is `folder`. Raises StageError when OpenVINO refuses the model, or when the
        ONNX file has a fixed batch other than `batch`.
        """
        openvino = _openvino()
        try:
            model = openvino.Core().read_model(onnx)
            self._fix_batch(model)
            graph = _graph(onnx)
            _name_by_position(model, _names(graph))
            openvino.save_model(model, folder / "model.xml", compress_to_fp16=False)
        except RuntimeError as error:
            raise StageError(f"OpenVINO refuses {onnx.name}", found=str(error)) from error
        settings = {
            "device": self.device,
            "properties": {**_PROPERTIES, "INFERENCE_NUM_THREADS": self.threads},
            **_ends(graph),
        }
        (folder / "model.json").write_text(json.dumps(settings, indent=2) + "\n", "utf-8")
        self.open(folder).close()
        return folder

    def open(self, artifact: Path) -> Session:
        """See Target; also an error when a kernel runs in half precision."""
        return _OpenVinoSession(self._load(artifact), _settings(artifact))

    def audit(self, artifact: Path) -> Audit:
        """Read layer types and precisions from the graph that the plugin executes."""
        layers = _layers(self._load(artifact))
        compute = [(name, kind, used) for name, kind, used in layers if kind in _COMPUTE]
        floating = tuple(name for name, _, used in compute if used not in _INT8)
        return Audit(
            int8_fraction=1 - len(floating) / len(compute) if compute else 0.0,
            kernels=Counter(f"{kind}:{used}" for _, kind, used in compute),
            float_kernels=floating,
        )

    def _fix_batch(self, model: Any) -> None:
        if self.batch is None:
            return
        shapes = {port: list(port.get_partial_shape()) for port in model.inputs}
        for shape in shapes.values():
            if shape and shape[0].is_static and shape[0].get_length() != self.batch:
                has = shape[0].get_length()
                raise StageError(
                    f"the ONNX file has the fixed batch {has}, the target asks for {self.batch}",
                    fix=f"targets: [{{name: openvino, batch: {has}}}]",
                )
            shape[:1] = [self.batch] * len(shape[:1])
        model.reshape(shapes)

    def _load(self, artifact: Path) -> Any:
        """The compiled model, on the CPU and in the precision asked for, or StageError."""
        core = _openvino().Core()
        properties = {**_settings(artifact)["properties"], "INFERENCE_NUM_THREADS": self.threads}
        try:
            model = core.read_model(artifact / "model.xml")
            compiled = core.compile_model(model, self.device, properties)
        except RuntimeError as error:
            raise StageError(f"OpenVINO refuses {artifact}", found=str(error)) from error
        devices = compiled.get_property("EXECUTION_DEVICES")
        if devices != [self.device]:
            raise StageError("OpenVINO fell back: asked for the CPU", found=str(devices))
        layers = [layer for layer in _layers(compiled) if layer[1] in _COMPUTE]
        half = [f"{name} in {used}" for name, _, used in layers if used in _HALF]
        if half:
            raise StageError(
                "OpenVINO runs layers in half precision though fp32 was asked for",
                found=listing(half, 5),
            )
        return compiled


class _OpenVinoSession(Session):
    def __init__(self, compiled: Any, settings: dict[str, Any]) -> None:
        self._request = compiled.create_infer_request()
        ports = zip(settings["inputs"], map(compiled.input, settings["inputs"]), strict=True)
        self.inputs = tuple(_spec(name, port) for name, port in ports)
        results = zip(settings["outputs"], compiled.outputs, strict=True)
        self.outputs = tuple(_spec(name, port) for name, port in results)

    def run(self, feeds: Tensors) -> dict[str, NDArray[np.generic]]:
        if self._request is None:
            raise StageError("the session is closed")
        self.check(feeds)
        results = self._request.infer(feeds, share_inputs=True)  # outputs are copied
        return {spec.name: results[index] for index, spec in enumerate(self.outputs)}

    def close(self) -> None:
        self._request = None


def _openvino() -> Any:
    _without_telemetry()
    return sdk.load("openvino", _INSTALL)


def _without_telemetry() -> None:
    """Hide OpenVINO's telemetry package from it, for which case it carries a stand-in.

    Otherwise its mere import reports to a web analytics service and leaves an id in the home
    folder, without asking.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]


def _settings(artifact: Path) -> dict[str, Any]:
    try:
        settings: dict[str, Any] = json.loads((artifact / "model.json").read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise StageError(f"{artifact} is no OpenVINO artifact", found=str(error)) from error
    return settings


def _graph(onnx: Path) -> Any:
    from onnx import load

    return load(onnx, load_external_data=False).graph


def _ends(graph: Any) -> dict[str, list[str]]:
    """Input and output names as the ONNX file has them; OpenVINO merges and reorders aliases."""
    weights = {tensor.name for tensor in graph.initializer}
    return {
        "inputs": [value.name for value in graph.input if value.name not in weights],
        "outputs": [value.name for value in graph.output],
    }


def _names(graph: Any) -> set[str]:
    """Everything that has a name in the ONNX file."""
    names = {tensor.name for tensor in graph.initializer}
    return names.union(*([node.name, *node.output] for node in graph.node))


def _name_by_position(model: Any, given: set[str]) -> None:
    """Rename layers that OpenVINO named, counting through the whole process, by their place.

    Without it, compiling the same file twice gives two different artifacts.
    """
    for index, layer in enumerate(model.get_ordered_ops()):
        name = layer.get_friendly_name()
        if _COUNTED.fullmatch(name) and name not in given:
            layer.set_friendly_name(f"{layer.get_type_name()}@{index}")


def _layers(compiled: Any) -> list[tuple[str, str, str]]:
    """(name, layer type, precision) of every executed layer."""
    layers = []
    for layer in compiled.get_runtime_model().get_ordered_ops():
        info = layer.get_rt_info()
        kind, used = (info[key].astype(str) for key in ("layerType", "runtimePrecision"))
        layers.append((layer.get_friendly_name(), kind, used))
    return layers


def _spec(name: str, port: Any) -> TensorSpec:
    shape = (size.get_length() if size.is_static else None for size in port.get_partial_shape())
    return TensorSpec(name, tuple(shape), port.get_element_type().to_dtype().name)
