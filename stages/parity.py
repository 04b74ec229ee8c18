"""How far an ONNX file is from what it was made from, on real samples; `export.py` judges it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kdpipe.stages.dataset import Dataset
from kdpipe.stages.evaluate import Forward, in_pieces

if TYPE_CHECKING:
    import numpy as np
else:
    from kdpipe.targets.lazy import np

STEPS = 255
"""Steps of an 8-bit grid over the range of a network's outputs."""


def differences(
    reference: Forward, file: Forward, data: Dataset, samples: int, size: int
) -> dict[str, Any]:
    """Both on the first `samples` of eval, or on all where there are fewer, `size` at a time.

    {"max_difference", "mean_difference"} of outputs, the "output_range" of the reference, the
    share of decisions in which the two agree ("agreement"), and how many "samples" there were.
    """
    samples = min(samples, len(data.eval))
    x, rows = data.example(samples), np.arange(samples)
    expected, found = (in_pieces(run, size)(x) for run in (reference, file))
    difference, labels, task = np.abs(expected - found), data.eval.labels[rows], data.task
    decisions = [task.outcome(outputs, labels).prediction for outputs in (expected, found)]
    return {
        "max_difference": float(difference.max()),
        "mean_difference": float(difference.mean()),
        "output_range": max(float(np.ptp(expected)), 1e-12),
        "agreement": float(task.agreement(*decisions).mean()),
        "samples": samples,
    }


def in_steps(numbers: dict[str, Any]) -> dict[str, float]:
    """{"max_steps", "mean_steps"}: differences in steps of 1/255 of the output range."""
    step = numbers["output_range"] / STEPS
    return {f"{kind}_steps": numbers[f"{kind}_difference"] / step for kind in ("max", "mean")}
