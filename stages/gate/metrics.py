"""What may be asked of each metric, in one table; `rules.py` checks the rules by it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from kdpipe.stages.tasks import TASKS

Unit = Literal["fraction", "%", "ms", "bytes", "mJ", "parameters", "MACs", "x"]
Reference = Literal["teacher", "control", "fp32", "baseline"]
Limits = Mapping[str, tuple[Reference, ...]]
"""{limit: what it may compare with}; nothing for a limit on the value itself."""


@dataclass(frozen=True)
class Metric:
    """What may be asked of a metric: its unit, and the limits that make sense for it.

    `provable`: False where a share of samples is estimated, so that a limit of exactly 1 can
    never be shown to hold, however many samples there are.
    """

    unit: Unit
    limits: Limits
    provable: bool = True


SCORE = "score"
"""Stands for the headline metric of whatever task the config has."""
SCORES: tuple[str, ...] = (SCORE, *(task.metric for task in TASKS))
PERCENTILES: Mapping[str, float] = {
    "latency_p50_ms": 0.50,
    "latency_p90_ms": 0.90,
    "latency_p95_ms": 0.95,
    "latency_p99_ms": 0.99,
}
TIMES: tuple[str, ...] = ("speedup", "latency_mean_ms", *PERCENTILES)
"""Metrics that say how fast an artifact is once it runs."""

_ANY: tuple[Reference, ...] = ("teacher", "control", "fp32", "baseline")
_FAST: tuple[Reference, ...] = ("teacher", "fp32", "baseline")
_LARGE: tuple[Reference, ...] = ("teacher", "baseline")
_TEACHER: tuple[Reference, ...] = ("teacher",)


def _score() -> Metric:
    compared = ("max-degradation", "percent-max-degradation", "min-improvement")
    return Metric("fraction", {"min": (), **dict.fromkeys(compared, _ANY)}, provable=False)


def _time(against: tuple[Reference, ...]) -> Metric:
    compared = ("percent-max-degradation", "min-speedup")
    return Metric("ms", {"max": (), **dict.fromkeys(compared, against)})


def _size(unit: Unit) -> Metric:
    return Metric(unit, {"max": (), "percent-max-degradation": _LARGE})


METRICS: Mapping[str, Metric] = {
    **dict.fromkeys(SCORES, _score()),
    "agreement": Metric("fraction", {"min": (), "max-degradation": _TEACHER}, provable=False),
    "worst_class_drop": Metric("fraction", {"max": _TEACHER}, provable=False),
    "worst_group_drop": Metric("fraction", {"max": _TEACHER}, provable=False),
    "macro_f1": Metric("fraction", {"min": (), "max-degradation": _TEACHER}, provable=False),
    "ece": Metric("fraction", {"max": ()}, provable=False),
    "robustness": Metric("fraction", {"min": (), "max-degradation": _TEACHER}, provable=False),
    "speedup": Metric("x", {"min": _FAST}),
    "latency_mean_ms": _time(_FAST),
    # A baseline keeps the mean latency of each process, from which no percentile can be told.
    **dict.fromkeys(PERCENTILES, _time(("teacher", "fp32"))),
    "load_ms": Metric("ms", {"max": ()}),
    "first_ms": Metric("ms", {"max": ()}),
    "size_bytes": _size("bytes"),
    "memory_bytes": _size("bytes"),
    "gpu_memory_bytes": Metric("bytes", {"max": ()}),
    "energy_mj": _size("mJ"),
    "parameters": _size("parameters"),
    "macs": _size("MACs"),
    "compression": Metric("x", {"min": _TEACHER}),
    "int8_fraction": Metric("fraction", {"min": ()}),
}


def unit_of(metric: str, limit: str) -> Unit:
    """The unit in which a metric is judged by a limit.

    Example: unit_of("latency_mean_ms", "min-speedup") -> "x"
    """
    special: Mapping[str, Unit] = {"percent-max-degradation": "%", "min-speedup": "x"}
    return special.get(limit, METRICS[metric].unit)
