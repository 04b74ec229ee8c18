"""ONNX Runtime on the CPU: the artifact is the ONNX file itself, where OpenVINO writes its own."""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from kdpipe.targets import sdk
from kdpipe.targets.base import Audit, Missing, Session, Target, Tensors, TensorSpec
from kdpipe.targets.errors import StageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
else:
    from kdpipe.targets.lazy import np

_PROVIDERS = ["CPUExecutionProvider"]
_INSTALL = "pip install onnxruntime"

# Operators of the optimized graph, the runtime's own (com.microsoft, nchwc) among them.
_INT8 = {"QLinearConv", "QLinearMatMul", "QGemm", "QAttention"}
_INT8 |= {"ConvInteger", "MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul"}
_FLOAT = {"Conv", "FusedConv", "NhwcFusedConv", "ConvTranspose"}
_FLOAT |= {"Gemm", "FusedGemm", "MatMul", "FusedMatMul", "Attention", "MultiHeadAttention"}
_CONVERSIONS = {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"}

_DTYPES = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(bool)": "bool",
}


class OnnxRuntime(Target):
    """Runs on every CPU; a model it cannot fuse into int8 kernels gets slower, not faster."""

    packages: ClassVar[tuple[str, ...]] = ("onnxruntime",)
    summary: ClassVar[str] = "ONNX Runtime, CPU execution provider"

    name: Literal["onnxruntime"] = "onnxruntime"
    ahead_of_time: bool = Field(
        False,
        description="ship the graph as optimized for this CPU: loads about five times faster,"
        " runs the same, and is tied to this CPU model and this version of the runtime",
    )

    def missing(self) -> Missing | None:
        """See Target."""
        return sdk.absent("onnxruntime", _INSTALL)

    def broken(self) -> Missing | None:
        """See Target."""
        return sdk.broken("onnxruntime")

    def compile(self, onnx: Path, folder: Path) -> Path:
        """Copy `onnx` to `model.onnx`, or write its optimized graph there, and load it once."""
        artifact = folder / "model.onnx"
        if self.ahead_of_time:
            self._load(onnx, optimize=True, dump=artifact)
            _name_by_output(artifact, onnx)
        else:
            shutil.copyfile(onnx, artifact)
        self.open(artifact).close()
        return artifact

    def open(self, artifact: Path) -> Session:
        """See Target."""
        return _OnnxRuntimeSession(self._load(artifact, optimize=not self.ahead_of_time))

    def audit(self, artifact: Path) -> Audit:
        """Count the kernels of the graph that the runtime runs after its own optimization."""
        import onnx

        with tempfile.TemporaryDirectory() as folder:
            dump = Path(folder) / "optimized.onnx"
            self._load(artifact, optimize=not self.ahead_of_time, dump=dump)
            nodes = list(_nodes(onnx.load(dump).graph))
        int8 = [node for node in nodes if node.op_type in _INT8]
        floating = [node for node in nodes if node.op_type in _FLOAT]
        shown = _INT8 | _FLOAT | _CONVERSIONS
        return Audit(
            int8_fraction=len(int8) / max(1, len(int8) + len(floating)),
            kernels=Counter(node.op_type for node in nodes if node.op_type in shown),
            float_kernels=tuple(node.name or node.output[0] for node in floating),
        )

    def _load(self, file: Path, *, optimize: bool, dump: Path | None = None) -> Any:
        """An InferenceSession on exactly the providers asked for; `dump` gets what it runs."""
        ort = sdk.load("onnxruntime", _INSTALL)
        ort.disable_telemetry_events()
        options = ort.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3  # errors; a dump warns that it is tied to this CPU
        level = ort.GraphOptimizationLevel
        options.graph_optimization_level = (
            level.ORT_ENABLE_ALL if optimize else level.ORT_DISABLE_ALL
        )
        if dump is not None:
            options.optimized_model_filepath = str(dump)
        try:
            session = ort.InferenceSession(str(file), options, providers=_PROVIDERS)
        except Exception as error:  # its exceptions share no base class
            raise StageError(f"ONNX Runtime refuses {file.name}", found=str(error)) from error
        if session.get_providers() != _PROVIDERS:
            raise StageError(
                f"ONNX Runtime fell back: asked for {_PROVIDERS}",
                found=str(session.get_providers()),
            )
        return session


class _OnnxRuntimeSession(Session):
    def __init__(self, session: Any) -> None:
        self._session = session
        self.inputs = tuple(_spec(value) for value in session.get_inputs())
        self.outputs = tuple(_spec(value) for value in session.get_outputs())
        self._names = [spec.name for spec in self.outputs]

    def run(self, feeds: Tensors) -> dict[str, NDArray[np.generic]]:
        if self._session is None:
            raise StageError("the session is closed")
        self.check(feeds)
        return dict(zip(self._names, self._session.run(None, feeds), strict=True))

    def close(self) -> None:
        self._session = None


def _spec(value: Any) -> TensorSpec:
    """`tensor(float)` is float32; the other element types go by numpy's names, `tensor(int64)`."""
    dtype = _DTYPES.get(value.type, value.type.removeprefix("tensor(").removesuffix(")"))
    shape = tuple(size if isinstance(size, int) else None for size in value.shape)
    return TensorSpec(value.name, shape, dtype)


def _name_by_output(dump: Path, source: Path) -> None:
    """Name the nodes that the optimizer made after what they compute.

    It numbers them in an order that changes from run to run, and so would the artifact's digest.
    """
    import onnx

    model = onnx.load(dump)
    given = {node.name for node in _nodes(onnx.load(source).graph)}
    for node in _nodes(model.graph):
        if node.name not in given:
            node.name = node.output[0]
    onnx.save(model, dump)


def _nodes(graph: Any) -> Iterator[Any]:
    """All nodes, those inside branches and loops included."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                yield from _nodes(inner)
