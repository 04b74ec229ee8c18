"""ONNX Runtime on the CPU: the artifact is the ONNX file itself, where OpenVINO writes its own."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from kdpipe.targets import optimized_graph, sdk
from kdpipe.targets.audit import Layer
from kdpipe.targets.base import Audit, Missing, Session, Target, Tensors, TensorSpec
from kdpipe.targets.errors import StageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
else:
    from kdpipe.targets.lazy import np

_PROVIDERS = ["CPUExecutionProvider"]
_INSTALL = "pip install onnxruntime"

_PADDING = "NchwcTransformer"
"""The optimizer that gives float convolutions a layout in which channels are padded to 8 or 16:
another kernel for the same layer, whose true number of channels can no longer be seen."""

_DTYPES = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(bool)": "bool",
}


class OnnxRuntime(Target):
    """Runs on every CPU; a model it cannot fuse into int8 kernels gets slower, not faster."""

    packages: ClassVar[tuple[str, ...]] = ("onnxruntime",)
    rounds_before_activations: ClassVar[bool] = True
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
        """Read the graph that the runtime runs after its own optimization, and run it on zeros.

        With `ahead_of_time`, padded channels of float convolutions are counted as they run.
        """
        import onnx

        given = set() if self.ahead_of_time else _names(onnx.load(artifact).graph)
        with tempfile.TemporaryDirectory() as folder:
            runs, plain = Path(folder) / "runs.onnx", Path(folder) / "plain.onnx"
            optimize = not self.ahead_of_time
            self._load(artifact, optimize=optimize, dump=runs)
            self._load(artifact, optimize=optimize, dump=plain, without=(_PADDING,))
            layers = self._layers(onnx.load(plain), Path(folder))
            return optimized_graph.summary(onnx.load(runs).graph, given, layers)

    def _layers(self, optimized: Any, folder: Path) -> tuple[Layer, ...]:
        """The layers of an optimized graph, with shapes from a profile of one run on zeros.

        The graph leaves shapes open where the optimizer made tensors of its own.
        """
        import onnx

        for position, node in enumerate(optimized_graph.nodes(optimized.graph)):
            node.name = f"{position}/{node.name}"  # the profile knows nodes by their names alone
        file = folder / "named.onnx"
        onnx.save(optimized, file)
        session = self._load(file, optimize=False, profile=folder / "profile")
        feeds, batch = _zeros(session.get_inputs())
        if feeds:
            session.run(None, feeds)
        ran = _ran(json.loads(Path(session.end_profiling()).read_text("utf-8")))
        for node in optimized_graph.nodes(optimized.graph):
            node.name = node.name.partition("/")[2]
        return optimized_graph.layers(optimized.graph, ran, batch)

    def _load(
        self,
        file: Path,
        *,
        optimize: bool,
        dump: Path | None = None,
        profile: Path | None = None,
        without: Sequence[str] = (),
    ) -> Any:
        """An InferenceSession on exactly the providers asked for.

        `dump` gets what it runs, `profile` (a prefix) what ran; `without`: optimizers left out.
        """
        ort = sdk.load("onnxruntime", _INSTALL)
        ort.disable_telemetry_events()
        options = self._options(ort, optimize)
        if dump is not None:
            options.optimized_model_filepath = str(dump)
        if profile is not None:
            options.enable_profiling = True
            options.profile_file_prefix = str(profile)
        try:
            session = ort.InferenceSession(
                str(file), options, providers=_PROVIDERS, disabled_optimizers=list(without)
            )
        except Exception as error:  # its exceptions share no base class
            raise StageError(f"ONNX Runtime refuses {file.name}", found=str(error)) from error
        if session.get_providers() != _PROVIDERS:
            raise StageError(
                f"ONNX Runtime fell back: asked for {_PROVIDERS}",
                found=str(session.get_providers()),
            )
        return session

    def _options(self, ort: Any, optimize: bool) -> Any:
        options = ort.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3  # errors; a dump warns that it is tied to this CPU
        level = ort.GraphOptimizationLevel
        options.graph_optimization_level = (
            level.ORT_ENABLE_ALL if optimize else level.ORT_DISABLE_ALL
        )
        return options


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
    given = {node.name for node in optimized_graph.nodes(onnx.load(source).graph)}
    for node in optimized_graph.nodes(model.graph):
        if node.name not in given:
            node.name = node.output[0]
    onnx.save(model, dump)


def _names(graph: Any) -> set[str]:
    return {node.name for node in optimized_graph.nodes(graph)}


def _zeros(inputs: Sequence[Any]) -> tuple[dict[str, NDArray[np.generic]], int]:
    """Zeros for each input, one sample where the batch is free, and how many samples they are.

    Nothing where other sides are free too: no size of them would be the right one.
    """
    specs = [_spec(value) for value in inputs]
    if any(None in spec.shape[1:] for spec in specs):
        return {}, 1
    shapes = {spec: (1 if size is None else size for size in spec.shape) for spec in specs}
    feeds = {spec.name: np.zeros(tuple(shape), spec.dtype) for spec, shape in shapes.items()}
    return feeds, (specs[0].shape or (1,))[0] or 1


def _ran(profile: Sequence[Mapping[str, Any]]) -> dict[int, optimized_graph.Ran]:
    """Shapes of the nodes that ran, by the number before their name."""
    ran = {}
    for event in profile:
        shapes = event.get("args", {})
        if event["name"].endswith("_kernel_time") and shapes.get("input_type_shape"):
            ((dtype, taken),) = shapes["input_type_shape"][0].items()
            given = next(iter(shapes["output_type_shape"][0].values()))
            ran[int(event["name"].partition("/")[0])] = optimized_graph.Ran(taken, given, dtype)
    return ran
