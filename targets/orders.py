"""What a fresh process can be asked to measure; worker.py reads the order and sends the answer."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kdpipe.targets import target_named
from kdpipe.targets.base import Session, Target
from kdpipe.targets.conditions import between, snapshot
from kdpipe.targets.device.decision import DECISIONS
from kdpipe.targets.device.preprocess import Preprocess
from kdpipe.targets.device.timing import time_calls, time_together, warm_up
from kdpipe.targets.errors import DataError
from kdpipe.targets.power.inference import energy_of
from kdpipe.targets.power.nvml import gpu_memory

if TYPE_CHECKING:
    from numpy.typing import NDArray

Order = Mapping[str, Any]
Answer = dict[str, Any]

_SAMPLES = 256
"""Samples that are cycled through; more would measure the memory of the samples."""
_MEMORY_CALLS = 10
"""After which a runtime has allocated what it will."""
_AGAIN_CALLS = 5
"""Untimed, after the state of the machine was read: reading it takes the caches of the model."""
_AROUND_CALLS = 30
"""Timed calls of what is done before and after the model, in each process."""
_OUTPUTS = 4
"""Outputs that decisions are timed on; those of a dense network may be large."""


def time_artifact(order: Order) -> Answer:
    """Cold start, warm-up, then latencies, then what is around; loading imports the runtime."""
    target = _target(order)
    started = time.perf_counter()
    with target.open(Path(order["artifact"])) as session:
        load = time.perf_counter() - started
        feeds = _feeds(session, Path(order["inputs"]), session.batch or 1)
        first = time_calls(session.run, feeds, 1, 0.0)
        warmup = warm_up(session.run, feeds, order["warmup_seconds"])
        before = snapshot()
        time_calls(session.run, feeds, _AGAIN_CALLS, 0.0)
        latency = time_calls(session.run, feeds, order["iterations"], order["seconds"])
        conditions = between(before, snapshot())
        around = _around(order["around"], session, feeds) if order["around"] else {}
    return {
        "latency_ms": latency.tolist(),
        "load_ms": load * 1e3,
        "first_ms": float(first[0]),
        "steady": warmup.steady,
        "conditions": conditions,
        "cores": _cores(),
        **around,
    }


def load_artifact(order: Order) -> Answer:
    """Latencies and the rate of calls, of `concurrency` callers with a session of their own."""
    target, artifact = _target(order), Path(order["artifact"])
    with ExitStack() as stack:
        sessions = [stack.enter_context(target.open(artifact)) for _ in range(order["concurrency"])]
        feeds = _feeds(sessions[0], Path(order["inputs"]), order["batch"])
        runs = [session.run for session in sessions]
        steady = False not in [warm_up(run, feeds, order["warmup_seconds"]).steady for run in runs]
        time_together(runs, feeds, _AGAIN_CALLS, order["warmup_seconds"])
        before = snapshot()
        time_together(runs, feeds, _AGAIN_CALLS, 0.0)
        found = time_together(runs, feeds, order["iterations"], order["seconds"])
        conditions = between(before, snapshot())
    return {
        "latency_ms": found.latency_ms.tolist(),
        "seconds": found.seconds,
        "steady": steady,
        "conditions": conditions,
    }


def weigh_artifact(order: Order) -> Answer:
    """Load, run a little, and read how much memory this process ever held."""
    target = _target(order)
    with target.open(Path(order["artifact"])) as session:
        feeds = _feeds(session, Path(order["inputs"]), session.batch or 1)
        time_calls(session.run, feeds, _MEMORY_CALLS, 0.0)
        on_gpu = gpu_memory() if target.device == "GPU" else None
    return {"peak_bytes": _peak_bytes(), "gpu_bytes": on_gpu}


def power_artifact(order: Order) -> Answer:
    """Energy of one call, while the device does nothing else; or why it cannot be known."""
    target = _target(order)
    with target.open(Path(order["artifact"])) as session:
        feeds = _feeds(session, Path(order["inputs"]), session.batch or 1)
        time_calls(session.run, feeds, _MEMORY_CALLS, 0.0)
        effort = (order["seconds"], order["idle_seconds"])
        return energy_of(target.device, session.run, feeds, *effort)


ORDERS: Mapping[str, Callable[[Order], Answer]] = {
    "time": time_artifact,
    "load": load_artifact,
    "memory": weigh_artifact,
    "energy": power_artifact,
}


def _target(order: Order) -> Target:
    return target_named(order["target"]["name"]).model_validate(order["target"])


def _feeds(session: Session, inputs: Path, batch: int) -> list[dict[str, NDArray[np.generic]]]:
    """The samples, `batch` at a time; the rest that does not fill a batch is left out."""
    if len(session.inputs) != 1:
        names = ", ".join(spec.name for spec in session.inputs)
        raise DataError("only models with one input can be measured", found=names)
    name = session.inputs[0].name
    return [{name: piece} for piece in _batches(inputs, batch)]


def _batches(file: Path, batch: int) -> list[NDArray[np.generic]]:
    samples = np.load(file, mmap_mode="r")
    count = min(max(_SAMPLES, batch), len(samples)) // batch
    if count == 0:
        raise DataError(f"a batch needs {batch} samples", found=f"{len(samples)} in {file}")
    return [np.array(samples[start : start + batch]) for start in range(0, count * batch, batch)]


def _around(around: Order, session: Session, feeds: Sequence[Any]) -> Answer:
    """Milliseconds of each call of the preprocessing and of the decision, a batch at a time."""
    prepare = Preprocess.from_dict(around["preprocess"])
    decide = DECISIONS[around["decision"]]
    pixels = _batches(Path(around["pixels"]), session.batch or 1)
    output = session.outputs[0].name
    outputs = [session.run(feed)[output] for feed in feeds[:_OUTPUTS]]
    found = {}
    for name, run, given in (("preprocess", prepare, pixels), ("decision", decide, outputs)):
        time_calls(run, given, _AGAIN_CALLS, 0.0)
        found[f"{name}_ms"] = time_calls(run, given, _AROUND_CALLS, 0.0).tolist()
    return found


def _cores() -> list[int]:
    """Where this process may run; empty where the system does not tell."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def _peak_bytes() -> int:
    """Peak resident memory: VmHWM, which starts anew with a program, as ru_maxrss does not."""
    try:
        status = Path("/proc/self/status").read_text("ascii")
    except OSError:
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024
