"""Finished runs with samples made up for a purpose, in folders as a real run leaves them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdpipe.pipeline.judgement import judgement
from kdpipe.pipeline.rundir import RunDir
from kdpipe.stages import Rule
from kdpipe.stages.benchmark import Measured
from kdpipe.stages.evidence import Evidence, Timing
from kdpipe.stages.results import collect
from kdpipe.targets.digest import digest, size

EVAL, TEACHER = "e" * 64, "7" * 64
HERE: Mapping[str, Any] = {"cpu": "toy", "cores": 2, "openvino": "2026.4.1"}
LENIENT = ({"metric": "size_bytes", "max": 1_000_000},)


def timing(ms: float, seed: int, processes: int = 10, effect: float = 0.005) -> Timing:
    """Latencies around `ms`, with a process effect."""
    random = np.random.default_rng(seed)
    means = ms * np.exp(random.normal(0, effect, processes))
    return Timing(tuple(m * random.uniform(0.99, 1.01, 30) for m in means))


def evidence(
    artifact: str = "openvino-fp32",
    *,
    right: int = 1900,
    samples: int = 2000,
    ms: float = 1.0,
    teacher_ms: float = 3.0,
    seed: int = 0,
    eval_sha256: str = EVAL,
    machine: Mapping[str, Any] = HERE,
    size_bytes: float = 4000,
    **more: Any,
) -> Evidence:
    """What was measured of one artifact: `right` of `samples`, the same ones each time."""
    target, _, precision = artifact.partition("-")
    roles = {"artifact": ms, "again": ms, "teacher": teacher_ms}
    given: dict[str, Any] = {
        "artifact": artifact,
        "target": target,
        "precision": precision,
        "metric": "accuracy",
        "score": (np.arange(samples) < right).astype(np.float32),
        "teacher_score": np.ones(samples, np.float32),
        "agreement": (np.arange(samples) < right).astype(np.float32),
        "eval_sha256": eval_sha256,
        "latency": {
            role: timing(each, 10 * seed + n) for n, (role, each) in enumerate(roles.items())
        },
        "memory": {"artifact": np.array([2e6, 2.1e6, 2.2e6])},
        "values": {"size_bytes": size_bytes, "teacher_size_bytes": 9000.0, "parameters": 77.0},
        "machine": machine,
    }
    return Evidence(**given | more)


@dataclass
class Workshop:
    """A folder with a config, beside which its lock file belongs, and finished runs."""

    root: Path
    files: dict[str, Path] = field(default_factory=dict)

    @property
    def config(self) -> Path:
        return self.root / "kdpipe.yaml"

    @property
    def lock(self) -> Path:
        return self.root / "kdpipe.lock.yaml"

    def run(
        self,
        name: str,
        *measured: Evidence,
        rules: Sequence[Mapping[str, Any]] = LENIENT,
        teacher: str = TEACHER,
        config: str = "kdpipe.yaml",
    ) -> RunDir:
        """A finished run; an artifact is a line of text unless `files` has another for its id."""
        self.config.touch()
        rundir = RunDir(self.root / name)
        outputs = {f"benchmark[{e.artifact}]": self._measured(name, e) for e in measured}
        results: dict[str, Any] = {
            "run": {
                "config": str(self.root / config), "assignments": [], "kdpipe": "0.1.0",
                "machine": {},
            },
            **collect(outputs),
            "metric": "accuracy",
            "skipped": [],
            "failed": [],
        }  # fmt: skip
        for row in results["artifacts"]:
            output = outputs[f"benchmark[{row['id']}]"]
            row |= rundir.keep(
                row["id"], self._file(output, row["id"]), row["sha256"], output.evidence
            )
        policy = [Rule.model_validate(rule) for rule in rules]
        results |= judgement(policy, list(measured), [], {})[1]
        rundir.write_results(results)
        rundir.records.write_text(json.dumps(_records(measured, teacher)))
        return rundir

    def _measured(self, name: str, evidence: Evidence) -> Measured:
        folder = self.root / "store" / name / evidence.artifact
        folder.mkdir(parents=True)
        (folder / "model").write_text(evidence.artifact)
        evidence.save(folder)
        file = self._file(Measured(folder), evidence.artifact)
        artifact = {
            "path": file.name, "sha256": digest(file), "size_bytes": size(file),
            "int8_fraction": 0.0, "kernels": {}, "float_kernels": [],
        }  # fmt: skip
        meta = {"artifact": artifact, "start": {"artifact": {}}, "machine": dict(evidence.machine)}
        (folder / "measured.json").write_text(json.dumps(meta))
        return Measured(folder)

    def _file(self, output: Measured, artifact: str) -> Path:
        return self.files.get(artifact, output.folder / "model")


def _records(measured: Sequence[Evidence], teacher: str) -> dict[str, Any]:
    """What `plan.json` says of the steps."""
    empty: dict[str, Any] = {
        "version": 1, "fields": {}, "files": {}, "inputs": {}, "settings": {}, "packages": {},
    }  # fmt: skip
    records = {
        "data": empty | {"stage": "data", "files": {"source.file": "d" * 64}},
        "teacher": empty | {"stage": "teacher", "inputs": {"data": "5" * 64}},
    }
    for one in measured:
        target = {"name": one.target, "precision": one.precision, "threads": 1}
        records[f"compile[{one.artifact}]"] = empty | {"stage": "compile"}
        records[f"benchmark[{one.artifact}]"] = empty | {
            "stage": "benchmark",
            "inputs": {"data": "5" * 64, "teacher": teacher, "compile": "c" * 64},
            "settings": {"target": target},
        }
    return records


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    """An empty one."""
    return Workshop(tmp_path)


@pytest.fixture
def measured() -> Any:
    """The function `evidence`."""
    return evidence
