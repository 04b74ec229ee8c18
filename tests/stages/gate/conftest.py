"""Evidence of an artifact of which everything was measured, for the gate's rules."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from kdpipe.stages.evidence import Decisions, Evidence, Timing
from kdpipe.stages.gate.baseline import Baseline, LogMean, Remembered
from kdpipe.stages.gate.judge import Verdict, judge
from kdpipe.stages.gate.rules import Rule
from kdpipe.stages.statistics import log_mean, score_summary

N = 2000
CLASSES = ("cat", "dog", "owl", "yak")
MACHINE = {"cpu": "a CPU"}
VALUES = {
    "size_bytes": 100_000.0,
    "teacher_size_bytes": 1_000_000.0,
    "parameters": 90_000.0,
    "teacher_parameters": 900_000.0,
    "macs": 1e6,
    "teacher_macs": 2e6,
    "int8_fraction": 0.9,
}

Make = Callable[..., Evidence]


def pairs(losses: int, gains: int, n: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """0/1 scores of teacher and artifact with so many samples that only one gets right."""
    teacher, student = np.ones(n, np.float32), np.ones(n, np.float32)
    student[:losses] = 0
    teacher[losses : losses + gains] = 0
    return teacher, student


def decisions(student: NDArray[np.float32], teacher: NDArray[np.float32]) -> Decisions:
    """Decisions that are right where the scores say so, in classes that take turns."""
    labels = np.arange(student.size) % len(CLASSES)
    wrong = (labels + 1) % len(CLASSES)
    sure = np.full(student.size, 0.97, np.float32)
    own, theirs = (np.where(right > 0, labels, wrong) for right in (student, teacher))
    return Decisions(labels, own, theirs, sure, sure)


def times(
    scale: float, seed: int, processes: int = 10, each: int = 60, effect: float = 0.01
) -> Timing:
    """Latencies around `scale` ms: an `effect` between processes, 2 % inside one."""
    rng = np.random.default_rng([seed, int(1000 * scale)])
    levels = scale * np.exp(effect * rng.standard_normal(processes))
    return Timing(tuple(level * np.exp(0.02 * rng.standard_normal(each)) for level in levels))


def made(losses: int = 10, gains: int = 10, n: int = N, seed: int = 0, **changes: Any) -> Evidence:
    """An int8 artifact: no drop, 6 times faster than the teacher, 10 times smaller."""
    teacher, student = pairs(losses, gains, n)
    rng = np.random.default_rng(seed)
    measured: dict[str, Any] = {
        "artifact": "openvino-int8",
        "target": "openvino",
        "precision": "int8",
        "metric": "accuracy",
        "score": student,
        "teacher_score": teacher,
        "agreement": (student == teacher).astype(np.float32),
        "references": {"control": pairs(60, 0, n)[1], "fp32": np.ones(n, np.float32)},
        "decisions": decisions(student, teacher),
        "classes": CLASSES,
        "robustness": {"blur": (student[:500], teacher[:500]), "jpeg": (student[:500],) * 2},
        "eval_sha256": "e" * 64,
        "latency": {
            "artifact": times(1.0, seed),
            "again": times(1.0, seed + 1),
            "fp32": times(2.0, seed),
            "teacher": times(6.0, seed),
        },
        "memory": {
            "artifact": 5e6 + 1e4 * rng.standard_normal(5),
            "teacher": 2e7 + 1e4 * rng.standard_normal(5),
            "gpu": 1e8 + 1e4 * rng.standard_normal(5),
        },
        "start": {"artifact": {"load_ms": 20 + rng.random(10), "first_ms": 2 + rng.random(10)}},
        "energy_mj": {"artifact": 3 + 0.1 * rng.random(5), "teacher": 12 + 0.1 * rng.random(5)},
        "values": VALUES,
        "machine": MACHINE,
    }
    return Evidence(**{**measured, **changes})


def remember(found: Evidence, **changes: Any) -> Baseline:
    """A baseline of what was measured, with changes to what it remembers."""
    score = score_summary(found.score, found.groups)
    kept = {
        "memory_bytes": float(np.median(found.memory["artifact"])),
        "memory_bytes_processes": float(found.memory["artifact"].size),
        "memory_bytes_deviation": float(found.memory["artifact"].std(ddof=1)),
    }
    past: Mapping[str, Any] = {
        "artifact": found.artifact,
        "metric": found.metric,
        "score": float(found.score.mean()),
        "variance": score.variance,
        "samples": found.score.size,
        "eval_sha256": found.eval_sha256,
        "scores": found.score,
        "latency": {role: LogMean(*log_mean(t.processes)) for role, t in found.latency.items()},
        "values": {**found.values, **kept},
        "machine": found.machine,
    }
    return Baseline({found.artifact: Remembered(**{**past, **changes})}, "kdpipe.lock.yaml")


def one(rule: dict[str, Any], found: Evidence, baseline: Baseline | None = None) -> Verdict:
    """The only verdict of one rule on one artifact."""
    (only,) = judge([Rule.model_validate(rule)], [found], baseline)
    return only


@pytest.fixture
def evidence() -> Make:
    """evidence(losses=10, gains=10, n=2000, seed=0, **fields) -> Evidence"""
    return made


@pytest.fixture
def timing() -> Callable[..., Timing]:
    """timing(scale, seed, processes=10, each=60, effect=0.01) -> Timing"""
    return times


@pytest.fixture
def baseline() -> Callable[..., Baseline]:
    """baseline(evidence, **remembered) -> Baseline"""
    return remember


@pytest.fixture
def verdict() -> Callable[..., Verdict]:
    """verdict(rule, evidence, baseline=None) -> the only verdict"""
    return one
