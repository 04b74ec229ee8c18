"""Times one artifact under load: batches of several sizes, and several callers at once.

Fresh processes in turns as in `measure.py`; here a loaded machine is what is asked about.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from kdpipe.targets.disturbances import disturbances
from kdpipe.targets.measure import interleaved
from kdpipe.targets.process import Job, Progress, ask

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, order=True)
class Point:
    """`batch` samples in a call, `concurrency` callers at once, each with a session of its own."""

    batch: int
    concurrency: int

    def __str__(self) -> str:
        return f"batch {self.batch}, {self.concurrency} at once"


@dataclass(frozen=True)
class Load:
    """What one fresh process measured at one point.

    `latency_ms`: (n,) of each call of all callers. `seconds`: in which these calls were made.
    `steady`: whether every session's warm-up settled. `position` and `conditions` as in
    `measure.Process`.
    """

    point: Point
    latency_ms: NDArray[np.float64]
    seconds: float
    steady: bool
    position: int
    conditions: Mapping[str, float] = field(default_factory=dict)

    @property
    def throughput(self) -> float:
        """Samples per second, of all callers together."""
        return self.point.batch * len(self.latency_ms) / self.seconds

    @property
    def disturbed(self) -> tuple[str, ...]:
        """What was out of the ordinary meanwhile, a sentence each; it counts all the same."""
        return disturbances(self.conditions)


def points(
    batches: Sequence[int], concurrency: Sequence[int], fixed: int | None
) -> tuple[tuple[Point, ...], dict[int, str]]:
    """What to measure: each batch with one caller, and each number of callers at one batch.

    `fixed`: the batch that is compiled into the artifact, None where it is free. Callers take the
    fixed batch, else the smallest of `batches`. Also returned: why a batch cannot be measured, by
    batch. Example: ([1, 8], [1, 2], None) -> (1, 1), (8, 1), (1, 2)
    """
    refused = {
        batch: f"the batch of {fixed} is compiled into the artifact"
        for batch in batches
        if fixed not in (None, batch)
    }
    alone = [Point(batch, 1) for batch in batches if batch not in refused]
    together = [Point(fixed or min(batches, default=1), callers) for callers in concurrency]
    return tuple(dict.fromkeys([*alone, *together])), refused


def sweep_processes(
    job: Job,
    at: Sequence[Point],
    *,
    processes: int = 10,
    iterations: int = 30,
    seconds: float = 0.5,
    warmup_seconds: float = 0.2,
    seed: int = 0,
    timeout: float = 600.0,
    on_progress: Progress = lambda done, total, note: None,
) -> dict[Point, tuple[Load, ...]]:
    """Measure `job` at every point in `processes` fresh processes, one at a time, in turns.

    Each caller makes its next call when the last one is answered, until all have made `iterations`
    calls and `seconds` have passed (`device.timing.time_together`). `job.inputs` must hold a batch.
    Raises StageError when a process fails or takes longer than `timeout` seconds.
    """
    effort = {"iterations": iterations, "seconds": seconds, "warmup_seconds": warmup_seconds}
    found: dict[Point, list[Load]] = {point: [] for point in at}
    order = interleaved(list(at), processes, seed)
    for position, point in enumerate(order):
        how = {"order": "load", "batch": point.batch, "concurrency": point.concurrency}
        load = _load(ask(job, {**how, **effort}, timeout), point, position)
        found[point].append(load)
        on_progress(position + 1, len(order), f"{point}: {load.throughput:.3g} samples/s")
    return {point: tuple(loads) for point, loads in found.items()}


def _load(answer: Mapping[str, Any], point: Point, position: int) -> Load:
    return Load(
        point=point,
        latency_ms=np.array(answer["latency_ms"], dtype=np.float64),
        seconds=answer["seconds"],
        steady=answer["steady"],
        position=position,
        conditions=answer["conditions"],
    )
