"""The output of the benchmark stage, and how its raw samples become `Evidence` for the gate."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from kdpipe.stages import culprit
from kdpipe.stages.base import Artifact
from kdpipe.stages.bounds import medians
from kdpipe.stages.dataset import Dataset
from kdpipe.stages.evidence import Evidence
from kdpipe.stages.hygiene.leaks import wording
from kdpipe.stages.network import Judged
from kdpipe.targets.base import Target
from kdpipe.targets.digest import sha256_file
from kdpipe.targets.fingerprint import machine, version

if TYPE_CHECKING:
    from kdpipe.stages.benchmark import BenchmarkInputs
    from kdpipe.stages.latency import Timed
    from kdpipe.stages.quality.scored import Scored
    from kdpipe.targets.energy import CallEnergy
    from kdpipe.targets.memory import Memory

QUALITY = "quality.json"


class Measured(Artifact):
    """The output of the benchmark stage."""

    @cached_property
    def evidence(self) -> Evidence:
        """The raw samples."""
        return Evidence.load(self.folder)

    @cached_property
    def meta(self) -> dict[str, Any]:
        """Path, digest and audit of the artifact, `details` of the task, what is to know of the
        latencies (`latency.Timed.to_dict`), the sweep, the energy, and the machine."""
        meta: dict[str, Any] = json.loads((self.folder / "measured.json").read_text("utf-8"))
        return meta

    @cached_property
    def quality(self) -> dict[str, Any]:
        """What is said of it beside the teacher; empty in what older versions measured."""
        path = self.folder / QUALITY
        return json.loads(path.read_text("utf-8")) if path.exists() else {}

    @cached_property
    def guilty(self) -> dict[str, Any] | None:
        """The hop that lost most of the score, and its layers; None where none certainly did."""
        return culprit.load(self.folder)


@dataclass(frozen=True)
class Samples:
    """All that one run of the benchmark stage measured, by role where there are several."""

    scored: Scored
    timed: Timed
    memory: Mapping[str, Memory]
    energy: Mapping[str, CallEnergy]
    cores: Sequence[int] | None
    blame: str


def evidence_of(inputs: BenchmarkInputs, found: Samples) -> Evidence:
    """What the gate judges by."""
    task, target, teacher = inputs.data.task, inputs.target, inputs.teacher.outcome
    outcome = found.scored.outcome
    memory = {role: each.models for role, each in found.memory.items()}
    memory["peak"] = found.memory["artifact"].peaks
    if (gpu := found.memory["artifact"].gpu) is not None:
        memory["gpu"] = gpu
    return Evidence(
        artifact=target.id,
        target=target.name,
        precision=target.precision or "fp32",
        metric=task.metric,
        score=outcome.score,
        teacher_score=teacher.score,
        agreement=task.agreement(outcome.prediction, teacher.prediction),
        groups=inputs.data.eval.groups,
        references=_references(inputs, found.scored),
        decisions=task.decisions(outcome, teacher, inputs.data.eval.labels),
        classes=inputs.data.classes,
        robustness=found.scored.corrupted,
        eval_sha256=eval_sha256(inputs.data),
        latency=found.timed.latency,
        memory=memory,
        start=found.timed.start,
        energy_mj={r: each.net_mj for r, each in found.energy.items() if each.net_mj.size},
        values=_values(inputs, found.memory),
        machine={**machine(), **runtime_facts(target, found.cores)},
        diagnosis=_diagnosis(inputs),
        blame=found.blame,
        leaked=wording(inputs.data.leaks) if inputs.data.leaks else "",
    )


def runtime_facts(target: Target, cores: Sequence[int] | None) -> dict[str, Any]:
    """What times depend on besides the machine: versions, threads, and cores, if kept on some."""
    versions = {package: version(package) for package in target.packages}
    return {**versions, "threads": target.threads, **({"pinned": list(cores)} if cores else {})}


def energy_facts(energy: CallEnergy) -> dict[str, Any]:
    """Energy of a call as JSON, or only why it is `unavailable`."""
    if energy.unavailable:
        return {"unavailable": energy.unavailable}
    each = {name: getattr(energy, name) for name in ("net_mj", "gross_mj", "idle_w")}
    said = {name: getattr(energy, name) for name in ("calls", "sensor", "what")}
    return medians(each) | said


def eval_sha256(data: Dataset) -> str:
    """Of the names and the labels of the eval samples, in their order."""
    parts = [sha256_file(data.folder / f"eval.{kind}") for kind in ("ids.json", "labels.npy")]
    return hashlib.sha256("".join(parts).encode()).hexdigest()


def _references(inputs: BenchmarkInputs, scored: Scored) -> dict[str, Any]:
    """Scores of the control, quantized where the artifact is, and of the fp32 twin."""
    found = {} if scored.fp32 is None else {"fp32": scored.fp32.score}
    control: Judged | None = inputs.distill.control if inputs.distill else None
    if inputs.target.precision == "int8" and inputs.quantize:
        control = inputs.quantize.control  # a float control would be beaten for want of rounding
    return found | ({"control": control.outcome.score} if control else {})


def _values(inputs: BenchmarkInputs, memory: Mapping[str, Memory]) -> dict[str, float]:
    """Single numbers of artifact and teacher; a number that does not exist is left out."""
    roles, source = inputs.compile.roles, inputs.distill or inputs.teacher
    values = {
        "size_bytes": roles["artifact"]["size_bytes"],
        "teacher_size_bytes": roles["teacher"]["size_bytes"],
        "int8_fraction": roles["artifact"]["int8_fraction"],
        "memory_bytes": memory["artifact"].model_bytes,
        "memory_peak_bytes": memory["artifact"].peak_bytes,
        "teacher_memory_bytes": memory["teacher"].model_bytes if "teacher" in memory else None,
        "parameters": source.facts["parameters"],
        "teacher_parameters": inputs.teacher.facts["parameters"],
        "macs": source.facts["macs"],
        "teacher_macs": inputs.teacher.facts["macs"],
    }
    return {name: float(value) for name, value in values.items() if value is not None}


def _diagnosis(inputs: BenchmarkInputs) -> str:
    if inputs.target.precision != "int8":
        return ""
    return "{culprits}; {remedy}".format_map(inputs.compile.roles["artifact"])
