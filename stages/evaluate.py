"""Judging a model on a split, the same way whether it is a network, an ONNX file or an engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from kdpipe.stages.dataset import Split
from kdpipe.stages.tasks import Outcome, Task
from kdpipe.targets.base import Session

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import nn
else:
    from kdpipe.targets.lazy import np

_SAMPLES, _PIXELS = 256, 1 << 20
"""Judged together at most; of dense networks, which keep maps of every size, so many pixels."""

MOST_PROBABILITIES = 64 << 20
"""Samples times classes that are kept: 128 MiB, and twice that while batches are joined."""

Forward = Callable[["NDArray[np.float32]"], "NDArray[np.float32]"]
"""Model inputs (n, C, H, W) -> outputs (n, ...)."""


def evaluate(forward: Forward, split: Split, task: Task, *, probabilities: bool = False) -> Outcome:
    """Run `forward` over the whole split in order; only one batch is in memory at a time.

    `probabilities`: keep those of every class, 2 bytes each, where they are no more than
    MOST_PROBABILITIES.
    """
    size = together(task, split.preprocess.height, split.preprocess.width)
    parts = []
    for x, y in split.batches(size):
        part = task.outcome(forward(x), y)
        keep = probabilities and _affordable(part, len(split))
        parts.append(part if keep else replace(part, probability=None))
    return Outcome.joined(parts)


def _affordable(part: Outcome, samples: int) -> bool:
    found = part.probability
    return found is not None and samples * found.shape[1] <= MOST_PROBABILITIES


def together(task: Task, height: int, width: int) -> int:
    """How many images of this size a network of the task may see at once when it is judged."""
    return max(1, min(_SAMPLES, _PIXELS // (height * width))) if task.dense else _SAMPLES


def in_pieces(forward: Forward, size: int) -> Forward:
    """The same, of `size` samples at a time."""

    def pieces(x: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.concatenate([forward(x[i : i + size]) for i in range(0, len(x), size)])

    return pieces


def network_forward(network: nn.Module) -> Forward:
    """A PyTorch network in eval mode, fp32 (no autocast), where its parameters are."""
    import torch

    network.eval()
    first = next(network.parameters(), None)
    device = first.device if first is not None else torch.device("cpu")

    def forward(x: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.no_grad():
            tensor = torch.from_numpy(x).to(device, memory_format=torch.channels_last)
            output: NDArray[np.float32] = network(tensor).float().cpu().numpy()
        return output

    return forward


def session_forward(session: Session) -> Forward:
    """An artifact in its runtime; a fixed batch is fed in pieces, the last one padded."""

    def forward(x: NDArray[np.float32]) -> NDArray[np.float32]:
        size = session.batch or len(x)
        pieces = [_run(session, x[start : start + size], size) for start in range(0, len(x), size)]
        return np.concatenate(pieces)

    return forward


def _run(session: Session, x: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    padding = size - len(x) if session.batch else 0
    fed = np.concatenate([x, np.repeat(x[-1:], padding, axis=0)]) if padding else x
    outputs = session.run({session.inputs[0].name: np.ascontiguousarray(fed)})
    return np.asarray(outputs[session.outputs[0].name], dtype=np.float32)[: len(x)]
