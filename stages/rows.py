"""One row of `results.json` for each artifact: what it is, how right, how fast and how large.

Everything here is derived from stored samples; nothing is measured or decided.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdpipe.stages import statistics
from kdpipe.stages.bounds import CONFIDENCE, bounds, of_processes
from kdpipe.stages.evidence import Evidence, Timing
from kdpipe.stages.measured import Measured
from kdpipe.stages.quality.summary import artifact_summary

PERCENTILES = {"p50": 0.50, "p90": 0.90, "p95": 0.95, "p99": 0.99}

Scores = NDArray[np.float32]
Groups = NDArray[np.int64] | None
_MEASURED = ("noise_floor", "outliers", "conditions", "around", "sweep", "energy")
"""What the benchmark stage says as it stands; null in what older versions measured."""


def score_of(scores: Scores, metric: str, groups: Groups) -> dict[str, Any]:
    """The headline metric, under its own name, with its bounds and the number of samples."""
    interval = statistics.mean_score(scores, CONFIDENCE, groups)
    return {metric: interval.point, **bounds(interval), "samples": len(scores)}


def row(measured: Measured) -> dict[str, Any]:
    """One artifact: what it is, how right, how fast, how large, and where that was measured."""
    evidence, artifact = measured.evidence, measured.meta["artifact"]
    teacher, score, groups = evidence.teacher_score, evidence.score, evidence.groups
    drop = statistics.paired_drop(teacher, score, CONFIDENCE, groups)
    agreed = statistics.mean_score(evidence.agreement, CONFIDENCE, groups)
    return {
        "id": evidence.artifact,
        "target": evidence.target,
        "precision": evidence.precision,
        "path": artifact["path"],
        "sha256": artifact["sha256"],
        "size_bytes": artifact["size_bytes"],
        **score_of(score, evidence.metric, groups),
        "details": measured.meta.get("details", {}),
        "quality": artifact_summary(measured.quality),
        "drop": {"mean": drop.drop, **bounds(drop), "discordance": drop.discordance},
        "agreement": agreed.point,
        "agreement_bounds": bounds(agreed),
        **_speed(evidence),
        **{name: measured.meta.get(name) for name in _MEASURED},
        "start_ms": measured.meta["start"]["artifact"],
        **_memory(evidence),
        "int8_fraction": artifact["int8_fraction"],
        "kernels": artifact["kernels"],
        "float_kernels": list(artifact["float_kernels"]),
        **{name: artifact.get(name) for name in ("layers", "unfused", "conversions")},
        "diagnosis": evidence.diagnosis,
        "blame": evidence.blame,
        "guilty": measured.guilty,
        "machine": measured.meta["machine"],
    }


def _speed(evidence: Evidence) -> dict[str, Any]:
    return {
        "latency_ms": _latency(evidence, "artifact"),
        "fp32_latency_ms": _latency(evidence, "fp32"),
        "teacher_latency_ms": _latency(evidence, "teacher"),
        "speedup": _speedup(evidence, "teacher"),
        "speedup_fp32": _speedup(evidence, "fp32"),
    }


def _memory(evidence: Evidence) -> dict[str, Any]:
    weighed = {name: of_processes(each) for name, each in evidence.memory.items()}
    return {
        "memory_bytes": evidence.values.get("memory_bytes"),
        "memory_processes": weighed["artifact"]["processes"] if "artifact" in weighed else None,
        "memory_peak_bytes": evidence.values.get("memory_peak_bytes"),
        "memory_of_processes_bytes": weighed,
    }


def _latency(evidence: Evidence, role: str) -> dict[str, Any] | None:
    timing = evidence.latency.get(role)
    return latency(timing) if timing else None


def latency(timing: Timing) -> dict[str, Any]:
    """Percentiles over all iterations in ms, with how many there are in how many processes."""
    mean = statistics.mean_latency(timing.processes, CONFIDENCE)
    percentiles = {
        name: statistics.latency_percentile(timing.processes, q, CONFIDENCE)
        for name, q in PERCENTILES.items()
    }
    return {
        **{name: found.point for name, found in percentiles.items()},
        "mean": mean.point,
        **bounds(mean),
        "bounds": {name: bounds(found) for name, found in percentiles.items()},
        "iterations": len(timing.pooled),
        "processes": len(timing.processes),
    }


def _speedup(evidence: Evidence, role: str) -> dict[str, Any] | None:
    reference = evidence.latency.get(role)
    return speedup(reference, evidence.latency["artifact"]) if reference else None


def speedup(reference: Timing, artifact: Timing) -> dict[str, Any]:
    """How many times faster than `reference`, measured in turns with it, in the same runtime."""
    ratio = statistics.latency_ratio(reference.processes, artifact.processes, CONFIDENCE)
    return {"ratio": ratio.point, **bounds(ratio), "processes": ratio.n}
