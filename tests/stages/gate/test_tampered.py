"""Evidence that contradicts itself, or that no measurement gives, never passes, nor breaks down."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from kdpipe.stages.evidence import Decisions, Evidence, Timing
from kdpipe.stages.gate.judge import Verdict, judge
from kdpipe.stages.gate.rules import Rule

Make = Callable[..., Evidence]
Judge = Callable[..., Verdict]

BY_CLASS: list[dict[str, Any]] = [
    {"metric": "worst_class_drop", "max": 0.9},
    {"metric": "macro_f1", "min": 0.001},
    {"metric": "macro_f1", "max-degradation": 0.9},
    {"metric": "ece", "max": 0.9},
]
ROBUST: list[dict[str, Any]] = [
    {"metric": "robustness", "min": 0.001},
    {"metric": "robustness", "max-degradation": 0.9},
]
FAST: list[dict[str, Any]] = [
    {"metric": "latency_mean_ms", "max": 1e9},
    {"metric": "latency_p50_ms", "max": 1e9},
    {"metric": "speedup", "min": 1e-6},
]


def refused(found: Verdict, why: str) -> None:
    """That a verdict is a FAIL for want of a measurement, and says why."""
    assert (found.verdict, found.measured) == ("FAIL", None), found.reason
    assert why in found.reason


@pytest.mark.parametrize("rule", BY_CLASS)
@pytest.mark.parametrize("name", ["prediction", "teacher_prediction", "confidence"])
def test_decisions_of_fewer_samples_fail(
    name: str, rule: dict[str, Any], evidence: Make, verdict: Judge
) -> None:
    """Labels of all 400 samples, and one of the other columns a sample short."""
    found = evidence(2, 2, 400)
    assert found.decisions is not None
    short = getattr(found.decisions, name)[:399]
    cut = replace(found, decisions=replace(found.decisions, **{name: short}))

    refused(verdict(rule, cut), f"400 scores, but 399 decisions ({name})")


@pytest.mark.parametrize("rule", BY_CLASS)
def test_labels_that_are_no_class_fail(
    rule: dict[str, Any], evidence: Make, verdict: Judge
) -> None:
    """A class beyond the named ones is not left out of the worst class in silence."""
    found = evidence(2, 2, 400)
    assert found.decisions is not None
    labels = found.decisions.labels
    wrong = {"labels": (-1, 4), "prediction": (4,), "teacher_prediction": (4,)}
    for name, number in [(name, number) for name, those in wrong.items() for number in those]:
        column = {name: np.where(labels == 3, number, labels)}
        odd = replace(found, decisions=replace(found.decisions, **column))
        refused(verdict(rule, odd), "are not numbers of its 4 classes")


@pytest.mark.parametrize("sure", [np.inf, 1.5, -0.5])
def test_a_confidence_that_is_no_probability_fails(
    sure: float, evidence: Make, verdict: Judge
) -> None:
    """One of 400 is enough."""
    found = evidence(2, 2, 400)
    assert found.decisions is not None
    confidence = found.decisions.confidence.copy()
    confidence[7] = sure
    odd = replace(found, decisions=replace(found.decisions, confidence=confidence))

    refused(verdict(BY_CLASS[3], odd), "confidences are not from 0 to 1")


@pytest.mark.parametrize("rule", [*BY_CLASS, *ROBUST])
@pytest.mark.parametrize("groups", [np.arange(399), np.arange(400).reshape(-1, 1)])
def test_groups_of_other_samples_fail_wherever_they_are_used(
    groups: Any, rule: dict[str, Any], evidence: Make, verdict: Judge
) -> None:
    """Also where the scores themselves are not what is judged."""
    found = evidence(2, 2, 400, robustness={"blur": (np.ones(50), np.ones(50))}, groups=groups)

    refused(verdict(rule, found), "but groups of")


@pytest.mark.parametrize("rule", ROBUST)
def test_corrupted_scores_that_make_up_for_one_another_fail(
    rule: dict[str, Any], evidence: Make, verdict: Judge
) -> None:
    """2 under blur and 0 under JPEG have the mean of a model that is always right."""
    ones = np.ones(50, np.float32)
    found = evidence(robustness={"blur": (2 * ones, ones), "jpeg": (0 * ones, ones)})
    square = evidence(robustness={"blur": (np.ones((50, 2)), np.ones((50, 2)))})

    refused(verdict(rule, found), "scores of corrupted samples are not from 0 to 1")
    refused(verdict(rule, square), "not all corruptions were scored on the same samples")


@pytest.mark.parametrize("rule", FAST)
@pytest.mark.parametrize("kind", ["copies", "frozen", "square", "denormal", "endless"])
def test_times_that_nobody_measured_fail(
    kind: str, rule: dict[str, Any], evidence: Make, verdict: Judge
) -> None:
    """Ten copies of a process are one process; without any spread they would prove everything."""
    found = evidence(n=4)
    once = found.latency["artifact"].processes[0]
    times, why = {
        "copies": ((*found.latency["artifact"].processes[1:], once, once), "the very same times"),
        "frozen": ((np.ones(50),) * 10, "copies, or a clock that is too coarse"),
        "square": ((np.ones((5, 2)),) * 10, "latencies of the artifact are missing"),
        "denormal": ((np.full(5, 5e-324),) * 10, "not above 0"),
        "endless": ((np.full(5, 1e300),) * 10, "infinite"),
    }[kind]
    odd = replace(found, latency={**found.latency, "artifact": Timing(times)})

    refused(verdict(rule, odd), why)


def test_values_that_were_not_counted_fail(evidence: Make, verdict: Judge) -> None:
    """No bytes, no operations, or more than all of them in int8: none is a measurement."""
    for name, value in (("size_bytes", 0.0), ("macs", 0.0), ("parameters", 0.0)):
        found = evidence(values={**evidence().values, name: value})
        refused(verdict({"metric": name, "max": 1e9}, found), f"{name} is 0")
    more = evidence(values={**evidence().values, "int8_fraction": 7.0})
    refused(verdict({"metric": "int8_fraction", "min": 0.5}, more), "int8_fraction is 7")
    none = evidence(values={**evidence().values, "int8_fraction": 0.0})
    assert verdict({"metric": "int8_fraction", "min": 0.5}, none).measured == 0


@pytest.mark.parametrize("energy", [0.0, -5.0])
def test_energy_that_was_not_seen_fails(energy: float, evidence: Make, verdict: Judge) -> None:
    """A sensor that stands still keeps every limit."""
    found = evidence(energy_mj={"artifact": np.full(5, energy)})

    refused(verdict({"metric": "energy_mj", "max": 4}, found), "no more energy than idling")


@pytest.mark.parametrize("size", [-1.0, 0.0, np.nan, np.inf])
def test_a_size_of_the_baseline_that_is_none_fails(
    size: float, evidence: Make, baseline: Callable[..., Any], verdict: Judge
) -> None:
    """Next to less than nothing everything is smaller."""
    rule = {"metric": "size_bytes", "percent-max-degradation": 1.0, "against": "baseline"}
    past = baseline(evidence(), values={"size_bytes": size})

    refused(verdict(rule, evidence(), past), "the baseline has no size_bytes")


@pytest.mark.parametrize("limit", ["max-degradation", "percent-max-degradation"])
@pytest.mark.parametrize("against", ["teacher", "control", "fp32", "baseline"])
def test_nothing_is_lost_against_a_reference_that_is_never_right(
    against: str,
    limit: str,
    evidence: Make,
    baseline: Callable[..., Any],
    verdict: Judge,
) -> None:
    """An artifact that is never right either is not good enough for that."""
    none = np.zeros(400, np.float32)
    references = {"control": none, "fp32": none}
    found = evidence(0, 0, 400, score=none, teacher_score=none, references=references)
    rule = {"metric": "accuracy", limit: 0.01, "against": against}

    refused(verdict(rule, found, baseline(found)), "scores 0, from which nothing can be lost")
    other = baseline(found, scores=None)
    refused(verdict({**rule, "against": "baseline"}, found, other), "scores 0")


def test_a_number_of_many_digits_can_be_said(evidence: Make, verdict: Judge) -> None:
    """A sentence never breaks down, whatever it has to show."""
    heavy = evidence(memory={"artifact": np.array([1.1e40, 1e40, 1.2e40])})

    assert verdict({"metric": "memory_bytes", "max": 1e9}, heavy).verdict == "FAIL"
    assert verdict({"metric": "memory_bytes", "max": 1e300}, heavy).verdict == "PASS"


@pytest.mark.parametrize(("right", "word"), [(0.25, "FAIL"), (0.40, "PASS")])
def test_a_teacher_that_guesses_proves_nothing(evidence: Any, right: float, word: str) -> None:
    """An artifact that does exactly what such a teacher does would pass all comparisons with it."""
    rng, n = np.random.default_rng(5), 2000
    labels = rng.integers(0, 4, n)
    answers = np.where(rng.random(n) < (right - 0.25) / 0.75, labels, rng.integers(0, 4, n))
    scores, sure = (answers == labels).astype(np.float32), np.full(n, 0.5, np.float32)
    alike = evidence(
        score=scores,
        teacher_score=scores,
        agreement=np.ones(n, np.float32),
        decisions=Decisions(labels, answers, answers, sure, sure),
    )

    (found,) = judge(
        [Rule.model_validate({"metric": "accuracy", "max-degradation": 0.01})], [alike]
    )

    assert found.verdict == word
    assert ("of answers given without looking" in found.reason) == (word == "FAIL")
