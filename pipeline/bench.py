"""Measuring any model: what `kdpipe bench` does, without a config or a store.

A model is an ONNX file, which is compiled for a target, or a file that its runtime opens as it is:
OpenVINO's `.xml`, or an artifact of a run. It is measured as the benchmark stage measures.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kdpipe.pipeline.inputs import noise, require_fitting
from kdpipe.pipeline.loads import sweep
from kdpipe.pipeline.subject import Subject, holder, subjects
from kdpipe.stages.bounds import CONFIDENCE, of_processes
from kdpipe.stages.evidence import Timing
from kdpipe.stages.models.onnx_file import external_data
from kdpipe.stages.rows import latency, speedup
from kdpipe.stages.statistics.latency import noise_floor as floor_between
from kdpipe.targets import Target, name_of, target_named, targets
from kdpipe.targets.digest import digest, size
from kdpipe.targets.errors import TargetUnavailable, UsageError
from kdpipe.targets.fingerprint import fingerprint
from kdpipe.targets.formats import adopt, merged
from kdpipe.targets.measure import Job, Process, peak_memory, time_processes

SAMPLES = 32
MEMORY_PROCESSES = 3
AGAIN = "again"
"""The role of the model's second measurement, which shows the noise floor."""


@dataclass(frozen=True)
class _Model:
    """What was asked for, and what is measured; `notes` are for the reader."""

    typed: str
    job: Job
    notes: tuple[str, ...] = ()


def bench(
    models: Mapping[str, Path | str],
    target: str | None,
    *,
    inputs: Path | None,
    processes: int,
    iterations: int,
    threads: int,
    seconds: float = 0.5,
    noise_floor: bool = True,
    batches: Sequence[int] = (),
    concurrency: Sequence[int] = (),
) -> dict[str, Any]:
    """Time each model in turns, in fresh processes; what `--json` prints.

    `models` are `model` and, to compare with it, `against`; then `speedup` says how many times
    faster the first is, unless a call of one does more work than a call of the other: then `reason`
    says so instead. With `noise_floor` the model is measured twice, as if it were two. Of `model`
    alone, `batches` and numbers of callers (`concurrency`) are measured, too, under `sweep`.

    Raises UsageError for an unknown target or a missing file, DataError for inputs that the model
    cannot take, TargetUnavailable when the target cannot run here, StageError when it refuses a
    model.
    """
    if inputs and not inputs.is_file():
        raise UsageError(f"there is no file {inputs}")
    most = max((1, *batches))
    with tempfile.TemporaryDirectory() as folder:
        found = {
            name: _model(str(typed), target, threads, Path(folder) / name, inputs, most)
            for name, typed in models.items()
        }
        jobs = {name: model.job for name, model in found.items()}
        again = {AGAIN: jobs["model"]} if noise_floor else {}
        effort: dict[str, Any] = {
            "processes": processes,
            "iterations": iterations,
            "seconds": seconds,
        }
        runs = time_processes(jobs | again, **effort)
        timed = {name: Timing(tuple(p.latency_ms for p in each)) for name, each in runs.items()}
        rows = {name: _row(model, runs[name], timed[name]) for name, model in found.items()}
        compared = _compared(jobs, timed) if "against" in jobs else {}
        asked = bool(batches or concurrency)
        swept = sweep(jobs["model"], batches, concurrency, **effort) if asked else []
    return {
        "target": found["model"].job.target.id,
        "threads": threads,
        "inputs": str(inputs) if inputs else f"{max(SAMPLES, most)} samples of seeded noise",
        "models": rows,
        "noise_floor": _floor(timed) if noise_floor else None,
        "sweep": swept,
        "disturbances": _disturbances(runs),
        "machine": fingerprint(),
        **compared,
    }


def _model(
    typed: str, target: str | None, threads: int, folder: Path, inputs: Path | None, most: int
) -> _Model:
    """Find or compile the artifact that `typed` names; without `inputs` it gets noise.

    `most`: samples of the largest call.
    """
    folder.mkdir()
    chosen, artifact, notes = _artifact(typed, target, threads, folder)
    if missing := chosen.missing():
        raise TargetUnavailable(f"{chosen.name} cannot run here: {missing.reason}", fix=missing.fix)
    if inputs:
        require_fitting(chosen, artifact, inputs, most)
    file = inputs or noise(chosen, artifact, folder, max(SAMPLES, most))
    return _Model(typed, Job(chosen, artifact, file), notes)


def _artifact(
    typed: str, target: str | None, threads: int, folder: Path
) -> tuple[Target, Path, tuple[str, ...]]:
    path = Path(typed)
    if path.suffix == ".onnx" and path.is_file() and target:
        chosen = target_named(target).model_validate({"name": target, "threads": threads})
        if missing := chosen.missing():
            raise TargetUnavailable(f"{target} cannot run here: {missing.reason}", fix=missing.fix)
        with tempfile.TemporaryDirectory() as aside:
            whole = merged(path, Path(aside)) if external_data(path) else path
            return chosen, chosen.compile(whole, folder), ()
    subject = _subject(typed)
    if subject is None:
        if path.suffix == ".onnx" and path.is_file():
            names = ", ".join(name_of(kind) for kind in targets())
            raise UsageError(f"where shall {path.name} run?", fix=f"--target, one of: {names}")
        chosen, artifact = adopt(path, folder, threads)
        notes: tuple[str, ...] = ()
    else:
        chosen = subject.target().model_copy(update={"threads": threads})
        artifact, notes = subject.existing_path(), subject.changed
    if target not in (None, chosen.name):
        raise UsageError(f"{typed} is compiled for {chosen.name}", fix="leave --target out")
    return chosen, artifact, notes


def _subject(typed: str) -> Subject | None:
    """The artifact of a run that `typed` names, or None where it is a file of its own."""
    path = Path(typed)
    if path.is_file() and holder(path) is None:
        return None
    found = subjects(typed)
    if len(found) > 1:
        names = "\n         ".join(subject.name for subject in found)
        raise UsageError(
            f"{typed} has {len(found)} artifacts", fix=f"name one of them:\n         {names}"
        )
    return found[0]


def _row(model: _Model, runs: Sequence[Process], timed: Timing) -> dict[str, Any]:
    job = model.job
    memory = peak_memory(job, processes=min(MEMORY_PROCESSES, len(runs)))
    return {
        "file": model.typed,
        "target": job.target.id,
        "batch": _batch(job),
        "sha256": digest(job.artifact),
        "size_bytes": size(job.artifact),
        "memory_bytes": memory.model_bytes,
        "memory": _central(memory.models),
        "latency_ms": latency(timed),
        "load_ms": _central([run.load_ms for run in runs]),
        "first_ms": _central([run.first_ms for run in runs]),
        "steady_processes": sum(run.steady for run in runs),
        "notes": list(model.notes),
    }


def _central(values: Any) -> dict[str, Any]:
    """The median of processes with its bounds; null where they cannot give any."""
    return of_processes(np.asarray(values, dtype=np.float64))


def _floor(timed: Mapping[str, Timing]) -> dict[str, Any]:
    """A/A: the ratio of the model to itself; `fraction` is how far its bounds reach from 1."""
    pair = timed["model"].processes, timed[AGAIN].processes
    floor = floor_between(*pair, CONFIDENCE).floor
    known = bool(np.isfinite(floor))
    return {"fraction": floor if known else None, **speedup(timed[AGAIN], timed["model"])}


def _disturbances(runs: Mapping[str, Sequence[Process]]) -> list[dict[str, Any]]:
    """What was out of the ordinary while processes ran, and in how many of them."""
    said = [sentence for each in runs.values() for run in each for sentence in run.disturbed]
    total = sum(len(each) for each in runs.values())
    kinds: dict[str, list[str]] = {}
    for sentence in said:
        kinds.setdefault("".join(c for c in sentence if not c.isdigit()), []).append(sentence)
    return [
        {"example": same[0], "processes": len(same), "of": total}
        for same in sorted(kinds.values(), key=len, reverse=True)
    ]


def _compared(jobs: Mapping[str, Job], timed: Mapping[str, Timing]) -> dict[str, Any]:
    """The speedup, where a call of either model takes as many samples; else why there is none."""
    own, other = (_batch(jobs[name]) for name in ("model", "against"))
    if own != other:
        return {"reason": f"model takes {own} samples a call and against {other}"}
    return {"speedup": speedup(timed["against"], timed["model"])}


def _batch(job: Job) -> int:
    """Samples in one timed call: the batch that is compiled in, else one."""
    with job.target.open(job.artifact) as session:
        return session.batch or 1
