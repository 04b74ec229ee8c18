"""An ONNX file as a teacher: logits in, nothing else known; every other model can be trained."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from kdpipe.stages.models import onnx_file
from kdpipe.targets.errors import DataError, UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_DTYPE = "tensor(float)"
"""What every model of the chain is fed; a float16 input would be cast differently by each part."""


class BlackBox(nn.Module):
    """Runs an ONNX file on the CPU through ONNX Runtime; has no parameters and no gradients.

    `output` names the output that holds the logits where there are several. Raises DataError for
    a file that is not valid, UsageError for one that does not fit.
    """

    taps: ClassVar[Mapping[str, str]] = {}
    """None: feature distillation needs a network whose inside torch can see."""

    def __init__(self, path: Path, output: str = "") -> None:
        super().__init__()
        onnx_file.check(path)
        self._session = _session(path)
        self._input = _only_input(self._session, path)
        self._output = _logits(self._session, output, path)
        _refuse_probabilities(path, self._output)
        batch = self._input.shape[0]
        self._batch = batch if isinstance(batch, int) else None

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) on any device -> float32 logits (N, classes) on the same device."""
        fed = x.detach().cpu().contiguous().numpy().astype(np.float32, copy=False)
        size = self._batch or max(1, len(fed))
        pieces = [self._run(fed[start : start + size]) for start in range(0, len(fed), size)]
        return torch.from_numpy(np.concatenate(pieces).astype(np.float32)).to(x.device)

    def _run(self, x: NDArray[Any]) -> NDArray[Any]:
        """One call; a fixed batch is filled by repeating the last sample, whose copies are cut."""
        count = len(x)
        if self._batch and count < self._batch:
            x = np.concatenate([x, np.repeat(x[-1:], self._batch - count, axis=0)])
        (logits,) = self._session.run([self._output], {self._input.name: x})
        return np.asarray(logits)[:count]


def _session(path: Path) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    try:
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no public base class
        raise DataError(
            "ONNX Runtime cannot load the model",
            found=f"{path}: {error}",
            fix="export it with operators that ONNX Runtime knows (opset 20 or below)",
        ) from error


def _only_input(session: Any, path: Path) -> Any:
    inputs = session.get_inputs()
    if len(inputs) != 1 or inputs[0].type != _DTYPE or len(inputs[0].shape) != 4:
        raise UsageError(
            "the ONNX teacher must take one float32 input (N, C, H, W)",
            found=f"{path}: " + ", ".join(f"{i.name} {i.type} {i.shape}" for i in inputs),
            fix="export the network alone, without pre-processing",
        )
    return inputs[0]


def _logits(session: Any, wanted: str, path: Path) -> str:
    names = [str(output.name) for output in session.get_outputs()]
    if wanted in names or (len(names) == 1 and not wanted):
        return wanted or names[0]
    raise UsageError(
        f"the ONNX teacher has no output '{wanted}'" if wanted else "which output is the logits?",
        found=f"{path}: {', '.join(names)}",
        fix=f"arguments: {{output: {names[0]}}}",
    )


def _refuse_probabilities(path: Path, output: str) -> None:
    """Distillation softens logits by a temperature; softened probabilities mean something else."""
    graph = onnx.load(path, load_external_data=False).graph
    if any(node.op_type == "Softmax" and output in node.output for node in graph.node):
        raise UsageError(
            "the ONNX teacher's output is probabilities, not logits",
            found=f"{path}: output '{output}' comes from a Softmax",
            fix="export the network without its Softmax",
        )
