"""What was not measured, or is no number, never passes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from kdpipe.stages.evidence import Evidence, Timing
from kdpipe.stages.gate.judge import MEASURES, Verdict, judge
from kdpipe.stages.gate.metrics import METRICS, TIMES
from kdpipe.stages.gate.rules import Rule

Make = Callable[..., Evidence]
Judge = Callable[..., Verdict]

DROP = {"metric": "accuracy", "max-degradation": 0.01}
EASY = {
    "max": 1e9,
    "min": 1e-6,
    "max-degradation": 0.99,
    "percent-max-degradation": 99.0,
    "min-improvement": 1e-6,
    "min-speedup": 1e-6,
}
FRACTIONS = ("worst_class_drop", "worst_group_drop", "ece")
LENIENT: list[dict[str, Any]] = [
    {
        "metric": metric,
        limit: 0.99 if limit == "max" and metric in FRACTIONS else EASY[limit],
        # The control is worse than the artifact, so that a gain over it can be shown.
        "against": "control" if limit == "min-improvement" else (references or ("teacher",))[0],
    }
    for metric, about in METRICS.items()
    for limit, references in about.limits.items()
    if metric not in ("score", "miou", "worst_group_drop")
]
NAN = np.full(2000, np.nan, np.float32)
MEMORY = {"artifact": np.array([5e6, np.nan, 5e6]), "gpu": np.array([np.inf])}
ROLES = ("artifact", "fp32", "teacher")
STOPPED = {"artifact": {"load_ms": np.array([np.nan, 1.0]), "first_ms": np.zeros(3)}}


def broken(kind: str, make: Make) -> Evidence:
    """Evidence that is all wrong in one way."""
    good = make()
    lost: dict[str, Any] = {
        "references": {},
        "decisions": None,
        "start": {},
        "energy_mj": {},
        "robustness": {},
    }
    nan = {role: Timing((NAN.astype(float),)) for role in ROLES}
    infinite = {role: Timing((np.full(99, np.inf),) * 2) for role in ROLES}
    return make(
        **{
            "nan": {
                **lost,
                "references": {"control": NAN},
                "score": NAN,
                "agreement": NAN,
                "robustness": {"blur": (NAN, NAN)},
                "latency": nan,
                "values": dict.fromkeys(good.values, math.nan),
                "memory": MEMORY,
                "start": STOPPED,
                "energy_mj": MEMORY,
            },
            "infinite": {
                **lost,
                "score": NAN + np.inf,
                "agreement": np.full(2000, np.inf, np.float32),
                "robustness": {"blur": (NAN + np.inf, NAN)},
                "latency": infinite,
                "values": dict.fromkeys(good.values, math.inf),
                "memory": MEMORY,
                "start": {"artifact": {"load_ms": NAN + np.inf, "first_ms": NAN}},
                "energy_mj": MEMORY,
            },
            "absent": {
                **lost,
                "score": NAN[:0],
                "agreement": NAN[:0],
                "latency": {},
                "values": {},
                "memory": {},
            },
            "empty": {
                **lost,
                "score": NAN[:0],
                "teacher_score": NAN[:0],
                "agreement": NAN[:0],
                "robustness": {"blur": (NAN[:0], NAN[:0])},
                "latency": dict.fromkeys(ROLES, Timing(())),
                "values": {},
                "memory": {"artifact": np.empty(0), "gpu": np.empty(0)},
                "start": {"artifact": {"load_ms": np.empty(0), "first_ms": np.empty(0)}},
                "energy_mj": {"artifact": np.empty(0)},
            },
        }[kind]
    )


def name(rule: dict[str, Any]) -> str:
    """For the list of tests."""
    return "-".join(key for key in (rule["metric"], *rule) if key not in ("metric", "against"))


def test_every_metric_can_be_judged() -> None:
    """Nothing that a rule may name is unknown to the gate."""
    assert set(MEASURES) == set(METRICS)
    assert set(TIMES) <= set(METRICS)


@pytest.mark.parametrize("rule", LENIENT, ids=name)
def test_what_was_not_measured_fails(rule: dict[str, Any], evidence: Make, verdict: Judge) -> None:
    """The most lenient rule there is passes good evidence, and never a missing or broken one."""
    assert verdict(rule, evidence()).verdict == "PASS"
    for kind in ("nan", "infinite", "absent", "empty"):
        found = verdict(rule, broken(kind, evidence))
        assert (found.verdict, found.measured, found.n) == ("FAIL", None, 0), kind
        assert "was not measured: " in found.reason
        assert found.power is None


@pytest.mark.parametrize("bad", [np.nan, np.inf, -0.5, 1.5])
def test_a_single_bad_score_fails(bad: float, evidence: Make, verdict: Judge) -> None:
    """One NaN among 2,000 scores is enough, on either side of the pair."""
    scores = np.ones(2000, np.float32)
    scores[7] = bad
    for side in ("score", "teacher_score"):
        found = verdict({"metric": "accuracy", "max-degradation": 0.5}, evidence(**{side: scores}))
        assert found.verdict == "FAIL"
        assert "1 of 2000 scores" in found.reason


@pytest.mark.parametrize("against", ["teacher", "control", "fp32"])
def test_scores_that_are_not_pairs_fail(against: str, evidence: Make, verdict: Judge) -> None:
    """Two different numbers of samples cannot have been the same samples."""
    short = np.ones(1999, np.float32)
    other = {"teacher_score": short, "references": {"control": short, "fp32": short}}
    found = verdict({**DROP, "against": against}, evidence(**other))

    assert found.verdict == "FAIL"
    assert "not pairs" in found.reason


@pytest.mark.parametrize("against", ["control", "fp32"])
def test_a_reference_that_was_not_scored_fails(
    against: str, evidence: Make, verdict: Judge
) -> None:
    """A control that nobody trained is no reference."""
    found = verdict({**DROP, "against": against}, evidence(references={}))

    assert "was not measured: there are no scores of " in found.reason


@pytest.mark.parametrize("rule", [DROP, {"metric": "agreement", "min": 0.001}])
def test_groups_of_other_samples_fail(rule: dict[str, Any], evidence: Make, verdict: Judge) -> None:
    """A group for each of 1,999 samples does not say which of 2,000 belong together."""
    found = verdict(rule, evidence(groups=np.arange(1999)))

    assert found.verdict == "FAIL"
    assert "2000 scores, but groups of 1999" in found.reason


def test_corruptions_of_other_samples_fail(evidence: Make, verdict: Judge) -> None:
    """Blur on 500 samples and JPEG on 400 have no mean over corruptions of a sample."""
    five, four = np.ones(500, np.float32), np.ones(400, np.float32)
    found = evidence(robustness={"blur": (five, five), "jpeg": (four, four)})

    assert "on the same samples" in verdict({"metric": "robustness", "min": 0.1}, found).reason


def test_decisions_of_other_samples_fail(evidence: Make, verdict: Judge) -> None:
    """Decisions on 1,000 samples are not those behind 2,000 scores."""
    other = evidence(n=1000).decisions
    found = verdict({"metric": "macro_f1", "min": 0.1}, evidence(decisions=other))

    assert "2000 scores, but 1000 decisions" in found.reason


def test_a_teacher_that_is_never_right_has_no_percentage(evidence: Make, verdict: Judge) -> None:
    """0 % cannot be lost from; a relative rule fails instead of dividing by zero."""
    found = evidence(teacher_score=np.zeros(2000, np.float32))
    rule = {"metric": "accuracy", "percent-max-degradation": 5}

    assert verdict(rule, found).verdict == "FAIL"


def test_a_model_that_takes_nothing_has_no_percentage(evidence: Make, verdict: Judge) -> None:
    """A tiny model may weigh less than an empty process; 10 % of that means nothing."""
    rule = {"metric": "memory_bytes", "percent-max-degradation": 10}
    tiny = evidence(memory={"artifact": np.array([-4096.0, 8192.0]), "teacher": np.ones(2)})

    assert "took nothing for the model, which has no percentage" in verdict(rule, tiny).reason


def test_a_zero_latency_fails(evidence: Make, verdict: Judge) -> None:
    """A clock that did not tick is not a fast model."""
    stopped = evidence(latency={"artifact": Timing((np.zeros(100), np.ones(100)))})

    assert verdict({"metric": "latency_mean_ms", "max": 5}, stopped).verdict == "FAIL"


def test_a_noise_floor_of_one_process_is_none(
    evidence: Make, timing: Callable[..., Timing], verdict: Judge
) -> None:
    """A floor that nobody knows is absent, and not infinite: it would excuse everything."""
    latency = {**evidence().latency, "again": timing(1.0, 3, processes=1)}
    found = verdict({"metric": "speedup", "min": 9}, evidence(latency=latency))

    assert (found.verdict, found.floor) == ("FAIL", None)


def test_the_metric_of_another_task_fails(evidence: Make, verdict: Judge) -> None:
    """A rule on accuracy does not silently judge a mean IoU; `score` judges either."""
    other = evidence(metric="miou")
    found = verdict({"metric": "score", "max-degradation": 0.01}, other)

    assert "this run measures miou" in verdict(DROP, other).reason
    assert (found.verdict, found.metric) == ("PASS", "miou")


@pytest.mark.parametrize("kind", ["good", "nan", "empty"])
def test_a_verdict_survives_json(kind: str, evidence: Make) -> None:
    """Strict JSON, without NaN or Infinity, and back."""
    found = evidence() if kind == "good" else broken(kind, evidence)
    for one in judge([Rule.model_validate(rule) for rule in LENIENT], [found]):
        text = json.dumps(one.to_dict(), allow_nan=False)
        assert Verdict.from_dict(json.loads(text)) == one
