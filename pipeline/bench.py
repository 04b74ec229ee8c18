"""Measuring any ONNX file of the user's: what `kdpipe bench` does, without a config or a store."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kdpipe.pipeline.summary import size as shown_size
from kdpipe.targets import Target, targets
from kdpipe.targets.errors import TargetUnavailable, UsageError

SAMPLES = 32
CONFIDENCE = 0.95


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

    Raises UsageError for an unknown target or a missing file, TargetUnavailable when the target
    cannot run here, StageError when it refuses a model.
    """
    from kdpipe.targets.digest import digest, size
    from kdpipe.targets.fingerprint import fingerprint
    from kdpipe.targets.measure import Job, peak_memory, time_processes

    chosen = _target(target, threads)
    for path in (*models.values(), *([inputs] if inputs else [])):
        if not path.is_file():
            raise UsageError(f"there is no file {path}")
    with tempfile.TemporaryDirectory() as folder:
        jobs: dict[str, Job] = {}
        for name, onnx in models.items():
            home = Path(folder) / name
            home.mkdir()
            artifact = chosen.compile(onnx, home)
            jobs[name] = Job(chosen, artifact, inputs or _noise(chosen, artifact, home))
        timed = time_processes(jobs, processes=processes, iterations=iterations)
        rows = {
            name: {
                "file": str(models[name]),
                "sha256": digest(job.artifact),
                "size_bytes": size(job.artifact),
                "memory_bytes": peak_memory(job).model_bytes,
                **_latency([process.latency_ms for process in timed[name]]),
            }
            for name, job in jobs.items()
        }
    result: dict[str, Any] = {
        "target": chosen.id,
        "threads": threads,
        "inputs": str(inputs) if inputs else f"{SAMPLES} samples of seeded noise",
        "models": rows,
        "machine": fingerprint(),
    }
    return result | _ratio({n: [p.latency_ms for p in runs] for n, runs in timed.items()})


def render(measured: Mapping[str, Any]) -> Iterator[str]:
    """The measurement as lines, every number with its unit and what it rests on."""
    yield f"{measured['target']}, {measured['threads']} thread(s), inputs: {measured['inputs']}"
    for row in measured["models"].values():
        latency = row["latency_ms"]
        yield f"{row['file']}"
        yield "  " + ", ".join(f"{p} {latency[p]:.3f} ms" for p in ("p50", "p90", "p95", "p99"))
        yield (
            f"  mean {latency['mean']:.3f} ms ({latency['low']:.3f} to {latency['high']:.3f}), "
            f"{latency['processes']} processes, {latency['iterations']} iterations"
        )
        yield f"  size {shown_size(row['size_bytes'])}, memory {shown_size(row['memory_bytes'])}"
    if "speedup" in measured:
        ratio = measured["speedup"]
        yield (
            f"model is {ratio['ratio']:.3f}x as fast as against "
            f"({ratio['low']:.3f} to {ratio['high']:.3f}, {ratio['processes']} processes each)"
        )


def _target(name: str, threads: int) -> Target:
    kinds = {kind.model_fields["name"].default: kind for kind in targets()}
    if name not in kinds:
        raise UsageError(f"there is no target '{name}'", found=", ".join(kinds))
    target = kinds[name].model_validate({"name": name, "threads": threads})
    if missing := target.missing():
        raise TargetUnavailable(f"{name} cannot run here: {missing.reason}", fix=missing.fix)
    return target


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


def _latency(processes: list[Any]) -> dict[str, Any]:
    import numpy as np

    from kdpipe.stages import statistics

    pooled = np.concatenate(processes)
    mean = statistics.mean_latency(processes, CONFIDENCE)
    points = {f"p{q}": float(np.quantile(pooled, q / 100)) for q in (50, 90, 95, 99)}
    bounds = {"mean": mean.point, "low": mean.low, "high": mean.high}
    counts = {"processes": len(processes), "iterations": int(pooled.size)}
    return {"latency_ms": {**points, **bounds, **counts}}


def _ratio(latencies: Mapping[str, list[Any]]) -> dict[str, Any]:
    from kdpipe.stages import statistics

    if "against" not in latencies:
        return {}
    ratio = statistics.latency_ratio(latencies["against"], latencies["model"], CONFIDENCE)
    bounds = {"ratio": ratio.point, "low": ratio.low, "high": ratio.high}
    return {"speedup": {**bounds, "processes": ratio.n}}
