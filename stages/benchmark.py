"""The benchmark stage, once per target: accuracy, latency and memory of the very file that ships.

It measures and keeps the raw samples; what they prove is decided in gate/.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, NonNegativeFloat, PositiveInt

from kdpipe.stages.base import Artifact, Stage, Work
from kdpipe.stages.compile import Compiled
from kdpipe.stages.dataset import Dataset
from kdpipe.stages.distill.stage import Distilled
from kdpipe.stages.evaluate import evaluate, session_forward
from kdpipe.stages.evidence import Evidence, Timing
from kdpipe.stages.network import Network, details
from kdpipe.stages.tasks import Outcome
from kdpipe.targets.base import Target
from kdpipe.targets.fingerprint import fingerprint

if TYPE_CHECKING:
    import numpy as np

    from kdpipe.targets.measure import Job, Memory, Process
else:
    from kdpipe.targets.lazy import np


@dataclass(frozen=True)
class BenchmarkInputs:
    """What measuring reads."""

    data: Dataset
    teacher: Network
    distill: Distilled | None
    compile: Compiled
    target: Target


class Measured(Artifact):
    """The output of the benchmark stage."""

    @cached_property
    def evidence(self) -> Evidence:
        """The raw samples."""
        return Evidence.load(self.folder)

    @cached_property
    def meta(self) -> dict[str, Any]:
        """Path, digest and audit of the artifact, `details` of the task, cold start, machine."""
        meta: dict[str, Any] = json.loads((self.folder / "measured.json").read_text("utf-8"))
        return meta


class Benchmark(Stage):
    """How to measure: latency in fresh processes, each model interleaved with the others."""

    name: ClassVar[str] = "benchmark"
    version: ClassVar[int] = 3
    machine: ClassVar[bool] = True
    Inputs: ClassVar[type] = BenchmarkInputs
    Output: ClassVar[type[Artifact]] = Measured

    processes: PositiveInt = Field(10, description="fresh processes per model; the sample size")
    iterations: PositiveInt = Field(100, description="timed runs per process, at least")
    seconds: NonNegativeFloat = Field(0.2, description="timed duration per process, at least")
    warmup_seconds: NonNegativeFloat = Field(0.1, description="untimed duration, at least")
    memory_processes: PositiveInt = Field(3, description="fresh processes that weigh each model")
    samples: int = Field(
        64, ge=1, le=256, description="real eval samples that the timed runs cycle over"
    )
    seed: int = Field(0, ge=0, description="of the order in which processes run")

    def run(self, inputs: BenchmarkInputs, work: Work) -> None:
        """Score the artifact on the whole eval split, then time and weigh it in fresh processes."""
        from kdpipe.targets.measure import peak_memory, time_processes

        outcome = _score(inputs)
        work.observer.fact("score", value=outcome.mean, n=len(outcome.score))
        feed = work.scratch / "inputs.npy"
        np.save(feed, inputs.data.example(self.samples))
        jobs = {role: _job(inputs, role, feed) for role in inputs.compile.roles}
        comparable = {role: job for role, job in jobs.items() if _comparable(inputs, role, work)}
        timed = time_processes(
            comparable,
            processes=self.processes,
            iterations=self.iterations,
            seconds=self.seconds,
            warmup_seconds=self.warmup_seconds,
            seed=self.seed,
            on_progress=work.observer.progress,
        )
        memory = {
            role: peak_memory(jobs[role], processes=self.memory_processes)
            for role in ("artifact", "teacher")
        }
        latency = {
            role: Timing(tuple(process.latency_ms for process in runs))
            for role, runs in timed.items()
        }
        _evidence(inputs, outcome, latency, memory).save(work.out)
        meta = {
            "artifact": inputs.compile.roles["artifact"],
            "details": details(outcome, inputs.data),
            "start": {role: _start(runs) for role, runs in timed.items()},
            "machine": fingerprint(),
        }
        (work.out / "measured.json").write_text(json.dumps(meta, indent=1))


def _score(inputs: BenchmarkInputs) -> Outcome:
    """What the compiled file itself answers on each eval sample, run as it is when timed."""
    with inputs.target.open(inputs.compile.path("artifact")) as session:
        return evaluate(session_forward(session), inputs.data.eval, inputs.data.task)


def _job(inputs: BenchmarkInputs, role: str, feed: Path) -> Job:
    from kdpipe.targets.measure import Job

    twin = inputs.target.model_copy(update={"precision": "fp32"})
    target = inputs.target if role == "artifact" else twin
    return Job(target, inputs.compile.path(role), feed)


def _comparable(inputs: BenchmarkInputs, role: str, work: Work) -> bool:
    """Whether a call of `role` does the work of a call of the artifact: as many samples."""
    batch, own = (inputs.compile.roles[name]["batch"] or 1 for name in (role, "artifact"))
    if batch != own:
        work.observer.warn(
            f"the {role} takes {batch} samples a call and the artifact {own}: no speedup is given"
        )
    return bool(batch == own)


def _values(inputs: BenchmarkInputs, memory: Mapping[str, Memory]) -> dict[str, float]:
    """Single numbers of artifact and teacher; a number that does not exist is left out."""
    roles, source = inputs.compile.roles, inputs.distill or inputs.teacher
    values = {
        "size_bytes": roles["artifact"]["size_bytes"],
        "teacher_size_bytes": roles["teacher"]["size_bytes"],
        "int8_fraction": roles["artifact"]["int8_fraction"],
        "memory_bytes": memory["artifact"].model_bytes,
        "memory_peak_bytes": memory["artifact"].peak_bytes,
        "teacher_memory_bytes": memory["teacher"].model_bytes,
        "parameters": source.facts["parameters"],
        "teacher_parameters": inputs.teacher.facts["parameters"],
    }
    return {name: float(value) for name, value in values.items() if value is not None}


def _evidence(
    inputs: BenchmarkInputs,
    outcome: Outcome,
    latency: Mapping[str, Timing],
    memory: Mapping[str, Memory],
) -> Evidence:
    task, target, teacher = inputs.data.task, inputs.target, inputs.teacher.outcome
    return Evidence(
        artifact=target.id,
        target=target.name,
        precision=target.precision or "fp32",
        metric=task.metric,
        score=outcome.score,
        teacher_score=teacher.score,
        agreement=task.agreement(outcome.prediction, teacher.prediction),
        groups=inputs.data.eval.groups,
        latency=latency,
        values=_values(inputs, memory),
        memory={role: found.models for role, found in memory.items()},
        diagnosis="{culprits}; {remedy}".format_map(inputs.compile.roles["artifact"])
        if target.precision == "int8"
        else "",
    )


def _start(runs: Sequence[Process]) -> dict[str, Any]:
    """How fresh processes began: median milliseconds to load and for the first call."""
    return {
        "load_ms": float(np.median([run.load_ms for run in runs])),
        "first_ms": float(np.median([run.first_ms for run in runs])),
        "processes": len(runs),
        "steady_processes": sum(run.steady for run in runs),
    }
