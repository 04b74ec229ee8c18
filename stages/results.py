"""What a finished chain has to say: the networks, the waterfall, and one row per artifact.

Everything here is derived from stored artifacts; nothing is measured or decided.
`docs/results.md` documents the result as it stands in `results.json`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdpipe.stages import statistics
from kdpipe.stages.base import Artifact
from kdpipe.stages.benchmark import Measured
from kdpipe.stages.compile import Compiled
from kdpipe.stages.dataset import Dataset
from kdpipe.stages.distill.stage import Distilled
from kdpipe.stages.evidence import Evidence, Timing
from kdpipe.stages.export import Exported
from kdpipe.stages.gate.rules import SCORE
from kdpipe.stages.network import Judged, Network, details
from kdpipe.stages.quantize.stage import Quantized

CONFIDENCE = 0.95
"""One-sided confidence of every bound that is shown without a rule of its own."""
PERCENTILES = {"p50": 0.50, "p90": 0.90, "p95": 0.95, "p99": 0.99}

Outputs = Mapping[str, Artifact]
"""Outputs of steps by step id, as far as they exist."""
Scores = NDArray[np.float32]
Groups = NDArray[np.int64] | None


def collect(outputs: Outputs) -> dict[str, Any]:
    """Everything in `results.json` that stages know; absent outputs leave None or an empty list."""
    data, teacher, groups = outputs.get("data"), outputs.get("teacher"), _groups(outputs)
    assert data is None or isinstance(data, Dataset)
    metric = data.task.metric if data else SCORE
    student = _student(outputs)
    return {
        "task": data.task.kind if data else None,
        "metric": metric if data else None,
        "data": _data(data) if data else None,
        "teacher": _network(teacher, data, groups) if isinstance(teacher, Network) else None,
        "student": _network(student, data, groups) if student else None,
        "control": _control(outputs.get("distill"), metric),
        "quantized": _quantized(outputs, student, groups),
        "waterfall": _waterfall(outputs, metric),
        "parity": _parity(outputs.get("export")),
        "artifacts": [_row(measured) for measured in measurements(outputs).values()],
    }


def measurements(outputs: Outputs) -> dict[str, Measured]:
    """The measured artifacts, by artifact id."""
    found = [output for output in outputs.values() if isinstance(output, Measured)]
    return {measured.evidence.artifact: measured for measured in found}


def files(outputs: Outputs) -> dict[str, Path]:
    """Where the compiled artifacts lie in the store, by artifact id."""
    compiled = [output for output in outputs.values() if isinstance(output, Compiled)]
    return {output.id: output.path("artifact") for output in compiled}


def _student(outputs: Outputs) -> Network | None:
    """The network that ships: the distilled one, or the teacher where nothing is distilled."""
    network = outputs.get("distill") or ("student" not in outputs and outputs.get("teacher"))
    return network if isinstance(network, Network) else None


def _groups(outputs: Outputs) -> Groups:
    """Which eval samples belong together, where the data says so."""
    data = outputs.get("data")
    return data.eval.groups if isinstance(data, Dataset) else None


def _data(data: Dataset) -> dict[str, Any]:
    groups = data.eval.groups
    return {
        "source": data.source,
        "classes": len(data.classes),
        "shape": list(data.shape),
        "train": len(data.train),
        "eval": len(data.eval),
        "groups": None if groups is None else len(np.unique(groups)),
        "calibration": len(data.calibration),
    }


def _network(network: Network, data: Dataset | None, groups: Groups) -> dict[str, Any]:
    metric = data.task.metric if data else SCORE
    return {
        "model": network.blueprint.model,
        "arguments": dict(network.blueprint.arguments),
        "substitute": dict(network.blueprint.substitute),
        "parameters": network.facts["parameters"],
        "macs": network.facts["macs"],
        **_score(network.outcome.score, metric, groups),
        "details": details(network.outcome, data) if data else {},
    }


def _score(scores: Scores, metric: str, groups: Groups) -> dict[str, Any]:
    """The headline metric, under its own name, with its bounds and the number of samples."""
    interval = statistics.mean_score(scores, CONFIDENCE, groups)
    return {metric: interval.point, **_bounds(interval), "samples": len(scores)}


def _bounds(interval: statistics.Interval | statistics.Drop) -> dict[str, float | None]:
    """JSON knows no infinity: a bound that does not exist is null."""
    low, high = (float(b) if np.isfinite(b) else None for b in (interval.low, interval.high))
    return {"low": low, "high": high}


def _control(distilled: Artifact | None, metric: str) -> dict[str, Any] | None:
    """What the student's twins without distillation scored, and the mean gain over the seeds."""
    if not isinstance(distilled, Distilled) or "control" not in distilled.pairs[0]:
        return None
    pairs = distilled.pairs
    controls = [pair["control"] for pair in pairs]
    control, gain = (
        _over_seeds(values)
        for values in (controls, [pair["distilled"] - pair["control"] for pair in pairs])
    )
    return {
        "seeds": [int(pair["seed"]) for pair in pairs],
        metric: control.pop("mean"),
        **control,
        "controls": controls,
        "distilled": [pair["distilled"] for pair in pairs],
        "gain": {**gain, "pairs": len(pairs)},
    }


def _over_seeds(values: Sequence[float]) -> dict[str, float | None]:
    """The mean with its bounds; seeds that agree to the sample say nothing about their spread."""
    each = np.array(values)
    low, high = statistics.mean_bounds(each, CONFIDENCE) if np.ptp(each) > 0 else (None, None)
    return {"mean": float(each.mean()), "low": low, "high": high}


def _quantized(outputs: Outputs, student: Network | None, groups: Groups) -> dict[str, Any] | None:
    """The metric before and after quantization, of what ships and of its control."""
    quantized, distilled = outputs.get("quantize"), outputs.get("distill")
    if not isinstance(quantized, Quantized) or student is None:
        return None
    control = distilled.control if isinstance(distilled, Distilled) else None
    return {
        "mode": quantized.facts["mode"],
        "runtime": quantized.runtime,
        "calibration": quantized.facts["calibration"],
        "student": _step(student, quantized, groups),
        "control": _step(control, quantized.control, groups),
        "search": _search(quantized),
    }


def _search(quantized: Quantized) -> dict[str, Any] | None:
    """Which layers went back to float, and why; null without `quantize.max_drop`."""
    facts = quantized.facts
    if "search" not in facts:
        return None
    return {**{name: facts[name] for name in ("max_drop_met", "returned")}, **facts["search"]}


def _step(before: Judged | None, after: Judged | None, groups: Groups) -> dict[str, Any] | None:
    """What one hop did to the metric; null where one end of it is not there."""
    if before is None or after is None:
        return None
    scores = before.outcome.score, after.outcome.score
    drop = statistics.paired_drop(*scores, CONFIDENCE, groups)
    return {
        "fp32": before.outcome.mean,
        "int8": after.outcome.mean,
        "drop": {"mean": drop.drop, **_bounds(drop)},
    }


def _waterfall(outputs: Outputs, metric: str) -> list[dict[str, Any]]:
    """The metric at every hop, and how much each hop loses against the teacher."""
    hops, groups = dict(_hops(outputs)), _groups(outputs)
    teacher = hops.get("teacher")
    if teacher is None:
        return []
    drops = {
        hop: statistics.paired_drop(teacher, scores, CONFIDENCE, groups)
        for hop, scores in hops.items()
    }
    return [
        {
            "hop": hop,
            metric: float(scores.mean()),
            "samples": len(scores),
            "drop": {"mean": drops[hop].drop, **_bounds(drops[hop])},
        }
        for hop, scores in hops.items()
    ]


def _hops(outputs: Outputs) -> list[tuple[str, Scores]]:
    """The scores of every network and file on the way, in order."""
    names = {"distill": "student", "quantize": "quantized"}
    hops: list[tuple[str, Scores]] = []
    for step in ("teacher", "distill", "quantize"):
        output = outputs.get(step)
        if isinstance(output, Network | Quantized):
            hops.append((names.get(step, step), output.outcome.score))
    exported = outputs.get("export")
    if isinstance(exported, Exported):
        hops += [(f"onnx {precision}", o.score) for precision, o in exported.outcomes.items()]
    return hops + [(name, m.evidence.score) for name, m in measurements(outputs).items()]


def _parity(exported: Artifact | None) -> dict[str, Any]:
    return exported.parity if isinstance(exported, Exported) else {}


def _row(measured: Measured) -> dict[str, Any]:
    """One artifact: what it is, how right, how fast, how large, and where that was measured."""
    evidence, artifact = measured.evidence, measured.meta["artifact"]
    weighed = evidence.memory.get("artifact")
    teacher, score, groups = evidence.teacher_score, evidence.score, evidence.groups
    drop = statistics.paired_drop(teacher, score, CONFIDENCE, groups)
    return {
        "id": evidence.artifact,
        "target": evidence.target,
        "precision": evidence.precision,
        "path": artifact["path"],
        "sha256": artifact["sha256"],
        "size_bytes": artifact["size_bytes"],
        **_score(score, evidence.metric, groups),
        "details": measured.meta.get("details", {}),
        "drop": {"mean": drop.drop, **_bounds(drop), "discordance": drop.discordance},
        "agreement": float(evidence.agreement.mean()),
        "latency_ms": _latency(evidence, "artifact"),
        "teacher_latency_ms": _latency(evidence, "teacher"),
        "speedup": _speedup(evidence, "teacher"),
        "speedup_fp32": _speedup(evidence, "fp32"),
        "start_ms": measured.meta["start"]["artifact"],
        "memory_bytes": evidence.values.get("memory_bytes"),
        "memory_processes": len(weighed) if weighed is not None else None,
        "memory_peak_bytes": evidence.values.get("memory_peak_bytes"),
        "int8_fraction": artifact["int8_fraction"],
        "kernels": artifact["kernels"],
        "float_kernels": list(artifact["float_kernels"]),
        **{name: artifact.get(name) for name in ("layers", "unfused", "conversions")},
        "diagnosis": evidence.diagnosis,
        "machine": measured.meta["machine"],
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
        **_bounds(mean),
        "bounds": {name: _bounds(found) for name, found in percentiles.items()},
        "iterations": len(timing.pooled),
        "processes": len(timing.processes),
    }


def _speedup(evidence: Evidence, role: str) -> dict[str, Any] | None:
    reference = evidence.latency.get(role)
    return speedup(reference, evidence.latency["artifact"]) if reference else None


def speedup(reference: Timing, artifact: Timing) -> dict[str, Any]:
    """How many times faster than `reference`, measured in turns with it, in the same runtime."""
    ratio = statistics.latency_ratio(reference.processes, artifact.processes, CONFIDENCE)
    return {"ratio": ratio.point, **_bounds(ratio), "processes": ratio.n}
