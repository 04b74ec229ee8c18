"""Measuring any ONNX file of the user's: what `kdpipe bench` does, without a config or a store."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kdpipe.pipeline.summary import size as shown_size
from kdpipe.stages.evidence import Timing
from kdpipe.stages.results import PERCENTILES, latency, speedup
from kdpipe.targets import Target, target_named
from kdpipe.targets.digest import digest, size
from kdpipe.targets.errors import TargetUnavailable, UsageError
from kdpipe.targets.fingerprint import fingerprint
from kdpipe.targets.measure import Job, peak_memory, time_processes

SAMPLES = 32


def bench(
    models: Mapping[str, Path],
    target: str,
    *,
    inputs: Path | None,
    processes: int,
    iterations: int,
    threads: int,
) -> dict[str, Any]:
    """Compile each model for `target` and time them in turns, in fresh processes.

    Of two models, `model` and `against`, `speedup` says how many times faster the first is, unless
    a call of one does more work than a call of the other: then `reason` says so instead. Raises
    UsageError for an unknown target or a missing file, TargetUnavailable when the target cannot
    run here, StageError when it refuses a model.
    """
    chosen = _target(target, threads)
    for path in (*models.values(), *([inputs] if inputs else [])):
        if not path.is_file():
            raise UsageError(f"there is no file {path}")
    with tempfile.TemporaryDirectory() as folder:
        jobs = {
            name: _job(chosen, onnx, Path(folder) / name, inputs) for name, onnx in models.items()
        }
        runs = time_processes(jobs, processes=processes, iterations=iterations)
        timed = {name: Timing(tuple(p.latency_ms for p in runs[name])) for name in jobs}
        rows = {
            name: {
                "file": str(models[name]),
                "sha256": digest(job.artifact),
                "size_bytes": size(job.artifact),
                "memory_bytes": peak_memory(job).model_bytes,
                "latency_ms": latency(timed[name]),
            }
            for name, job in jobs.items()
        }
        compared = _compared(jobs, timed) if "against" in jobs else {}
    return {
        "target": chosen.id,
        "threads": threads,
        "inputs": str(inputs) if inputs else f"{SAMPLES} samples of seeded noise",
        "models": rows,
        "machine": fingerprint(),
        **compared,
    }


def render(measured: Mapping[str, Any]) -> Iterator[str]:
    """The measurement as lines, every number with its unit and what it rests on."""
    yield f"{measured['target']}, {measured['threads']} thread(s), inputs: {measured['inputs']}"
    for row in measured["models"].values():
        ms = row["latency_ms"]
        yield f"{row['file']}"
        yield "  " + ", ".join(f"{p} {ms[p]:.3f} ms" for p in PERCENTILES)
        yield (
            f"  mean {ms['mean']:.3f} ms ({ms['low']:.3f} to {ms['high']:.3f}), "
            f"{ms['processes']} processes, {ms['iterations']} iterations"
        )
        yield f"  size {shown_size(row['size_bytes'])}, memory {shown_size(row['memory_bytes'])}"
    if "speedup" in measured:
        ratio = measured["speedup"]
        yield (
            f"model is {ratio['ratio']:.3f}x as fast as against "
            f"({ratio['low']:.3f} to {ratio['high']:.3f}, {ratio['processes']} processes each)"
        )
    if "reason" in measured:
        yield f"no speedup: {measured['reason']}"


def _target(name: str, threads: int) -> Target:
    target = target_named(name).model_validate({"name": name, "threads": threads})
    if missing := target.missing():
        raise TargetUnavailable(f"{name} cannot run here: {missing.reason}", fix=missing.fix)
    return target


def _job(target: Target, onnx: Path, folder: Path, inputs: Path | None) -> Job:
    folder.mkdir()
    artifact = target.compile(onnx, folder)
    return Job(target, artifact, inputs or _noise(target, artifact, folder))


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


def _noise(target: Target, artifact: Path, folder: Path) -> Path:
    """Standard normal samples in the shape of the artifact's input."""
    import numpy as np

    with target.open(artifact) as session:
        spec = session.inputs[0]
    sizes = [length for length in spec.shape[1:] if length is not None]
    if len(sizes) + 1 != len(spec.shape):
        raise UsageError(
            f"{artifact.name} has an input of free size {spec.shape}",
            fix="give real samples with --inputs samples.npy",
        )
    noise = np.random.default_rng(0).standard_normal((SAMPLES, *sizes))
    path = folder / "noise.npy"
    np.save(path, noise.astype(spec.dtype))
    return path
