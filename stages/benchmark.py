"""The benchmark stage, once per target: accuracy, latency and memory of the very file that ships.

It measures and keeps the raw samples; what they prove is decided in gate/.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
)

from kdpipe.stages import culprit
from kdpipe.stages.base import Artifact, Stage, Work
from kdpipe.stages.compile import Compiled
from kdpipe.stages.dataset import Dataset
from kdpipe.stages.distill.stage import Distilled
from kdpipe.stages.export import Exported
from kdpipe.stages.latency import Timed, around, save_around, time_roles
from kdpipe.stages.measured import QUALITY, Samples, energy_facts, evidence_of, runtime_facts
from kdpipe.stages.measured import Measured as Measured
from kdpipe.stages.network import Network, details
from kdpipe.stages.quality.robustness import Robustness
from kdpipe.stages.quantize.stage import Quantized
from kdpipe.stages.sweep import Sweep, sweep
from kdpipe.targets.base import Target
from kdpipe.targets.errors import UsageError
from kdpipe.targets.fingerprint import fingerprint

if TYPE_CHECKING:
    import numpy as np

    from kdpipe.stages.quality.scored import Scored
    from kdpipe.targets.energy import CallEnergy
    from kdpipe.targets.memory import Memory
    from kdpipe.targets.process import Job
else:
    from kdpipe.targets.lazy import np


_WEIGHED = ("artifact", "teacher")
"""Roles whose memory and energy are measured."""


@dataclass(frozen=True)
class BenchmarkInputs:
    """What measuring reads."""

    data: Dataset
    teacher: Network
    distill: Distilled | None
    quantize: Quantized | None
    export: Exported
    compile: Compiled
    target: Target


class Benchmark(Stage):
    """How to measure: latency in fresh processes, each model interleaved with the others.

    A process loads the artifact, warms up until it is steady (the medians of the last two windows
    of a quarter of `warmup_seconds` differ by 5 % at most; given up after five times as long, and
    told), then runs until `iterations` calls are made and `seconds` have passed.
    """

    name: ClassVar[str] = "benchmark"
    version: ClassVar[int] = 4
    machine: ClassVar[bool] = True
    Inputs: ClassVar[type] = BenchmarkInputs
    Output: ClassVar[type[Artifact]] = Measured

    processes: int = Field(
        20, ge=2, description="fresh processes per model; the sample size, 10 at least if it counts"
    )
    iterations: PositiveInt = Field(100, description="timed runs per process, at least")
    seconds: NonNegativeFloat = Field(0.2, description="timed duration per process, at least")
    warmup_seconds: NonNegativeFloat = Field(0.1, description="untimed duration, at least")
    noise_floor: bool = Field(
        True, description="time the artifact twice, which tells what no difference looks like"
    )
    cores: tuple[NonNegativeInt, ...] | None = Field(
        None, min_length=1, description="cores that measured processes are kept on; null: any"
    )
    sweep: Sweep | None = Field(None, description="batches and numbers of callers to measure, too")
    memory_processes: PositiveInt = Field(3, description="fresh processes that weigh each model")
    energy_processes: NonNegativeInt = Field(
        3, description="fresh processes for the energy of each model where there is a sensor; 0: no"
    )
    energy_seconds: PositiveFloat = Field(2.0, description="of calls while a sensor is read")
    robustness: Robustness | None = Field(
        None,
        description="score corrupted pictures too, of artifact and teacher; null: not, as it takes"
        " as long as judging 15 x 512 samples with both",
    )
    samples: int = Field(
        64, ge=1, le=256, description="real eval samples that the timed runs cycle over"
    )
    seed: int = Field(0, ge=0, description="of the order in which processes run")

    @field_validator("cores")
    @classmethod
    def _each_once(cls, cores: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if cores and len(set(cores)) < len(cores):
            raise ValueError(f"a core is named twice: {list(cores)}")
        return cores

    def check(self) -> None:
        """Raise UsageError for cores that this process may not run on."""
        if self.cores is None:
            return
        usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
        absent = [str(core) for core in self.cores if core not in usable]
        if absent:
            there = ", ".join(map(str, sorted(usable))) or "none that it can choose"
            raise UsageError(
                f"benchmark.cores: processes cannot be kept on {', '.join(absent)} here",
                found=f"this process may use {there}",
                fix="name some of these, or leave `cores` out",
            )

    def run(self, inputs: BenchmarkInputs, work: Work) -> None:
        """Score the artifact on the whole eval split, then time and weigh it in fresh processes."""
        scored, blame = self._score(inputs, work)
        jobs = self._jobs(inputs, work)
        comparable = {role: job for role, job in jobs.items() if _comparable(inputs, role, work)}
        timed = self._time(inputs, comparable, work)
        energy = self._power(comparable)
        found = Samples(scored, timed, self._weigh(comparable), energy, self.cores, blame)
        evidence_of(inputs, found).save(work.out)
        save_around(timed.runs["artifact"], work.out / "around.npz")
        meta = {
            "artifact": inputs.compile.roles["artifact"],
            "details": details(scored.outcome, inputs.data),
            **timed.to_dict(),
            "sweep": self._sweep(inputs, jobs["artifact"], work),
            "energy": {role: energy_facts(each) for role, each in energy.items()},
            "machine": {**fingerprint(), **runtime_facts(inputs.target, self.cores)},
        }
        (work.out / "measured.json").write_text(json.dumps(meta, indent=1))

    def _score(self, inputs: BenchmarkInputs, work: Work) -> tuple[Scored, str]:
        """What the file answers on the eval split, and which hop lost most on the way to it."""
        from kdpipe.stages.quality.report import report
        from kdpipe.stages.quality.scored import score

        scored = score(
            inputs.target, inputs.compile, inputs.data, self.robustness, work.observer.progress
        )
        outcome = scored.outcome
        work.observer.fact("score", value=outcome.mean, n=len(outcome.score))
        said = report(inputs.data, outcome, inputs.teacher.outcome, scored.corrupted)
        (work.out / QUALITY).write_text(json.dumps(said))
        guilty = culprit.culprit(inputs, outcome.score)
        guilty.save(work.out)
        return scored, guilty.blame

    def _jobs(self, inputs: BenchmarkInputs, work: Work) -> dict[str, Job]:
        """What can be measured, by role."""
        from kdpipe.targets.process import Job

        feed = work.scratch / "inputs.npy"
        np.save(feed, inputs.data.example(self._enough(inputs)))
        twin = inputs.target.model_copy(update={"precision": "fp32"})
        return {
            role: Job(
                inputs.target if role == "artifact" else twin,
                inputs.compile.path(role),
                feed,
                cores=self.cores,
            )
            for role in inputs.compile.roles
        }

    def _enough(self, inputs: BenchmarkInputs) -> int:
        """Samples for a call of each role, also of one with a large batch compiled in."""
        return max(self.samples, *(each["batch"] or 1 for each in inputs.compile.roles.values()))

    def _time(self, inputs: BenchmarkInputs, jobs: Mapping[str, Job], work: Work) -> Timed:
        """All roles, and the artifact once more."""
        if self.cores is not None and len(self.cores) < inputs.target.threads:
            work.observer.warn(
                f"{inputs.target.threads} threads share {len(self.cores)} core(s): see"
                " benchmark.cores"
            )
        beside = around(inputs.data, self._enough(inputs), work.scratch)
        compared = {**jobs, "artifact": replace(jobs["artifact"], around=beside)}
        if self.noise_floor:
            compared["again"] = jobs["artifact"]
        effort = {"processes": self.processes, "seed": self.seed, **self._effort}
        return time_roles(compared, self.cores, work.observer, **effort)

    def _weigh(self, jobs: Mapping[str, Job]) -> dict[str, Memory]:
        from kdpipe.targets.memory import peak_memory

        return {
            role: peak_memory(jobs[role], processes=self.memory_processes)
            for role in _WEIGHED
            if role in jobs
        }

    def _power(self, jobs: Mapping[str, Job]) -> dict[str, CallEnergy]:
        """Energy of artifact and teacher, in turns; where there is no sensor, why."""
        from kdpipe.targets.energy import call_energy

        if not self.energy_processes:
            return {}
        return call_energy(
            {role: jobs[role] for role in _WEIGHED if role in jobs},
            processes=self.energy_processes,
            seconds=self.energy_seconds,
            seed=self.seed,
        )

    def _sweep(self, inputs: BenchmarkInputs, job: Job, work: Work) -> dict[str, Any] | None:
        if self.sweep is None:
            return None
        batch = inputs.compile.roles["artifact"]["batch"]
        feed = work.scratch / "sweep.npy"
        np.save(feed, inputs.data.example(max(self._enough(inputs), self.sweep.samples)))
        return sweep(
            replace(job, inputs=feed),
            self.sweep,
            batch,
            work.out / "sweep.npz",
            work.observer,
            seed=self.seed,
            **self._effort,
        )

    @property
    def _effort(self) -> dict[str, float]:
        """How long one process works."""
        return {
            "iterations": self.iterations,
            "seconds": self.seconds,
            "warmup_seconds": self.warmup_seconds,
        }


def _comparable(inputs: BenchmarkInputs, role: str, work: Work) -> bool:
    """Whether a call of `role` does the work of a call of the artifact: as many samples."""
    batch, own = (inputs.compile.roles[name]["batch"] or 1 for name in (role, "artifact"))
    if batch != own:
        work.observer.warn(
            f"the {role} takes {batch} samples a call and the artifact {own}: it is neither timed"
            " nor weighed, and there is no speedup over it"
        )
    return bool(batch == own)
