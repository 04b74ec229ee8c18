"""How much memory a model takes, weighed in fresh processes; `measure.py` times them."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kdpipe.targets.process import Job, ask

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Memory:
    """Peak resident memory of fresh processes in bytes; the process is the sample here, too.

    `peaks`: (n,) with the artifact. `empties`: (n,) with a model that does nothing, each measured
    right after its neighbour in `peaks`. The `_bytes` are medians. `gpu`: (n,) bytes that the
    processes with the artifact held on the GPU, None where there is none or nobody tells.
    """

    peaks: NDArray[np.float64]
    empties: NDArray[np.float64]
    gpu: NDArray[np.float64] | None = None

    @property
    def models(self) -> NDArray[np.float64]:
        """What the artifact itself takes, (n,); around 0, or below it, for tiny models."""
        each: NDArray[np.float64] = self.peaks - self.empties
        return each

    @property
    def peak_bytes(self) -> int:
        """With the artifact."""
        return int(np.median(self.peaks))

    @property
    def empty_bytes(self) -> int:
        """With a model that does nothing."""
        return int(np.median(self.empties))

    @property
    def model_bytes(self) -> int:
        """What the artifact itself takes."""
        return int(np.median(self.models))


def peak_memory(job: Job, *, processes: int = 1, timeout: float = 600.0) -> Memory:
    """Peak memory of fresh processes that load the artifact and run it a little.

    The empty model is one Identity of the same input shape, compiled by the same target, so that
    Python, numpy and the runtime are in both numbers. Raises StageError when a process fails or
    takes longer than `timeout` seconds.
    """
    with tempfile.TemporaryDirectory() as folder:
        empty = replace(job, artifact=_compile_empty(job, Path(folder)))
        pairs = [
            [ask(each, {"order": "memory"}, timeout) for each in (job, empty)]
            for _ in range(processes)
        ]
    bytes_ = [[answer["peak_bytes"] for answer in pair] for pair in pairs]
    peaks, empties = np.array(bytes_, dtype=np.float64).T
    held = [own["gpu_bytes"] for own, _ in pairs]
    gpu = None if None in held else np.array(held, dtype=np.float64)
    return Memory(peaks, empties, gpu)


def _compile_empty(job: Job, folder: Path) -> Path:
    from onnx import helper, save

    samples = np.load(job.inputs, mmap_mode="r")
    dtype = helper.np_dtype_to_tensor_dtype(samples.dtype)
    shape = ["batch", *samples.shape[1:]]
    with job.target.open(job.artifact) as session:
        shape[0] = session.batch or "batch"
    ends = [helper.make_tensor_value_info(name, dtype, shape) for name in ("input", "output")]
    node = helper.make_node("Identity", ["input"], ["output"])
    graph = helper.make_graph([node], "empty", ends[:1], ends[1:])
    opsets = [helper.make_opsetid("", 17)]
    save(helper.make_model(graph, opset_imports=opsets, ir_version=8), folder / "empty.onnx")
    (folder / "compiled").mkdir()
    return job.target.compile(folder / "empty.onnx", folder / "compiled")
