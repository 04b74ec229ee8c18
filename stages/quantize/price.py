"""What float layers cost in latency: the files with and without them, and fp32, in turns."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kdpipe.stages import statistics
from kdpipe.stages.base import Work
from kdpipe.stages.bounds import bounds
from kdpipe.targets.fingerprint import fingerprint
from kdpipe.targets.measure import Job, time_processes
from kdpipe.targets.onnxruntime import OnnxRuntime

if TYPE_CHECKING:
    from numpy.typing import NDArray

_CONFIDENCE = 0.95
_PROCESSES, _ITERATIONS, _SECONDS = 5, 30, 0.1
"""Fewer than the benchmark takes, whose numbers count: here a price is shown, and not judged."""


def price(files: Mapping[str, Path], samples: NDArray[np.float32], work: Work) -> dict[str, Any]:
    """Latency of the `fp32`, `int8` and `mixed` files in ONNX Runtime, in fresh processes in turns.

    `samples` (n, C, H, W) are run one at a time. `mean_ms` is a geometric mean; a `speedup` says
    how many times faster a file is than the other, with one-sided 95 % bounds over processes, None
    where these cannot give one.
    """
    feed = work.scratch / "inputs.npy"
    np.save(feed, samples)
    timed = time_processes(
        {name: Job(OnnxRuntime(), file, feed) for name, file in files.items()},
        processes=_PROCESSES,
        iterations=_ITERATIONS,
        seconds=_SECONDS,
        warmup_seconds=_SECONDS,
        on_progress=work.observer.progress,
    )
    ms = {name: [run.latency_ms for run in runs] for name, runs in timed.items()}
    return {
        "runtime": "ONNX Runtime",
        "processes": _PROCESSES,
        "mean_ms": {
            name: math.exp(np.mean([np.log(one).mean() for one in runs]))
            for name, runs in ms.items()
        },
        "speedup_fp32": {name: _speedup(ms["fp32"], ms[name]) for name in ("int8", "mixed")},
        "speedup_int8": {"mixed": _speedup(ms["int8"], ms["mixed"])},
        "machine": fingerprint(),
    }


def _speedup(
    reference: list[NDArray[np.float64]], runs: list[NDArray[np.float64]]
) -> dict[str, float | None]:
    found = statistics.latency_ratio(reference, runs, _CONFIDENCE)
    return {"ratio": found.point, **bounds(found)}
