"""Each metric against each reference: what passes, what fails, and in which words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from kdpipe.stages.evidence import Evidence, Timing
from kdpipe.stages.gate.judge import Verdict, judge
from kdpipe.stages.gate.metrics import METRICS
from kdpipe.stages.gate.rules import DEFAULT_RULES, Rule

Judge = Callable[..., Verdict]


@pytest.mark.parametrize(
    ("rule", "word"),
    [
        ({"metric": "accuracy", "min-improvement": 0.01, "against": "control"}, "PASS"),
        ({"metric": "accuracy", "min-improvement": 0.05, "against": "control"}, "FAIL"),
        ({"metric": "accuracy", "min-improvement": 0.025, "against": "control"}, "UNDECIDED"),
        ({"metric": "accuracy", "max-degradation": 0.02, "against": "fp32"}, "PASS"),
        ({"metric": "accuracy", "percent-max-degradation": 0.1, "against": "fp32"}, "FAIL"),
        ({"metric": "agreement", "max-degradation": 0.01}, "PASS"),
        ({"metric": "worst_class_drop", "max": 0.05}, "PASS"),
        ({"metric": "worst_class_drop", "max": 0.0001}, "UNDECIDED"),
        ({"metric": "macro_f1", "min": 0.95}, "PASS"),
        ({"metric": "macro_f1", "min": 0.999}, "FAIL"),
        ({"metric": "macro_f1", "max-degradation": 0.02}, "PASS"),
        ({"metric": "ece", "max": 0.1}, "PASS"),
        ({"metric": "ece", "max": 0.001}, "FAIL"),
        ({"metric": "robustness", "min": 0.9}, "PASS"),
        ({"metric": "robustness", "max-degradation": 0.05}, "PASS"),
        ({"metric": "latency_mean_ms", "percent-max-degradation": 5, "against": "fp32"}, "PASS"),
        ({"metric": "latency_mean_ms", "min-speedup": 5}, "PASS"),
        ({"metric": "latency_mean_ms", "min-speedup": 7}, "FAIL"),
        ({"metric": "latency_p90_ms", "min-speedup": 1.8, "against": "fp32"}, "PASS"),
        ({"metric": "latency_p90_ms", "min-speedup": 2.5, "against": "fp32"}, "FAIL"),
        ({"metric": "load_ms", "max": 30}, "PASS"),
        ({"metric": "load_ms", "max": 10}, "FAIL"),
        ({"metric": "first_ms", "max": 5}, "PASS"),
        ({"metric": "memory_bytes", "percent-max-degradation": 1}, "PASS"),
        ({"metric": "gpu_memory_bytes", "max": 2e8}, "PASS"),
        ({"metric": "energy_mj", "max": 4}, "PASS"),
        ({"metric": "energy_mj", "max": 2}, "FAIL"),
        ({"metric": "energy_mj", "percent-max-degradation": 1}, "PASS"),
        ({"metric": "macs", "max": 1e6}, "PASS"),
        ({"metric": "macs", "max": 1e5}, "FAIL"),
        ({"metric": "parameters", "percent-max-degradation": 1}, "PASS"),
    ],
)
def test_a_metric_is_judged_by_its_bounds(
    rule: dict[str, Any], word: str, evidence: Callable[..., Evidence], verdict: Judge
) -> None:
    """No loss, 3 points more than the control, 6 times faster than the teacher, a tenth of it."""
    found = verdict(rule, evidence())

    assert found.verdict == word, found.reason
    assert (found.n > 1) == bool(found.counted)
    assert (found.confidence is None) == (not found.counted)


def test_a_speedup_and_a_growth_of_time_are_one(
    evidence: Callable[..., Evidence], verdict: Judge
) -> None:
    """A ratio of 2 is a latency 50 % below that of the twin, with mirrored bounds."""
    ratio = verdict({"metric": "speedup", "min": 1, "against": "fp32"}, evidence())
    growth = verdict(
        {"metric": "latency_mean_ms", "percent-max-degradation": 5, "against": "fp32"}, evidence()
    )

    assert growth.measured == pytest.approx(100 * (1 / (ratio.measured or 0) - 1))
    assert growth.low == pytest.approx(100 * (1 / (ratio.high or 0) - 1))
    assert growth.high == pytest.approx(100 * (1 / (ratio.low or 0) - 1))
    assert (growth.unit, growth.verdict) == ("%", ratio.verdict)


def test_the_noise_floor_of_a_speedup_is_that_of_the_time(
    evidence: Callable[..., Evidence], timing: Callable[..., Timing], verdict: Judge
) -> None:
    """A time that may be 1.4 times as long makes a speedup of 2 one of 2 / 1.4."""
    found = evidence(latency={**evidence().latency, "again": timing(1.4, 3)})
    rule = {"metric": "latency_mean_ms", "against": "fp32"}
    growth = verdict({**rule, "percent-max-degradation": 5}, found)
    ratio = verdict({**rule, "min-speedup": 2}, found)
    noise = (growth.floor or 0) / 100

    assert noise == pytest.approx(0.4, abs=0.03)
    assert 2 - (ratio.floor or 0) == pytest.approx(2 / (1 + noise))


def test_a_percentile_is_compared_process_by_process(
    evidence: Callable[..., Evidence], timing: Callable[..., Timing], verdict: Judge
) -> None:
    """Where too few iterations tell the percentile at all, no ratio of it is claimed."""
    few = {role: timing(1.0, seed, each=5) for role, seed in (("artifact", 1), ("fp32", 2))}
    rule = {"metric": "latency_p95_ms", "min-speedup": 1.0, "against": "fp32"}
    found = verdict(rule, evidence(latency=few))

    assert (found.verdict, found.n, found.needed) == ("UNDECIDED", 50, 59)
    assert "50 iterations, too few for bounds" in found.reason
    assert "at least 59 iterations are needed" in found.reason


# --- worst parts --------------------------------------------------------------------------------


def test_the_worst_class_is_named(evidence: Callable[..., Evidence], verdict: Judge) -> None:
    """A class that loses a tenth of its samples fails, however well the others do."""
    found = evidence(0, 0)
    assert found.decisions is not None
    prediction = found.decisions.prediction.copy()
    owls = np.flatnonzero(found.decisions.labels == 2)[:50]
    prediction[owls] = 0
    bad = replace(found, decisions=replace(found.decisions, prediction=prediction))
    judged = verdict({"metric": "worst_class_drop", "max": 0.02}, bad)

    assert (judged.verdict, judged.measured) == ("FAIL", pytest.approx(0.1))
    assert judged.reason.startswith("largest drop of a class against the teacher, that of 'owl',")
    assert "2,000 samples, 4 classes" in judged.reason


def test_a_class_with_too_few_samples_is_undecided_and_named(
    evidence: Callable[..., Evidence], verdict: Judge
) -> None:
    """Twenty samples without a loss may hide a drop of 14 points; none at all, anything."""
    found = evidence(0, 0)
    assert found.decisions is not None
    rule = {"metric": "worst_class_drop", "max": 0.05}
    labels = found.decisions.labels.copy()
    labels[np.flatnonzero(labels == 3)[20:]] = 0
    same = dict.fromkeys(("prediction", "teacher_prediction"), labels)
    few = verdict(rule, replace(found, decisions=replace(found.decisions, labels=labels, **same)))
    absent = verdict(rule, replace(found, classes=("cat", "dog", "owl", "yak", "zebu")))

    assert (few.verdict, absent.verdict) == ("UNDECIDED", "UNDECIDED")
    assert "class 'yak' has 20 of the about 59 samples that it takes" in few.reason
    assert "class 'zebu' has too few samples to say anything" in absent.reason
    assert (absent.high, absent.power) == (None, 0.0)


def test_a_class_that_fails_beside_an_absent_one_has_its_bound(
    evidence: Callable[..., Evidence], verdict: Judge
) -> None:
    """A class without samples takes away the upper bound, not the one that proves the failure."""
    found = evidence(0, 0)
    assert found.decisions is not None
    prediction = np.where(found.decisions.labels == 2, 0, found.decisions.labels)
    bad = replace(found, decisions=replace(found.decisions, prediction=prediction))
    judged = verdict(
        {"metric": "worst_class_drop", "max": 0.05},
        replace(bad, classes=("cat", "dog", "owl", "yak", "zebu")),
    )

    assert (judged.verdict, judged.high) == ("FAIL", None)
    assert "1.0000 (95 % lower bound 0.9" in judged.reason
    assert ", no upper one, 2,000 samples, 5 classes) breaks the limit" in judged.reason


def test_the_worst_group_is_judged_on_its_own_samples(
    evidence: Callable[..., Evidence], verdict: Judge
) -> None:
    """One hospital of four loses 8 % of its samples; without groups there is nothing to judge."""
    groups = np.arange(2000) // 500
    found = verdict({"metric": "worst_group_drop", "max": 0.02}, evidence(40, 0, groups=groups))
    none = verdict({"metric": "worst_group_drop", "max": 0.02}, evidence())
    alone = verdict({"metric": "worst_group_drop", "max": 0.02}, evidence(groups=np.arange(2000)))

    assert (found.verdict, found.measured) == ("FAIL", pytest.approx(0.08))
    assert "that of 'group 0'," in found.reason
    assert none.reason == "worst_group_drop was not measured: the data has no groups"
    assert "of 2,000 groups over 100 say nothing" in alone.reason


def test_corrupted_samples_are_counted_in_their_groups(
    evidence: Callable[..., Evidence], verdict: Judge
) -> None:
    """500 samples of 200 clips are no more than the clips that they come from."""
    rule = {"metric": "robustness", "max-degradation": 0.3}
    found = verdict(rule, evidence(groups=np.arange(2000) // 10))

    assert found.counted == "groups"
    assert 150 < found.n <= 200
    assert verdict(rule, evidence()).n == 500


# --- agreement ----------------------------------------------------------------------------------


def answers(
    teacher: float, student: float, common: float, n: int, rng: np.random.Generator
) -> dict[str, Any]:
    """Scores and agreement of two networks; a share `common` of samples is hard for both alike.

    On those the same draw decides for both, on the others draws of their own; when both err they
    say the same in half of the cases.
    """
    draw = rng.random(n)
    other = np.where(rng.random(n) < common, draw, rng.random(n))
    right, own = draw < teacher, other < student
    same = (right & own) | (~right & ~own & (rng.random(n) < 0.5))
    names = ("teacher_score", "score", "agreement")
    return dict(zip(names, (x.astype(np.float32) for x in (right, own, same)), strict=True))


AGREES = DEFAULT_RULES[1]


@pytest.mark.parametrize("accuracy", [0.6, 0.75, 0.9, 0.95, 0.99])
def test_good_students_agree_enough_with_any_teacher(
    accuracy: float, evidence: Callable[..., Evidence]
) -> None:
    """As good as a teacher of 60 % to 99 %, with half of the errors in common: never refused."""
    rng = np.random.default_rng(int(1000 * accuracy))
    words = [
        judge([AGREES], [evidence(**answers(accuracy, accuracy, 0.5, 2000, rng))])[0].verdict
        for _ in range(40)
    ]

    assert words.count("PASS") >= 38
    assert "FAIL" not in words


@pytest.mark.parametrize("accuracy", [0.6, 0.75, 0.9])
def test_another_network_of_the_same_accuracy_is_not_let_through(
    accuracy: float, evidence: Callable[..., Evidence]
) -> None:
    """Right where the teacher is wrong as far as that goes: the same score, another model."""
    rng = np.random.default_rng(3)
    words = []
    for _ in range(20):
        right = rng.permutation(2000) < 2000 * accuracy
        wrong_first = np.argsort(right + 0.5 * rng.random(2000))
        own = np.zeros(2000, bool)
        own[wrong_first[: int(2000 * (accuracy - 0.02))]] = True
        scores = {"teacher_score": right, "score": own, "agreement": right & own}
        scores = {name: each.astype(np.float32) for name, each in scores.items()}
        words.append(judge([AGREES], [evidence(**scores)])[0].verdict)

    assert "PASS" not in words


def test_a_shortfall_is_no_surer_than_the_agreement(
    evidence: Callable[..., Evidence], verdict: Judge
) -> None:
    """A teacher of 50 %, agreed with just where it is right: the delta method sees no spread."""
    right = (np.arange(2000) % 2).astype(np.float32)
    found = evidence(score=right, teacher_score=right, agreement=right, decisions=None)
    shortfall = verdict(AGREES.as_dict(), found)
    share = verdict({"metric": "agreement", "min": 0.4}, found)

    assert shortfall.low == pytest.approx(0.25 - (share.high or 0))
    assert shortfall.high == pytest.approx(0.25 - (share.low or 0))


def test_a_shortfall_carries_the_doubt_of_the_teachers_score(
    evidence: Callable[..., Evidence], verdict: Judge
) -> None:
    """90 % right, and 90 % agreed with, on other samples: var(2 p t - s), written out."""
    teacher, same = (np.ones(2000, np.float32) for _ in range(2))
    teacher[:200], same[200:400] = 0, 0
    found = evidence(score=same, teacher_score=teacher, agreement=same, decisions=None)
    shortfall = verdict(AGREES.as_dict(), found)
    reach = 1.645 * float(np.std(2 * 0.9 * teacher - same)) / 2000**0.5

    assert shortfall.measured == pytest.approx(0.81 - 0.9)
    assert shortfall.high == pytest.approx(0.81 - 0.9 + reach, rel=0.02)
    assert shortfall.low == pytest.approx(0.81 - 0.9 - reach, rel=0.02)


def test_a_shortfall_is_planned_by_its_own_spread(
    evidence: Callable[..., Evidence], verdict: Judge
) -> None:
    """90 % right and 80.5 % agreed with: (1.645 + 0.842)^2 var(2 p t - s) / 0.005^2."""
    teacher, same = (np.ones(2000, np.float32) for _ in range(2))
    teacher[:200], same[200:590] = 0, 0
    found = evidence(score=same, teacher_score=teacher, agreement=same, decisions=None)
    shortfall = verdict(AGREES.as_dict(), found)

    assert shortfall.verdict == "UNDECIDED"
    expected = 2.4865**2 * float(np.var(2 * 0.9 * teacher - same)) / 0.005**2
    assert shortfall.needed == pytest.approx(expected, rel=1e-3)


def test_a_student_that_is_always_right_agrees_enough(
    evidence: Callable[..., Evidence], verdict: Judge
) -> None:
    """Without a single error 299 samples prove it, as they prove the accuracy."""
    rule = AGREES.as_dict()

    assert verdict(rule, evidence(0, 0, n=298)).verdict == "UNDECIDED"
    assert verdict(rule, evidence(0, 0, n=299)).verdict == "PASS"


# --- words --------------------------------------------------------------------------------------


def test_a_failed_score_says_which_hop_lost_it(
    evidence: Callable[..., Evidence], verdict: Judge
) -> None:
    """The hop that is to blame ends the sentence of a score that fails, and of no other."""
    found = evidence(200, 0, blame="lost at: onnx int8")

    assert verdict({"metric": "score", "min": 0.99}, found).reason.endswith("; lost at: onnx int8")
    assert "lost at" not in verdict({"metric": "score", "min": 0.1}, found).reason
    assert "lost at" not in verdict({"metric": "agreement", "min": 0.99}, found).reason


def test_advice_is_judged_and_marked(evidence: Callable[..., Evidence], verdict: Judge) -> None:
    """A rule that is not required gets its verdict; what it compares with is told."""
    found = verdict({"metric": "speedup", "min": 9, "required": False}, evidence())

    assert (found.verdict, found.required, found.against) == ("FAIL", False, "teacher")
    assert verdict({"metric": "size_bytes", "max": 9}, evidence()).against == ""


def test_every_sentence_has_unit_bounds_and_count(evidence: Callable[..., Evidence]) -> None:
    """Whatever is judged, what stands behind it follows, or that it is exact."""
    asked = [
        {"metric": metric, limit: 0.5, "against": (references or ("teacher",))[0]}
        for metric, about in METRICS.items()
        for limit, references in about.limits.items()
        if metric not in ("miou", "worst_group_drop")
    ]
    rules = [Rule.model_validate(rule) for rule in asked]
    found = judge(rules, [evidence(n=400)])

    assert len(found) == len(rules)
    for one in found:
        assert "bounds" in one.reason or "(exact)" in one.reason, one.reason
        assert one.power is not None
