"""What a finished chain has to say: the networks, the waterfall, and one row per artifact.

Everything here is derived from stored artifacts; nothing is measured or decided.
`docs/results.md` documents the result as it stands in `results.json`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kdpipe.stages import statistics
from kdpipe.stages.base import Artifact
from kdpipe.stages.bounds import CONFIDENCE, bounds
from kdpipe.stages.compile import Compiled
from kdpipe.stages.dataset import Dataset
from kdpipe.stages.distill.stage import Distilled
from kdpipe.stages.export import Exported
from kdpipe.stages.gate.rules import SCORE
from kdpipe.stages.measured import Measured
from kdpipe.stages.network import Judged, Network, details
from kdpipe.stages.quality.summary import teacher_summary
from kdpipe.stages.quantize.stage import Quantized
from kdpipe.stages.rows import Groups, Scores, row, score_of
from kdpipe.stages.waterfall import Source, previous

Outputs = Mapping[str, Artifact]
"""Outputs of steps by step id, as far as they exist."""

_ALIKE = 1e-9
"""Nearer than this seeds agree to the sample: differences of means are rounded."""


def collect(outputs: Outputs) -> dict[str, Any]:
    """Everything in `results.json` that stages know; absent outputs leave None or an empty list."""
    data, groups = outputs.get("data"), _groups(outputs)
    assert data is None or isinstance(data, Dataset)
    metric = data.task.metric if data else SCORE
    student = _student(outputs)
    return {
        "task": data.task.kind if data else None,
        "metric": metric if data else None,
        "data": _data(data) if data else None,
        "teacher": _teacher(outputs, data, groups),
        "student": _network(student, data, groups) if student else None,
        "control": _control(outputs.get("distill"), metric),
        "quantized": _quantized(outputs, student, groups),
        "waterfall": _waterfall(outputs, metric),
        "parity": _parity(outputs.get("export")),
        "artifacts": [row(measured) for measured in measurements(outputs).values()],
    }


def _teacher(outputs: Outputs, data: Dataset | None, groups: Groups) -> dict[str, Any] | None:
    """What the teacher did; what artifacts are compared with beyond that, the first one knows."""
    teacher = outputs.get("teacher")
    if not isinstance(teacher, Network):
        return None
    first = next(iter(measurements(outputs).values()), None)
    quality = teacher_summary(first.quality) if first else {}
    return {**_network(teacher, data, groups), "quality": quality}


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
        "leaks": dict(data.leaks),
    }


def _network(network: Network, data: Dataset | None, groups: Groups) -> dict[str, Any]:
    metric = data.task.metric if data else SCORE
    return {
        "model": network.blueprint.model,
        "arguments": dict(network.blueprint.arguments),
        "substitute": dict(network.blueprint.substitute),
        "parameters": network.facts["parameters"],
        "macs": network.facts["macs"],
        **score_of(network.outcome.score, metric, groups),
        "details": details(network.outcome, data) if data else {},
    }


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
    low, high = statistics.mean_bounds(each, CONFIDENCE) if np.ptp(each) > _ALIKE else (None, None)
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
    scores = {"fp32": before.outcome.score, "int8": after.outcome.score}
    each = {name: statistics.mean_score(s, CONFIDENCE, groups) for name, s in scores.items()}
    return {
        **{name: score.point for name, score in each.items()},
        "bounds": {name: bounds(score) for name, score in each.items()},
        "samples": len(scores["fp32"]),
        "drop": _drop(scores["fp32"], scores["int8"], groups),
    }


def _waterfall(outputs: Outputs, metric: str) -> list[dict[str, Any]]:
    """The metric at every hop, and how much each hop loses against the teacher."""
    hops, groups = dict(_hops(outputs)), _groups(outputs)
    teacher = hops.get("teacher")
    if teacher is None:
        return []
    sources: dict[str, Source] = {
        m.evidence.artifact: "int8" if m.evidence.precision == "int8" else "fp32"
        for m in measurements(outputs).values()
    }
    rows = []
    for hop, scores in hops.items():
        before = previous(list(hops), hop, sources.get(hop, "fp32"))
        rows.append(
            {
                "hop": hop,
                **score_of(scores, metric, groups),
                "drop": _drop(teacher, scores, groups),
                "previous": before,
                "drop_previous": _drop(hops[before], scores, groups) if before else None,
            }
        )
    return rows


def _drop(before: Scores, after: Scores, groups: Groups) -> dict[str, float | None]:
    drop = statistics.paired_drop(before, after, CONFIDENCE, groups)
    return {"mean": drop.drop, **bounds(drop)}


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
