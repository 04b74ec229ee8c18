"""The fresh process in which one artifact is measured; measure.py starts it and reads its answer.

`python -m kdpipe.targets.worker` takes one order as JSON on stdin and writes one line of JSON to
stdout. It imports the one runtime it measures and no other, and not torch.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kdpipe.targets import target_named
from kdpipe.targets.base import Session, Target
from kdpipe.targets.device.timing import time_calls, warm_up
from kdpipe.targets.errors import DataError, KdpipeError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_SAMPLES = 256
"""Samples that are cycled through; more would measure the memory of the samples."""
_MEMORY_CALLS = 10
"""After which a runtime has allocated what it will."""


def main() -> int:
    """Read an order, do it, answer; errors go to stderr, for measure.py to quote."""
    reply = os.dup(1)
    os.dup2(2, 1)  # a runtime that chatters on stdout must not spoil the answer
    order = json.load(sys.stdin)
    _die_with_parent(order["parent"])
    try:
        answer = _ORDERS[order["order"]](order)
    except KdpipeError as error:
        print(error, file=sys.stderr)
        return 1
    with os.fdopen(reply, "w", encoding="utf-8") as stream:
        stream.write(json.dumps(answer) + "\n")
    return 0


def _time(order: dict[str, Any]) -> dict[str, Any]:
    """Cold start, warm-up, then latencies; loading includes importing the runtime."""
    target = _target(order)
    started = time.perf_counter()
    with target.open(Path(order["artifact"])) as session:
        load = time.perf_counter() - started
        feeds = _feeds(session, Path(order["inputs"]))
        first = time_calls(session.run, feeds, 1, 0.0)
        warmup = warm_up(session.run, feeds, order["warmup_seconds"])
        latency = time_calls(session.run, feeds, order["iterations"], order["seconds"])
    return {
        "latency_ms": latency.tolist(),
        "load_ms": load * 1e3,
        "first_ms": float(first[0]),
        "steady": warmup.steady,
    }


def _memory(order: dict[str, Any]) -> dict[str, Any]:
    """Load, run a little, and read how much memory this process ever held."""
    with _target(order).open(Path(order["artifact"])) as session:
        feeds = _feeds(session, Path(order["inputs"]))
        time_calls(session.run, feeds, _MEMORY_CALLS, 0.0)
    return {"peak_bytes": _peak_bytes()}


_ORDERS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {"time": _time, "memory": _memory}


def _target(order: dict[str, Any]) -> Target:
    return target_named(order["target"]["name"]).model_validate(order["target"])


def _feeds(session: Session, inputs: Path) -> list[dict[str, NDArray[np.generic]]]:
    """Samples of the compiled batch size, or one at a time where the batch is free."""
    if len(session.inputs) != 1:
        names = ", ".join(spec.name for spec in session.inputs)
        raise DataError("only models with one input can be measured", found=names)
    samples = np.load(inputs, mmap_mode="r")
    batch = session.batch or 1
    count = min(_SAMPLES, len(samples)) // batch
    if count == 0:
        raise DataError(f"a batch needs {batch} samples", found=f"{len(samples)} in {inputs}")
    name = session.inputs[0].name
    return [
        {name: np.array(samples[start : start + batch])} for start in range(0, count * batch, batch)
    ]


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


def _die_with_parent(parent: int) -> None:
    """Ask Linux to kill this process when its parent dies, be it by SIGKILL."""
    if sys.platform == "linux":
        set_parent_death_signal = 1  # PR_SET_PDEATHSIG, prctl(2)
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
    if os.getppid() != parent:  # it died before it was asked
        sys.exit("the process that asked for this measurement is gone")


if __name__ == "__main__":
    sys.exit(main())
