"""`engine: onnxruntime`: a network that the graph engine cannot see into, quantized as ONNX file.

The network is written as float ONNX, by torch.export where that is possible, and `static.py` makes
the int8 files of both flavours from it. There is no torch module that computes what they do.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, get_args

import torch

from kdpipe.stages.base import Observer, Work
from kdpipe.stages.calibration import require_usable
from kdpipe.stages.evaluate import evaluate, session_forward
from kdpipe.stages.onnx_export import adopt, export_onnx
from kdpipe.stages.quantize.emit import Flavour
from kdpipe.stages.quantize.static import Ranges, quantize_static
from kdpipe.stages.quantize.trace import Untraceable
from kdpipe.stages.torchscript import export_torchscript, frozen
from kdpipe.targets.onnxruntime import OnnxRuntime

if TYPE_CHECKING:
    from kdpipe.stages.dataset import Dataset
    from kdpipe.stages.network import Network
    from kdpipe.stages.tasks import Outcome


def quantize_files(source: Network, data: Dataset, ranges: Ranges, work: Work) -> Outcome:
    """Write `int8.<flavour>.onnx` into `work.out`, and judge the one for CPUs in ONNX Runtime.

    Raises DataError when the calibration samples are no use, StageError when the network cannot be
    written as ONNX or ONNX Runtime cannot quantize it.
    """
    require_usable(data)
    work.scratch.mkdir(exist_ok=True)
    given = work.scratch / "float.onnx"
    _write_float(source, data, given, work.observer)
    flavours = get_args(Flavour)
    for done, flavour in enumerate(flavours, start=1):
        out = work.out / f"int8.{flavour}.onnx"
        quantize_static(given, out, flavour, data.calibration, ranges)
        work.observer.progress(done, len(flavours), out.name)
    with OnnxRuntime(threads=2).open(work.out / "int8.cpu.onnx") as session:
        return evaluate(session_forward(session), data.eval, data.task)


def _write_float(source: Network, data: Dataset, path: Path, observer: Observer) -> None:
    if source.onnx:
        adopt(source.onnx, str(source.blueprint.arguments.get("output", "")), path)
        return
    network, example = source.load(), torch.from_numpy(data.example(2))
    try:
        export_onnx(network, example, path)
    except Untraceable:
        places = export_torchscript(network, example, path)
        observer.warn(frozen(source.blueprint.model, places))
