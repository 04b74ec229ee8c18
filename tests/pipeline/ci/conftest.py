"""Results of runs as `docs/results.md` describes them, with what a test wants to be special."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from kdpipe.pipeline.ci.context import Context
from kdpipe.pipeline.ci.source import Source

HERE = Path(__file__).resolve().parent
LEAKS = {
    "eval": 3, "share": 0.0067, "known_from": {"train": 3},
    "exact": 3, "near": 0, "mirrored": 0, "group": 0,
}  # fmt: skip
RULE = {"metric": "accuracy", "max-degradation": 0.01, "against": "teacher", "confidence": 0.95}


def verdict(artifact: str = "openvino-int8", word: str = "PASS", **changes: Any) -> dict[str, Any]:
    """One verdict of the accuracy rule; `rule` changes it."""
    rule = {**RULE, **changes.pop("rule", {})}
    rule = {name: value for name, value in rule.items() if value is not None}
    return {
        "rule": rule,
        "artifact": artifact,
        "metric": rule["metric"],
        "verdict": word,
        "measured": 0.0209,
        "low": 0.0141,
        "high": 0.0277,
        "limit": 0.01,
        "unit": "fraction",
        "n": 5000,
        "needed": None,
        "counted": "samples",
        "reason": f"the reason of {artifact} for {word}",
        **changes,
    }


def artifact(name: str) -> dict[str, Any]:
    """The row of one artifact."""
    return {
        "id": name,
        "target": name.split("-")[0],
        "precision": "int8",
        "path": f"artifacts/{name}/model.onnx",
        "sha256": "ab" * 32,
        "size_bytes": 123_456,
        "accuracy": 0.7603,
        "low": 0.75,
        "high": 0.7712,
        "samples": 5000,
        "drop": {"mean": 0.0209, "low": 0.0141, "high": 0.0277},
        "agreement": 0.93,
        "latency_ms": {"mean": 12.1, "low": 12.0, "high": 12.25, "processes": 10, "iterations": 9},
        "speedup": {"ratio": 3.4, "low": 3.31, "high": 3.52, "processes": 10},
        "int8_fraction": 1.0,
        "machine": {"cpu": "AMD EPYC", "cores": 2, "flags": ["avx2", "fma"], "load": 0.5},
    }


def results(*verdicts: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """What results.json holds; the run ended as its verdicts and failed steps say."""
    required = [v["verdict"] for v in verdicts if v.get("required", True)]
    code = 3 if "FAIL" in required else 5 if "UNDECIDED" in required else 0
    said = [v["reason"] for v in verdicts if v["verdict"] != "PASS" and v.get("required", True)]
    said = [row["error"] for row in changes.get("failed", ())] + said
    code = 1 if changes.get("failed") else code
    gate = {"policy": [], "rules": list(verdicts), "skipped": [], **changes.pop("gate", {})}
    names = dict.fromkeys(v["artifact"] for v in verdicts)
    return {
        "schema": "kdpipe.results/1",
        "run": {
            "kdpipe": "0.1.0",
            "config": "/repo/ci/kdpipe.yaml",
            "assignments": [],
            "machine": {"cpu": "AMD EPYC"},
        },
        "metric": "accuracy",
        "teacher": {"accuracy": 0.7812, "parameters": 1000},
        "student": {"accuracy": 0.7733, "parameters": 400},
        "artifacts": [artifact(name) for name in names],
        "skipped": [],
        "failed": [],
        "gate": gate,
        "verdict": "FAILED" if code else "PASSED",
        "exit_code": code,
        "reason": "; ".join(said) or "how it ended",
        **changes,
    }


@pytest.fixture
def judged() -> Callable[..., dict[str, Any]]:
    """`verdict`"""
    return verdict


@pytest.fixture
def run_of() -> Callable[..., dict[str, Any]]:
    """`results`"""
    return results


@pytest.fixture
def leaked() -> dict[str, Any]:
    """Results of a run whose rule failed, and that was trained on samples of eval."""
    failed = verdict("a", "FAIL", reason="drop 0.0209 breaks the limit *")
    told = "a: drop 0.0209 breaks the limit; 0 of 1 rules passed; * 3 eval sample(s)"
    return results(failed, reason=told, data={"leaks": LEAKS})


@pytest.fixture
def context() -> Context:
    """Of a config whose first rule stands in line 14."""
    source = Source("kdpipe.yaml", "ci/kdpipe.yaml", (({k: RULE[k] for k in list(RULE)[:2]}, 14),))
    return Context(source, "default", commit="0123456789abcdef")


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """An empty folder that stands for a checkout."""
    folder = tmp_path / "repository"
    folder.mkdir()
    return folder


@dataclass
class Forge:
    """A checkout with a config, a `bin` folder before all others, and comments in a file."""

    folder: Path

    @property
    def repository(self) -> Path:
        """Where the job runs."""
        return self.folder / "repository"

    @property
    def file(self) -> Path:
        """The comments, the pull requests, and all calls so far."""
        return self.folder / "forge.json"

    def right(self, samples: int) -> None:
        """How many of 200 samples the next run gets right: 200 pass, 192 are undecided."""
        (self.repository / "right").write_text(str(samples))

    def environment(self, extra: Mapping[str, str]) -> dict[str, str]:
        """What the shell of a job has, and nothing of the job that tests run in."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("GITHUB_", "CI"))}
        path = f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
        return {**kept, "PATH": path, "FORGE": str(self.file), "OMP_NUM_THREADS": "1", **extra}

    def state(self) -> dict[str, Any]:
        """The file."""
        found: dict[str, Any] = json.loads(self.file.read_text())
        return found

    def change(self, **values: Any) -> None:
        """Change the file."""
        self.file.write_text(json.dumps({**self.state(), **values}))

    def bodies(self) -> list[str]:
        """The comments."""
        return [comment["body"] for comment in self.state()["comments"]]


def set_up(folder: Path) -> Forge:
    """A checkout of a config with one rule, and commands that reach no network."""
    forge = Forge(folder)
    forge.repository.mkdir()
    forge.right(200)
    rule = "{metric: accuracy, max-degradation: 0.05}"
    (forge.repository / "kdpipe.yaml").write_text(f"task: classification\ngate:\n  - {rule}\n")
    forge.file.write_text(json.dumps({"comments": [], "pulls": [], "log": [], "forbidden": False}))
    commands = {name: ("forge_stub.py", name) for name in ("gh", "curl", "pip")}
    commands["kdpipe"] = ("kdpipe_toy.py",)
    (folder / "bin").mkdir()
    for name, (script, *words) in commands.items():
        path = folder / "bin" / name
        line = shlex.join([sys.executable, str(HERE / script), *words])
        path.write_text(f'#!/bin/sh\nexec {line} "$@"\n')
        path.chmod(0o755)
    return forge


@pytest.fixture
def forge(tmp_path: Path) -> Forge:
    """A checkout on a forge that has no comment yet."""
    return set_up(tmp_path)


@pytest.fixture(scope="module")
def long_lived(tmp_path_factory: pytest.TempPathFactory) -> Forge:
    """The same, for a story of several pushes that several tests look at."""
    return set_up(tmp_path_factory.mktemp("forge"))
