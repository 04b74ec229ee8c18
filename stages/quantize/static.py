"""A float ONNX file -> an int8 one by ONNX Runtime's own static quantization.

For networks that the graph engine (`engine.py`) cannot see into: ONNX black boxes, and modules that
torch.export cannot trace. Which tensors are rounded is ONNX Runtime's choice, and nothing can be
trained; the two flavours and the calibration samples are those of the graph engine:

    trt   int8 with zero point 0 everywhere, and float biases
    cpu   uint8 activations with zero points of their own, int8 weights, int32 biases
"""

from __future__ import annotations

import io
import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, numpy_helper, version_converter
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantType
from onnxruntime.quantization import quantize_static as ort_quantize
from onnxruntime.quantization.shape_inference import quant_pre_process

from kdpipe.stages.onnx_export import write
from kdpipe.stages.quantize.settings import LeastDivergence, Moving, Quantile
from kdpipe.targets.errors import StageError, UsageError, listing
from kdpipe.targets.zeropoints import unfit_for_tensorrt

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from kdpipe.stages.dataset import Split
    from kdpipe.stages.quantize.emit import Flavour

OLDEST = 13
"""The first opset whose DequantizeLinear has a scale for each channel."""
_BATCH = 64
_QUANTIZERS = ("QuantizeLinear", "DequantizeLinear")


Ranges = Moving | Quantile | LeastDivergence
"""The ways to choose a range that ONNX Runtime has too."""

_FLAVOURS: Mapping[str, tuple[QuantType, dict[str, Any]]] = {
    "cpu": (QuantType.QUInt8, {}),
    "trt": (QuantType.QInt8, {"ActivationSymmetric": True, "QuantizeBias": False}),
}


def quantize_static(
    given: Path, out: Path, flavour: Flavour, samples: Split, ranges: Ranges
) -> None:
    """Write `given`, a float ONNX file with one image input, to `out` in int8.

    `samples` are read 64 at a time, or as many as a fixed batch of the file takes; an average over
    batches smaller than 64 would clip, and is the range of all samples instead. Entropy is that of
    ONNX Runtime, from 128 bins; it has no stride. The opset stays, or becomes 13 where it is older.
    The same file and samples give the same bytes.

    Raises StageError when the file is quantized already, when it has nothing to quantize, when a
    range is not finite, and when ONNX Runtime cannot quantize it; UsageError for a momentum that
    such a fixed batch has no use for.
    """
    model = onnx.load(given)
    _check_given(model, given)
    activations, extra = _FLAVOURS[flavour]
    reader = _Reader(model, samples)
    method, options = _method(ranges, reader.size)
    with _quiet(given), tempfile.TemporaryDirectory() as folder:
        files = (Path(folder, name) for name in ("modern.onnx", "prepared.onnx", "quantized.onnx"))
        modern, prepared, quantized = files
        onnx.save(_modern(model), modern)
        # Symbolic shape inference fails on networks with skips and a free batch dimension.
        quant_pre_process(modern, prepared, skip_symbolic_shape=True)
        ort_quantize(
            prepared,
            quantized,
            reader,
            per_channel=True,
            activation_type=activations,
            weight_type=QuantType.QInt8,
            calibrate_method=method,
            # Batch by batch: otherwise the activations of all samples are in memory at once.
            extra_options={"CalibStridedMinMax": 1, **options, **extra},
        )
        result = onnx.load(quantized)
    _keep_used_domains(result)
    _check_result(result, given)
    write(result, out)
    if flavour == "trt" and (problems := unfit_for_tensorrt(out)):
        raise StageError(f"{out.name} is not fit for TensorRT", found=listing(problems))


def _method(ranges: Ranges, batch: int) -> tuple[CalibrationMethod, dict[str, Any]]:
    """ONNX Runtime's name of the way to choose a range, and its options."""
    if isinstance(ranges, Quantile):
        # Of what is left to 100 %, it cuts one half at each end; `percent` counts at one end.
        return CalibrationMethod.Percentile, {"CalibPercentile": 2 * ranges.percent - 100}
    if isinstance(ranges, LeastDivergence):
        return CalibrationMethod.Entropy, {}
    if batch < _BATCH:
        if ranges != Moving():
            raise UsageError(
                "quantize.ranges.momentum does nothing: too few samples at a time to average over",
                found=f"a file with a fixed batch of {batch}; averages take {_BATCH}",
                fix="remove `momentum`, or export the file with a free batch dimension",
            )
        return CalibrationMethod.MinMax, {}
    average = {"CalibMovingAverage": True, "CalibMovingAverageConstant": ranges.momentum}
    return CalibrationMethod.MinMax, average


class _Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    """The calibration samples, in batches that are read when they are asked for."""

    def __init__(self, model: ModelProto, samples: Split) -> None:
        self._samples = samples
        self._input = _input(model)
        batch = self._input.type.tensor_type.shape.dim[0].dim_value
        self._fixed, self.size = bool(batch), int(batch or _BATCH)
        self.set_range(0, len(self))

    def __len__(self) -> int:
        return -(-len(self._samples) // self.size)

    def set_range(self, start_index: int, end_index: int) -> None:
        """Read these batches next, as ONNX Runtime asks for."""
        self._batches = iter(range(start_index, end_index))

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        """The next batch by the input's name, None behind the last."""
        number = next(self._batches, None)
        if number is None:
            return None
        rows = np.arange(number * self.size, (number + 1) * self.size)
        # A fixed batch is filled with the last sample, which moves no minimum and no maximum.
        rows = np.minimum(rows, len(self._samples) - 1) if self._fixed else rows
        x = self._samples.inputs(rows[rows < len(self._samples)])
        return {self._input.name: x}


def _input(model: ModelProto) -> onnx.ValueInfoProto:
    """The input that is fed; old files list their weights as inputs too."""
    weights = {tensor.name for tensor in model.graph.initializer}
    fed: onnx.ValueInfoProto
    (fed,) = [value for value in model.graph.input if value.name not in weights]
    return fed


def _modern(model: ModelProto) -> ModelProto:
    """The same network, its weights constants and no inputs, in an opset that can hold int8."""
    fed = _input(model)
    del model.graph.input[:]
    model.graph.input.append(fed)
    model.ir_version = max(model.ir_version, 4)  # before, weights had to be inputs
    if _opset(model) >= OLDEST:
        return model
    return version_converter.convert_version(model, OLDEST)


def _opset(model: ModelProto) -> int:
    return int(next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx")))


@contextmanager
def _quiet(given: Path) -> Iterator[None]:
    """Keep what onnxruntime prints and logs from the user, and raise what it raises as one type."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Exception as error:
        # The converter, the runtime and the quantizer each raise types of their own.
        raise StageError(
            f"ONNX Runtime cannot quantize {given.name}",
            found=f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}",
            fix="check its weights and the calibration images for NaN or infinity, export it with "
            "opset 13 or newer, or set `quantize: null`",
        ) from error
    finally:
        logging.disable(disabled)


def _keep_used_domains(model: ModelProto) -> None:
    """Forget the operator sets that onnxruntime declares and no node uses; TensorRT asks for it."""
    used = {node.domain for node in model.graph.node} | {""}
    kept = [entry for entry in model.opset_import if entry.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(kept)


def _check_given(model: ModelProto, given: Path) -> None:
    found = [
        node.name or node.output[0] for node in model.graph.node if node.op_type in _QUANTIZERS
    ]
    if found:
        raise StageError(
            f"{given.name} is quantized already", found=listing(found), fix="set `quantize: null`"
        )


def _check_result(model: ModelProto, given: Path) -> None:
    """Raise StageError when no weight became int8, or a scale is no number to divide by."""
    values = {tensor.name: tensor for tensor in model.graph.initializer}
    quantizers = [node for node in model.graph.node if node.op_type in _QUANTIZERS]
    weights = [node for node in quantizers if _is_int8(values.get(node.input[0]))]
    if not weights:
        raise StageError(
            f"{given.name} has no layer that ONNX Runtime can quantize",
            found="no convolution or matrix product with a constant weight",
            fix="set `quantize: null` to ship it in float",
        )
    for node in quantizers:
        scale = numpy_helper.to_array(values[node.input[1]])
        if not np.isfinite(scale).all():
            raise StageError(
                f"cannot calibrate {node.input[0]} of {given.name}: it is not finite",
                fix="check the file's weights and the calibration images for NaN or infinity",
            )


def _is_int8(tensor: TensorProto | None) -> bool:
    return tensor is not None and tensor.data_type == TensorProto.INT8
