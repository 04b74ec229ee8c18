"""Latencies of the compiled roles, timed in turns, and what is to know about them.

Times and describes; what the times prove is decided in `gate/`, by `statistics/latency.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdpipe.stages.base import Observer
from kdpipe.stages.bounds import CONFIDENCE as CONFIDENCE
from kdpipe.stages.bounds import bounds, medians, of_processes
from kdpipe.stages.dataset import Dataset
from kdpipe.stages.evidence import Timing
from kdpipe.targets.fingerprint import fingerprint

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from kdpipe.targets.measure import Around, Job, Process
else:
    from kdpipe.targets.lazy import np

ENOUGH = 10
"""Processes below which a few of them decide how wide an interval is (trusting a t interval with
less freedom triples its width)."""
_START = ("load_ms", "first_ms")
_BESIDE = ("preprocess_ms", "decision_ms")
_OF_A_PROCESS = ("mhz_before", "mhz_after", "major_faults")
"""Facts that say nothing over many processes and the pauses between them."""


@dataclass(frozen=True)
class Timed:
    """The processes of each role; `overall`: what happened on the machine from first to last."""

    runs: Mapping[str, tuple[Process, ...]]
    overall: Mapping[str, float]

    @property
    def latency(self) -> dict[str, Timing]:
        """Milliseconds of each call of each process, by role."""
        return {role: Timing(tuple(p.latency_ms for p in runs)) for role, runs in self.runs.items()}

    @property
    def start(self) -> dict[str, dict[str, NDArray[np.float64]]]:
        """{role: {"load_ms": (n,), "first_ms": (n,)}}: how each process began."""
        return {
            role: {name: np.array([getattr(run, name) for run in runs]) for name in _START}
            for role, runs in self.runs.items()
        }

    def to_dict(self) -> dict[str, Any]:
        """What is to know beside the raw samples, as JSON; bounds that do not exist are null."""
        return {
            "start": {role: _start(runs) for role, runs in self.runs.items()},
            "around": _around(self.runs["artifact"]),
            "noise_floor": _noise_floor(self.latency),
            "outliers": {role: _outliers(t) for role, t in self.latency.items()},
            "conditions": self.conditions(),
        }

    def conditions(self) -> dict[str, Any]:
        """What happened meanwhile: the facts, sentences about them, and which processes it hit."""
        from kdpipe.targets.disturbances import circumstances, clock_spread, disturbances

        each = [run.conditions for runs in self.runs.values() for run in runs]
        sentences = (*disturbances(self.overall), clock_spread(each))
        return {
            "facts": dict(self.overall),
            "disturbances": [sentence for sentence in sentences if sentence],
            "circumstances": list(circumstances(fingerprint())),
            "disturbed": {
                role: {str(n): list(run.disturbed) for n, run in enumerate(runs) if run.disturbed}
                for role, runs in self.runs.items()
            },
        }


def time_roles(
    jobs: Mapping[str, Job], cores: Sequence[int] | None, observer: Observer, **effort: Any
) -> Timed:
    """Time `jobs` as `measure.time_processes` does with `effort`, and warn of what disturbed it."""
    from kdpipe.targets.conditions import between, snapshot
    from kdpipe.targets.measure import time_processes

    before = snapshot(cores)
    runs = time_processes(jobs, **effort, on_progress=observer.progress)
    facts = between(before, snapshot(cores))
    timed = Timed(runs, {name: n for name, n in facts.items() if name not in _OF_A_PROCESS})
    _tell(timed, observer)
    if effort.get("warmup_seconds"):
        _tell_restless(timed, observer)
    return timed


def around(data: Dataset, count: int, folder: Path) -> Around:
    """The preprocessing and the decision, to be timed on the first `count` raw eval images."""
    from kdpipe.targets.measure import Around

    pixels = folder / "pixels.npy"
    np.save(pixels, data.eval.images[np.arange(count) % len(data.eval)])
    return Around(pixels, data.preprocess.to_dict(), data.task.decision)


def _tell(timed: Timed, observer: Observer) -> None:
    few = min(len(runs) for runs in timed.runs.values())
    if few < ENOUGH:
        observer.warn(
            f"{few} processes for each model: intervals are wide; take {ENOUGH} at least, better 20"
        )
    found = timed.conditions()
    hit = [sentences for role in found["disturbed"].values() for sentences in role.values()]
    if hit or found["disturbances"]:
        said = "; ".join(found["disturbances"]) or f"for one, {'; '.join(hit[0])}"
        total = sum(len(runs) for runs in timed.runs.values())
        kept = f"{len(hit)} of {total} processes were disturbed, and are kept: " if hit else ""
        observer.warn(f"{kept}{said}")
    if floor := _noise_floor(timed.latency):
        observer.fact("noise floor", value=floor["floor"], n=floor["processes"])


def _tell_restless(timed: Timed, observer: Observer) -> None:
    every = [run.steady for runs in timed.runs.values() for run in runs]
    if restless := every.count(False):
        observer.warn(
            f"{restless} of {len(every)} processes did not settle in 5 times"
            " benchmark.warmup_seconds, and are kept"
        )


def _start(runs: Sequence[Process]) -> dict[str, Any]:
    """How fresh processes began: median milliseconds to load and for the first call."""
    each = {name: np.array([getattr(run, name) for run in runs]) for name in _START}
    return {
        **medians(each),
        "steady_processes": sum(run.steady for run in runs),
    }


def _around(runs: Sequence[Process]) -> dict[str, Any]:
    """Milliseconds of a call of the preprocessing and of the decision: medians over processes."""
    found = {}
    for name in _BESIDE:
        each = [ms for run in runs if (ms := getattr(run, name)) is not None]
        if each:
            medians = of_processes(np.array([np.median(ms) for ms in each]))
            found[name] = {**medians, "calls": sum(map(len, each))}
    return found


def _noise_floor(latency: Mapping[str, Timing]) -> dict[str, Any] | None:
    """What the artifact differs from itself by; None where it was not timed twice."""
    from kdpipe.stages.statistics.latency import noise_floor

    if "again" not in latency:
        return None
    found = noise_floor(latency["artifact"].processes, latency["again"].processes, CONFIDENCE)
    floor = found.floor if np.isfinite(found.floor) else None
    ratio = {"ratio": found.ratio.point, **bounds(found.ratio)}
    return {"floor": floor, **ratio, "processes": found.ratio.n}


def _outliers(timing: Timing) -> dict[str, Any]:
    from kdpipe.stages.statistics.outliers import latency_outliers

    found = latency_outliers(timing.processes)
    return {"processes": list(found.processes), "iterations": found.iterations, "of": found.of}


def save_around(runs: Sequence[Process], file: Path) -> None:
    """Write the raw milliseconds of what is around the model, an array for each process."""
    np.savez_compressed(
        file,
        **{
            f"{name}/{n}": ms
            for name in _BESIDE
            for n, run in enumerate(runs)
            if (ms := getattr(run, name)) is not None
        },
    )
