"""A torch module -> one ONNX file by running it once, for modules that torch.export cannot trace.

Unlike `onnx_export.py`, which sees the whole program, this records the operators of one run. Where
the module's Python code branches on the values of a tensor, the file keeps the branch that the
example took; only a comparison on other samples can tell whether that matters.
"""

from __future__ import annotations

import copy
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from kdpipe.stages.layer_names import name_layers
from kdpipe.stages.onnx_export import OPSET, check_size, write
from kdpipe.stages.quantize.trace import silence
from kdpipe.targets.errors import StageError, listing

if TYPE_CHECKING:
    from onnx import ModelProto


def export_torchscript(module: nn.Module, example: Tensor, path: Path) -> tuple[str, ...]:
    """Write `module` in eval mode as `export_onnx` does; returns where values were frozen.

    `example`: a batch of at least two samples. Each place is `file.py:line`, where Python code read
    a tensor's value: a branch, a loop, or a number that is now a constant. Raises StageError when
    the module cannot be written, or the file takes no other batch size than the example's.
    """
    check_size(module)
    example = example.cpu()
    proto, places = _record(copy.deepcopy(module).cpu().eval(), example)
    _check_batches(proto, example)
    name_layers(proto, module)
    write(proto, path)
    return places


def frozen(network: str, places: Sequence[str]) -> str:
    """The warning that belongs to every file written by `export_torchscript`.

    Example: frozen("models/net.py:Net", ["net.py:15"]) -> "net.py:Net is exported ...: net.py:15"
    """
    where = f": {listing(places)}" if places else ""
    return (
        f"{Path(network).name} is exported by running it on two samples; what depends on values, "
        f"such as a Python branch, stays as it was for these{where}"
    )


def _record(module: nn.Module, example: Tensor) -> tuple[ModelProto, tuple[str, ...]]:
    import onnx

    batch = {0: "batch"}
    try:
        with (
            tempfile.TemporaryDirectory() as folder,
            silence(),
            warnings.catch_warnings(record=True) as heard,
        ):
            warnings.simplefilter("always")
            file = Path(folder, "model.onnx")
            torch.onnx.export(
                module,
                (example,),
                file,
                dynamo=False,
                opset_version=OPSET,
                input_names=["input"],
                output_names=["output"],
                dynamic_axes={"input": batch, "output": batch},
            )
            proto = onnx.load(file)
    except Exception as error:
        # It raises whatever the module's own code raises, and several types of its own.
        reason = str(error).strip().partition("\n")[0]
        raise StageError(
            f"torch's TorchScript exporter cannot write {type(module).__name__}",
            found=f"{type(error).__name__}: {reason}",
            fix="write this part of the model with other operators",
        ) from error
    tracer = torch.jit.TracerWarning  # type: ignore[attr-defined]  # not in its __all__
    heard = [w for w in heard if issubclass(w.category, tracer)]
    places = dict.fromkeys(f"{Path(w.filename).name}:{w.lineno}" for w in heard)
    return proto, tuple(places)


def _check_batches(proto: ModelProto, example: Tensor) -> None:
    """Raise StageError unless the file takes one sample, and one more than the example has."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4  # a size that does not fit is raised below
    session = ort.InferenceSession(proto.SerializeToString(), options)
    for batch in (example[:1], torch.cat([example, example[:1]])):
        try:
            (output,) = session.run(None, {"input": batch.numpy()})
            found = f"{len(batch)} samples give an output of shape {output.shape}"
            fits = len(output) == len(batch)
        except Exception as error:  # onnxruntime's exceptions share no public base class
            found, fits = f"{len(batch)} samples: {str(error).partition(chr(10))[0]}", False
        if not fits:
            raise StageError(
                f"the exported file works for a batch of {len(example)} only",
                found=found,
                fix="in forward(), do not make a Python number of the batch size: x.flatten(1) or "
                "x.reshape(x.shape[0], -1), not x.reshape(2, -1)",
            )
