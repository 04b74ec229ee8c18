"""OpenVINO on the CPU: the artifact is a folder of its own files, where ONNX Runtime keeps ONNX."""

from __future__ import annotations

import json
import re
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, PositiveInt

from kdpipe.targets import executed_model, sdk
from kdpipe.targets.audit import Layer
from kdpipe.targets.base import Audit, Missing, Precision, Session, Target, Tensors, TensorSpec
from kdpipe.targets.errors import DataError, StageError, listing
from kdpipe.targets.fingerprint import machine

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
else:
    from kdpipe.targets.lazy import np

_INSTALL = "pip install openvino"
_HINTS: Mapping[Precision, str] = {"fp32": "f32", "int8": "f32", "bf16": "bf16"}
"""Precision -> the plugin's hint for what is not quantized. Without one OpenVINO runs fp32 models
in bf16 on CPUs that can, in silence: that is a variant to ask for, and never the baseline."""
_BF16 = frozenset(("avx512_bf16", "amx_bf16", "bf16"))
"""CPU flags, of x86 and of ARM, either of which is enough for bf16."""

_COUNTED = re.compile(r"[A-Z][A-Za-z0-9]*_[0-9]+")
"""A name that OpenVINO makes up: the type of the layer and a number."""

# One stream, one request; without pinning the tail is shorter on machines that others use too.
_PROPERTIES = {"PERFORMANCE_HINT": "LATENCY", "ENABLE_CPU_PINNING": False}


class OpenVino(Target):
    """Intel's runtime; runs int8 graphs that ONNX Runtime cannot fuse, on x86 and ARM CPUs."""

    packages: ClassVar[tuple[str, ...]] = ("openvino",)
    fuses_activations: ClassVar[bool] = True
    precisions: ClassVar[tuple[Precision, ...]] = ("fp32", "int8", "bf16")
    summary: ClassVar[str] = "OpenVINO, CPU plugin"

    name: Literal["openvino"] = "openvino"
    batch: PositiveInt | None = Field(
        1, description="batch size compiled in, about a fifth faster; null leaves it free"
    )

    def missing(self) -> Missing | None:
        """See Target; for bf16 also a CPU that cannot compute in it."""
        return sdk.absent("openvino", _INSTALL) or self._without_bf16()

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
            _name_outputs(model, graph)
            openvino.save_model(model, folder / "model.xml", compress_to_fp16=False)
        except RuntimeError as error:
            raise StageError(f"OpenVINO refuses {onnx.name}", found=str(error)) from error
        self._describe(folder, _ends(graph))
        self.open(folder).close()
        return folder

    def adopt(self, folder: Path) -> Path:
        """Make an artifact of a folder in which someone else's `model.xml` and `model.bin` lie.

        Raises StageError when OpenVINO refuses them, DataError for a model without inputs.
        """
        try:
            model = _openvino().Core().read_model(folder / "model.xml")
            inputs, outputs = (
                [port.get_any_name() for port in ports] for ports in (model.inputs, model.outputs)
            )
        except RuntimeError as error:
            raise StageError("OpenVINO refuses the model", found=str(error)) from error
        if not inputs:
            raise DataError("the file is no model that can be run", found="no inputs")
        self._describe(folder, {"inputs": inputs, "outputs": outputs})
        return folder

    def open(self, artifact: Path) -> Session:
        """See Target; also an error when kernels run in another float type than asked for."""
        return _OpenVinoSession(self._compiled(artifact)[1], _settings(artifact))

    def audit(self, artifact: Path) -> Audit:
        """Read layers, precisions and shapes from the graph that the plugin executes."""
        return executed_model.audit(*self._compiled(artifact, one_sample=True))

    def _describe(self, folder: Path, ends: Mapping[str, list[str]]) -> None:
        """Write `model.json`: the plugin's settings, and the names of inputs and outputs."""
        properties = {
            **_PROPERTIES,
            "INFERENCE_PRECISION_HINT": _HINTS[self.precision or "fp32"],
            "INFERENCE_NUM_THREADS": self.threads,
        }
        settings = {"device": self.device, "properties": properties, **ends}
        (folder / "model.json").write_text(json.dumps(settings, indent=2) + "\n", "utf-8")

    def _without_bf16(self) -> Missing | None:
        flags = machine().get("flags") if self.precision == "bf16" else None
        if not isinstance(flags, list) or _BF16.intersection(map(str, flags)):
            return None
        reason = f"this CPU has no bf16 instructions ({', '.join(sorted(_BF16))})"
        return Missing(reason, "set `precision: fp32` or `int8` for this target")

    def _fix_batch(self, model: Any) -> None:
        if self.batch is None:
            return
        for shape in (port.get_partial_shape() for port in model.inputs):
            if len(shape) and shape[0].is_static and shape[0].get_length() != self.batch:
                has = shape[0].get_length()
                raise StageError(
                    f"the ONNX file has the fixed batch {has}, the target asks for {self.batch}",
                    fix=f"targets: [{{name: openvino, batch: {has}}}]",
                )
        _set_free_batch(model, self.batch)

    def _compiled(self, artifact: Path, *, one_sample: bool = False) -> tuple[Any, Any]:
        """The model, and what it compiles to on the CPU in the precision asked for, or StageError.

        `one_sample`: compiled for one where the batch is free, so that all shapes are known.
        """
        core = _openvino().Core()
        properties = {**_settings(artifact)["properties"], "INFERENCE_NUM_THREADS": self.threads}
        try:
            model = core.read_model(artifact / "model.xml")
            if one_sample:
                _set_free_batch(model, 1)
            compiled = core.compile_model(model, self.device, properties)
        except RuntimeError as error:
            raise StageError(f"OpenVINO refuses {artifact}", found=str(error)) from error
        devices = compiled.get_property("EXECUTION_DEVICES")
        if devices != [self.device]:
            raise StageError("OpenVINO fell back: asked for the CPU", found=str(devices))
        self._check_precision(executed_model.layers(model, compiled))
        return model, compiled

    def _check_precision(self, layers: Sequence[Layer]) -> None:
        half = [f"{x.name} in {x.precision}" for x in layers if x.precision in ("bf16", "fp16")]
        if half and self.precision != "bf16":
            raise StageError(
                "OpenVINO runs layers in half precision though it was not asked for",
                found=listing(half, 5),
                fix="compile it again, or name the variant: `precision: bf16`",
            )
        if layers and not half and self.precision == "bf16":
            raise StageError(
                "OpenVINO runs no layer in bf16, though it was asked for",
                found=listing([f"{x.name} in {x.precision}" for x in layers], 5),
                fix="set `precision: fp32` or `int8` for this target: this CPU has no bf16 kernels",
            )


class _OpenVinoSession(Session):
    """One inference request, whose tensors are written and read in place: callers take turns."""

    def __init__(self, compiled: Any, settings: dict[str, Any]) -> None:
        self._turn = threading.Lock()
        self._request = compiled.create_infer_request()
        ports = [compiled.input(name) for name in settings["inputs"]]
        self.inputs = tuple(map(_spec, settings["inputs"], ports))
        self._tensors = list(zip(self.inputs, map(self._request.get_tensor, ports), strict=True))
        results = zip(settings["outputs"], compiled.outputs, strict=True)
        self.outputs = tuple(_spec(name, port) for name, port in results)

    def run(self, feeds: Tensors) -> dict[str, NDArray[np.generic]]:
        self.check(feeds)
        with self._turn:
            if self._request is None:
                raise StageError("the session is closed")
            for spec, tensor in self._tensors:
                if None in spec.shape:
                    tensor.shape = feeds[spec.name].shape
                tensor.data[...] = feeds[spec.name]
            # handing the arrays to `infer`, and taking its copies, costs 0.1 ms more per call
            self._request.infer(share_outputs=True)
            return {
                spec.name: self._request.get_output_tensor(index).data.copy()
                for index, spec in enumerate(self.outputs)
            }

    def close(self) -> None:
        with self._turn:
            self._request = None
            self._tensors = []


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


def _name_outputs(model: Any, graph: Any) -> None:
    """Give layers that OpenVINO calls by the output they make the name of their node again."""
    nodes = {output: node.name for node in graph.node for output in node.output}
    for result in model.get_results():
        layer = result.input_value(0).get_node()
        if name := nodes.get(layer.get_friendly_name()):
            layer.set_friendly_name(name)


def _set_free_batch(model: Any, batch: int) -> None:
    """Give the inputs `batch` samples where their number is free, and infer the other shapes.

    `model.reshape` would do so too, but it also merges equal operators, such as the zero points of
    two layers, which the passes that look for int8 layers do not expect: every other layer of a
    transformer, and all convolutions beside a transposed one, then run in float (OpenVINO 2026.4).
    """
    for parameter in model.get_parameters():
        shape = parameter.get_partial_shape()
        if len(shape) and shape[0].is_dynamic:
            shape[0] = batch
            parameter.set_partial_shape(shape)
    model.validate_nodes_and_infer_types()


def _spec(name: str, port: Any) -> TensorSpec:
    shape = (size.get_length() if size.is_static else None for size in port.get_partial_shape())
    return TensorSpec(name, tuple(shape), port.get_element_type().to_dtype().name)
