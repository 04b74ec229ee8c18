"""What one model file is: what `kdpipe inspect` says of an artifact of a run, or of any model file.

Of an artifact also where it comes from, and whether it still is the file that was measured. What it
executes is read anew from the runtime, here and now.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdpipe.pipeline.notes import leak
from kdpipe.pipeline.subject import Subject, holder, subjects
from kdpipe.stages.models.onnx_file import external_data
from kdpipe.targets import Target
from kdpipe.targets.base import TensorSpec
from kdpipe.targets.digest import digest, sha256_file, size
from kdpipe.targets.errors import KdpipeError, UsageError
from kdpipe.targets.formats import adopt, facts, merged

SCHEMA = "kdpipe.inspect/1"


def inspect(typed: str) -> dict[str, Any]:
    """What `--json` prints of an artifact (`RUN:ID`, or a path in a run) or of a model file.

    Raises UsageError when there is no such thing, DataError for a damaged file or one that points
    outside its folder. A runtime that cannot open it here is told under `runtime`, not raised.
    """
    path = Path(typed)
    if path.is_file() and holder(path) is None:
        return _of_file(path)
    found = subjects(typed)
    if len(found) > 1:
        names = "\n         ".join(subject.name for subject in found)
        fix = f"name one of them:\n         {names}"
        raise UsageError(f"{typed} has {len(found)} artifacts", fix=fix)
    return _of_subject(found[0])


def _of_file(path: Path) -> dict[str, Any]:
    """A file of the user's; its data beside it are counted, not read."""
    beside = external_data(path) if path.suffix == ".onnx" else _weights(path)
    with tempfile.TemporaryDirectory() as folder:
        apart = path.suffix == ".onnx" and beside
        target, artifact = adopt(merged(path, Path(folder)) if apart else path, Path(folder))
        return {
            "schema": SCHEMA,
            "artifact": None,
            "file": _file(path),
            "beside": [_file(file) for file in beside],
            "format": facts(path),
            **_opened(target, artifact),
            "run": None,
        }


def _weights(path: Path) -> tuple[Path, ...]:
    """The file of weights that OpenVINO expects beside its XML."""
    weights = path.with_suffix(".bin")
    return (weights,) if path.suffix == ".xml" and weights.is_file() else ()


def _file(path: Path) -> dict[str, Any]:
    return {"path": str(path), "size_bytes": path.stat().st_size, "sha256": sha256_file(path)}


def _of_subject(subject: Subject) -> dict[str, Any]:
    path = subject.existing_path()
    parts = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else []
    whole = {"path": str(path), "size_bytes": size(path), "sha256": digest(path)}
    if path.suffix == ".onnx":
        external_data(path)
    return {
        "schema": SCHEMA,
        "artifact": subject.id,
        "file": whole,
        "beside": [_file(part) for part in parts],
        "format": facts(path),
        **_opened(subject.target(), path),
        "run": _provenance(subject),
    }


def _opened(target: Target, artifact: Path) -> dict[str, Any]:
    """Inputs, outputs and what the runtime executes; or why that cannot be known here."""
    runtime: dict[str, Any] = {"target": target.name, "precision": target.precision, "error": None}
    unknown = {"inputs": None, "outputs": None, "audit": None}
    if missing := target.missing():
        return {"runtime": {**runtime, "error": f"{missing.reason}; {missing.fix}"}, **unknown}
    try:
        with target.open(artifact) as session:
            ends = {
                "inputs": [_spec(spec) for spec in session.inputs],
                "outputs": [_spec(spec) for spec in session.outputs],
            }
        audit = target.audit(artifact)
    except KdpipeError as error:
        return {"runtime": {**runtime, "error": str(error)}, **unknown}
    return {"runtime": runtime, **ends, "audit": audit.to_dict() | {"shares": _shares(audit)}}


def _shares(audit: Any) -> list[float]:
    """The share of the multiply-accumulates that each layer has, in the order of `layers`."""
    return [share for _, share in audit.shares()]


def _spec(spec: TensorSpec) -> dict[str, Any]:
    """A side of null is free: the batch, as a rule."""
    return {"name": spec.name, "dtype": spec.dtype, "shape": list(spec.shape)}


def _provenance(subject: Subject) -> dict[str, Any]:
    """Where the artifact comes from, what was measured of it and where."""
    run, row = subject.results["run"], subject.row
    verdicts = [v for v in subject.results["gate"]["rules"] if v["artifact"] == subject.id]
    return {
        "folder": str(subject.rundir.folder),
        "config": run["config"],
        "assignments": run["assignments"],
        "kdpipe": run["kdpipe"],
        "measured_sha256": row["sha256"],
        "unchanged": not subject.changed,
        "changed": list(subject.changed),
        "inputs": dict(subject.inputs()),
        "files": _sources(subject),
        "stages": subject.keys(),
        "eval_sha256": subject.evidence.eval_sha256 if not subject.changed else "",
        "machine": row.get("machine") or {},
        "diagnosis": row.get("diagnosis") or "",
        "speedup_fp32": row["speedup_fp32"],
        "leak": leak(subject.results),
        "rules": [
            {
                "verdict": v["verdict"],
                "required": v.get("required", True),
                "reason": v["reason"],
            }
            for v in verdicts
        ],
    }


def _sources(subject: Subject) -> dict[str, str]:
    """The user's own files that stages read: sha256 by `stage.field`."""
    found: Mapping[str, Any] = subject.records
    return {
        f"{step}.{name}": sha256
        for step, record in found.items()
        for name, sha256 in record["files"].items()
    }
