"""The sweep of the benchmark: throughput and latency at several batches and numbers of callers.

The benchmark times single calls on a quiet machine; a sweep says what a loaded one can do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator

from kdpipe.stages.base import Observer
from kdpipe.stages.bounds import CONFIDENCE, bounds

if TYPE_CHECKING:
    import numpy as np

    from kdpipe.targets.process import Job
    from kdpipe.targets.sweep import Load, Point
else:
    from kdpipe.targets.lazy import np

_PERCENTILES = {"p50": 0.50, "p95": 0.95}


class Sweep(BaseModel):
    """Which loads to measure: each batch with one caller, and each number of callers at one batch.

    Callers use the batch that is compiled in, else the smallest of `batches`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    batches: tuple[PositiveInt, ...] = Field((1, 8, 32), description="samples in one call")
    concurrency: tuple[PositiveInt, ...] = Field(
        (1, 2, 4), description="callers at once, each with a session of its own"
    )
    processes: int = Field(10, ge=2, description="fresh processes for each load")

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        for name in ("batches", "concurrency"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ValueError(f"{name} names a number twice: {list(values)}")
        if not self.batches and not self.concurrency:
            raise ValueError("there is nothing to sweep; leave `sweep` out, or name `batches`")
        return self

    @property
    def samples(self) -> int:
        """How many samples a call may take."""
        return max(self.batches, default=1)


def sweep(
    job: Job, asked: Sweep, batch: int | None, file: Path, observer: Observer, **effort: Any
) -> dict[str, Any]:
    """Measure `job`, whose compiled batch is `batch`, write raw samples to `file`, and describe it.

    `effort`: of `targets.sweep.sweep_processes`. A batch that the artifact cannot take is listed
    under `refused`, with the reason, and warned of.
    """
    from kdpipe.targets.sweep import points, sweep_processes

    at, refused = points(asked.batches, asked.concurrency, batch)
    for size, why in refused.items():
        observer.warn(f"the sweep leaves out batch {size}: {why}")
    found = sweep_processes(
        job, at, processes=asked.processes, on_progress=observer.progress, **effort
    )
    _save(found, file)
    return {
        "points": [load_facts(point, loads) for point, loads in found.items()],
        "refused": [{"batch": size, "reason": why} for size, why in refused.items()],
    }


def _save(found: Mapping[Point, Sequence[Load]], file: Path) -> None:
    """Latencies of every call, and the seconds that throughput is counted over."""
    arrays: dict[str, Any] = {}
    for point, loads in found.items():
        name = f"batch_{point.batch}/concurrency_{point.concurrency}"
        arrays |= {f"{name}/latency_ms/{n}": load.latency_ms for n, load in enumerate(loads)}
        arrays[f"{name}/seconds"] = np.array([load.seconds for load in loads])
    np.savez_compressed(file, **arrays)


def load_facts(point: Point, loads: Sequence[Load]) -> dict[str, Any]:
    """Throughput as a geometric mean over processes, latency of a call, and what they rest on."""
    from kdpipe.stages.statistics import latency_percentile, mean_bounds

    logs = np.log([load.throughput for load in loads])
    low, high = np.exp(mean_bounds(logs, CONFIDENCE))
    latencies = [load.latency_ms for load in loads]
    percentiles = {
        name: latency_percentile(latencies, share, CONFIDENCE)
        for name, share in _PERCENTILES.items()
    }
    rate = {"mean": float(np.exp(logs.mean())), "low": float(low), "high": float(high)}
    return {
        "batch": point.batch,
        "concurrency": point.concurrency,
        "samples_per_s": rate,
        "latency_ms": {
            name: {"point": each.point, **bounds(each)} for name, each in percentiles.items()
        },
        "calls": sum(map(len, latencies)),
        "processes": len(loads),
        "steady_processes": sum(load.steady for load in loads),
        "disturbed_processes": sum(bool(load.disturbed) for load in loads),
    }
