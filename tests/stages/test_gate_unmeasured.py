"""What was not measured, or is no number, never passes; sound evidence is in test_gate.py."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from kdpipe.stages.evidence import Evidence, Timing
from kdpipe.stages.gate.judge import Verdict, judge
from kdpipe.stages.gate.rules import METRICS, Rule

VALUES = {
    "size_bytes": 100_000.0,
    "teacher_size_bytes": 1_000_000.0,
    "parameters": 90_000.0,
    "int8_fraction": 0.9,
}
MEMORY = {"artifact": np.array([5.01e6, 4.99e6, 5.0e6])}


def pairs(losses: int, gains: int, n: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """0/1 scores of teacher and artifact with so many samples that only one gets right."""
    teacher, student = np.ones(n, np.float32), np.ones(n, np.float32)
    student[:losses] = 0
    teacher[losses : losses + gains] = 0
    return teacher, student


def timing(scale: float, processes: int = 10, each: int = 100, seed: int = 0) -> Timing:
    """Latencies around `scale` ms: 1 % between processes, 2 % inside one."""
    rng = np.random.default_rng([seed, int(1000 * scale)])
    levels = scale * np.exp(0.01 * rng.standard_normal(processes))
    return Timing(tuple(level * np.exp(0.02 * rng.standard_normal(each)) for level in levels))


def evidence(**changes: Any) -> Evidence:
    """An int8 artifact: no drop on 2,000 samples, 6 times faster, 10 times smaller."""
    teacher, student = pairs(10, 10, 2000)
    measured: dict[str, Any] = {
        "artifact": "openvino-int8",
        "target": "openvino",
        "precision": "int8",
        "metric": "accuracy",
        "score": student,
        "teacher_score": teacher,
        "agreement": np.repeat(np.float32([1, 0]), [1980, 20]),
        "latency": {"artifact": timing(1.0), "fp32": timing(2.0), "teacher": timing(6.0)},
        "values": VALUES,
        "memory": MEMORY,
    }
    return Evidence(**{**measured, **changes})


def verdict(rule: dict[str, Any], found: Evidence) -> Verdict:
    """The only verdict of one rule on one artifact."""
    (only,) = judge([Rule.model_validate(rule)], [found])
    return only


DROP = {"metric": "accuracy", "max-degradation": 0.01}


LENIENT: list[dict[str, Any]] = [
    {"metric": "accuracy", "max-degradation": 0.99},
    {"metric": "accuracy", "percent-max-degradation": 99},
    {"metric": "accuracy", "min": 0.001},
    {"metric": "agreement", "min": 0.001},
    {"metric": "speedup", "min": 1e-6},
    {"metric": "speedup", "min": 1e-6, "against": "fp32"},
    *({"metric": m, "max": 1e9} for m in METRICS if METRICS[m].limits == ("max",)),
    {"metric": "compression", "min": 1e-6},
    {"metric": "int8_fraction", "min": 1e-6},
]
NAN = np.full(2000, np.nan, np.float32)
BROKEN = {
    "nan": evidence(
        score=NAN,
        agreement=NAN,
        latency={"artifact": Timing((NAN.astype(float),)), "fp32": timing(1), "teacher": timing(1)},
        values=dict.fromkeys(VALUES, math.nan),
        memory={"artifact": np.array([5e6, np.nan, 5e6])},
    ),
    "infinite": evidence(
        score=NAN + np.inf,
        agreement=np.full(2000, np.inf, np.float32),
        latency={"artifact": Timing((np.full(9, np.inf),) * 2)},
        values=dict.fromkeys(VALUES, math.inf),
        memory={"artifact": np.array([5e6, np.inf, 5e6])},
    ),
    "absent": evidence(score=NAN[:0], agreement=NAN[:0], latency={}, values={}, memory={}),
    "empty": evidence(
        score=NAN[:0],
        teacher_score=NAN[:0],
        agreement=NAN[:0],
        latency=dict.fromkeys(("artifact", "fp32", "teacher"), Timing(())),
        values={},
        memory={"artifact": np.empty(0)},
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.parametrize("rule", LENIENT, ids=lambda rule: rule["metric"])
def test_what_was_not_measured_fails(rule: dict[str, Any], kind: str) -> None:
    """The most lenient rule there is passes good evidence, and never a missing or broken one."""
    assert verdict(rule, evidence()).verdict == "PASS"
    found = verdict(rule, BROKEN[kind])
    assert (found.verdict, found.measured, found.n) == ("FAIL", None, 0)
    assert "was not measured" in found.reason


@pytest.mark.parametrize("bad", [np.nan, np.inf, -0.5, 1.5])
def test_a_single_bad_score_fails(bad: float) -> None:
    """One NaN among 2,000 scores is enough, on either side of the pair."""
    _, scores = pairs(0, 0, 2000)
    scores[7] = bad
    for side in ("score", "teacher_score"):
        found = verdict({"metric": "accuracy", "max-degradation": 0.5}, evidence(**{side: scores}))
        assert found.verdict == "FAIL"
        assert "1 of 2000 scores" in found.reason


def test_scores_that_are_not_pairs_fail() -> None:
    """Two different numbers of samples cannot have been the same samples."""
    found = verdict(DROP, evidence(teacher_score=np.ones(1999, np.float32)))
    assert found.verdict == "FAIL"
    assert "not pairs" in found.reason


@pytest.mark.parametrize("rule", [DROP, {"metric": "agreement", "min": 0.001}])
def test_groups_of_other_samples_fail(rule: dict[str, Any]) -> None:
    """A group for each of 1,999 samples does not say which of 2,000 belong together."""
    found = verdict(rule, evidence(groups=np.arange(1999)))
    assert found.verdict == "FAIL"
    assert "2000 scores, but groups of 1999" in found.reason


def test_a_teacher_that_is_never_right_has_no_percentage() -> None:
    """0 % cannot be lost from; a relative rule fails instead of dividing by zero."""
    found = evidence(teacher_score=np.zeros(2000, np.float32))
    assert verdict({"metric": "accuracy", "percent-max-degradation": 5}, found).verdict == "FAIL"


def test_a_zero_latency_fails() -> None:
    """A clock that did not tick is not a fast model."""
    stopped = evidence(latency={"artifact": Timing((np.zeros(100), np.ones(100)))})
    assert verdict({"metric": "latency_mean_ms", "max": 5}, stopped).verdict == "FAIL"


def test_the_metric_of_another_task_fails() -> None:
    """A rule on accuracy does not silently judge a mean IoU; `score` judges either."""
    other = evidence(metric="miou")
    assert "this run measures miou" in verdict(DROP, other).reason
    found = verdict({"metric": "score", "max-degradation": 0.01}, other)
    assert (found.verdict, found.metric) == ("PASS", "miou")


@pytest.mark.parametrize("found", [evidence(), BROKEN["nan"], BROKEN["empty"]])
def test_a_verdict_survives_json(found: Evidence) -> None:
    """Strict JSON, without NaN or Infinity, and back."""
    for one in judge([Rule.model_validate(rule) for rule in LENIENT], [found]):
        text = json.dumps(one.to_dict(), allow_nan=False)
        assert Verdict.from_dict(json.loads(text)) == one
