"""A model under load: throughput of several batches and several callers, for `kdpipe bench`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from kdpipe.stages import statistics
from kdpipe.stages.latency import CONFIDENCE
from kdpipe.targets.measure import Job
from kdpipe.targets.sweep import Load, points, sweep_processes

SHOWN = {"p50": 0.50, "p95": 0.95}


def sweep(
    job: Job,
    batches: Sequence[int],
    concurrency: Sequence[int],
    *,
    processes: int,
    iterations: int,
    seconds: float,
) -> list[dict[str, Any]]:
    """One row for each batch and each number of callers, in fresh processes, in turns.

    A batch that the artifact cannot take is a row with its `reason` and without numbers.
    """
    with job.target.open(job.artifact) as session:
        at, refused = points(batches, concurrency, session.batch)
    effort: dict[str, Any] = {"iterations": iterations, "seconds": seconds}
    found = sweep_processes(job, at, processes=processes, **effort)
    rows = [_row(loads) for loads in found.values()]
    return rows + [{"batch": batch, "reason": reason} for batch, reason in refused.items()]


def render(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Example: batch 8, 1 at once: 9,120 samples/s (9,010 to 9,230), p50 0.877 ms (...), ..."""
    for row in rows:
        if "reason" in row:
            yield f"batch {row['batch']}: not measured, {row['reason']}"
            continue
        through = row["samples_per_second"]
        latencies = ", ".join(
            f"{name} {row[name]['ms']:.3f} ms ({_bounds(row[name], '.3f')})" for name in SHOWN
        )
        yield (
            f"batch {row['batch']}, {row['concurrency']} at once: "
            f"{through['median']:,.0f} samples/s ({_bounds(through, ',.0f')}), "
            f"{latencies} a call, {row['processes']} processes, {row['calls']} calls"
        )


def _row(loads: Sequence[Load]) -> dict[str, Any]:
    each = np.array([load.throughput for load in loads])
    through = statistics.central(each, CONFIDENCE)
    calls = [load.latency_ms for load in loads]
    latencies = {
        name: statistics.latency_percentile(calls, share, CONFIDENCE)
        for name, share in SHOWN.items()
    }
    return {
        "batch": loads[0].point.batch,
        "concurrency": loads[0].point.concurrency,
        "samples_per_second": {"median": through.point, **_finite(through)},
        **{name: {"ms": found.point, **_finite(found)} for name, found in latencies.items()},
        "processes": len(loads),
        "calls": sum(len(each) for each in calls),
        "disturbed_processes": sum(bool(load.disturbed) for load in loads),
    }


def _finite(found: statistics.Interval) -> dict[str, float | None]:
    """Bounds; null where there is none, or only one of them."""
    low, high = float(found.low), float(found.high)
    known = math.isfinite(low) and math.isfinite(high)
    return {"low": low if known else None, "high": high if known else None}


def _bounds(found: Mapping[str, Any], form: str) -> str:
    if found["low"] is None:
        return "too few for bounds"
    return f"{format(found['low'], form)} to {format(found['high'], form)}"
