"""From a measure and a limit to a word and a sentence; measuring is tested in test_gate.py."""

from __future__ import annotations

import math
from decimal import ROUND_CEILING, ROUND_FLOOR
from typing import Any

import numpy as np
import pytest

from kdpipe.stages.evidence import Evidence
from kdpipe.stages.gate.measure import Case, Measure
from kdpipe.stages.gate.rules import Rule
from kdpipe.stages.gate.verdict import Verdict, count, decide, overall, show

RULES = {"max": "latency_mean_ms", "min": "speedup"}
NOBODY = np.ones(1, np.float32)
EVIDENCE = Evidence("openvino-int8", "openvino", "int8", "accuracy", NOBODY, NOBODY, NOBODY)


def judged(
    name: str, limit: float, low: float = 2.0, high: float = 3.0, floor: float = 0.0
) -> Verdict:
    """The verdict on a value of 2.5 with bounds, under a rule with one limit."""
    rule = Rule.model_validate({"metric": RULES[name], name: limit})
    measure = Measure("value", "x", 2.5, low, high, 10, "processes", 40, floor=floor)
    return decide(Case(rule, EVIDENCE, None, rule.confidence), rule.metric, measure)


def regressed(
    limit: float, low: float, high: float, floor: float = 0.0, confidence: float = 0.995
) -> Verdict:
    """The verdict on a loss against the baseline."""
    rule = Rule.model_validate(
        {"metric": "latency_mean_ms", "percent-max-degradation": limit, "against": "baseline"}
    )
    point = (low + high) / 2 if math.isfinite(low + high) else 0.0
    measure = Measure("growth", "%", point, low, high, 10, "processes", 10, floor=floor)
    return decide(Case(rule, EVIDENCE, None, confidence), rule.metric, measure)


@pytest.mark.parametrize(
    ("name", "limit", "word"),
    [
        ("max", 3.1, "PASS"),
        ("max", 3.0, "PASS"),
        ("max", 2.9, "UNDECIDED"),
        ("max", 2.0, "UNDECIDED"),
        ("max", 1.9, "FAIL"),
        ("min", 1.9, "PASS"),
        ("min", 2.0, "PASS"),
        ("min", 2.1, "UNDECIDED"),
        ("min", 3.0, "UNDECIDED"),
        ("min", 3.1, "FAIL"),
    ],
)
def test_the_bounds_decide(name: str, limit: float, word: str) -> None:
    """Bounds of 2 and 3: the one that hurts has to keep the limit, the other to break it."""
    assert judged(name, limit).verdict == word


@pytest.mark.parametrize("name", RULES)
def test_without_bounds_nothing_is_decided(name: str) -> None:
    """Infinite bounds pass nothing and fail nothing, and become null."""
    found = judged(name, 2.5, -math.inf, math.inf)
    assert (found.verdict, found.low, found.high) == ("UNDECIDED", None, None)


def test_only_doubt_asks_for_more() -> None:
    """A decided verdict needs no further processes."""
    assert judged("max", 2.9).needed == 40
    assert judged("max", 9.0).needed is None


@pytest.mark.parametrize(
    ("name", "limit", "floor", "word"),
    [
        ("max", 1.9, 0.05, "FAIL"),
        ("max", 1.9, 0.2, "UNDECIDED"),
        ("max", 3.0, 0.2, "PASS"),
        ("min", 3.1, 0.05, "FAIL"),
        ("min", 3.1, 0.2, "UNDECIDED"),
        ("min", 2.0, 0.2, "PASS"),
    ],
)
def test_a_failure_is_larger_than_the_noise_floor(
    name: str, limit: float, floor: float, word: str
) -> None:
    """What the same file differs from itself by fails nobody; it does not help to pass, either."""
    found = judged(name, limit, floor=floor)

    assert (found.verdict, found.floor) == (word, floor)
    said = {"FAIL": "by more than the noise floor of 0.05x", "PASS": "keeps the limit"}
    assert said.get(word, "the same file measured twice differs by up to 0.20x") in found.reason


@pytest.mark.parametrize(
    ("limit", "low", "high", "floor", "word"),
    [
        (5.0, -3.0, 4.0, 0.0, "PASS"),
        (5.0, 2.0, 9.0, 0.0, "PASS"),
        (5.0, 5.1, 9.0, 0.0, "FAIL"),
        (0.0, 0.1, 9.0, 0.0, "FAIL"),
        (5.0, 5.1, 9.0, 6.0, "PASS"),
        (5.0, 6.1, 9.0, 6.0, "FAIL"),
        (5.0, -math.inf, math.inf, 0.0, "UNDECIDED"),
    ],
)
def test_a_loss_against_the_baseline_has_to_be_proven(
    limit: float, low: float, high: float, floor: float, word: str
) -> None:
    """It fails beyond limit and noise floor, passes without proof, and needs bounds at all."""
    found = regressed(limit, low, high, floor)

    assert (found.verdict, found.family, found.against) == (word, "regression", "baseline")
    assert not found.note


@pytest.mark.parametrize(("high", "better"), [(-5.1, True), (-4.9, False), (2.0, False)])
def test_what_became_much_better_asks_for_an_update(high: float, better: bool) -> None:
    """Beyond limit and noise floor in the other direction: it passes, and says what to do."""
    found = regressed(5.0, -9.0, high)

    assert found.verdict == "PASS"
    assert bool(found.note) == better
    assert ("--update-baseline" in found.reason) == better


def test_the_sentence_of_a_regression() -> None:
    """The confidence of its bounds is shown as it was used, and a PASS claims no proof."""
    found = regressed(5.0, 2.0, 9.0, floor=6.0, confidence=1 - 0.005 / 3)

    assert found.reason == (
        "growth 5.50 % (99.83 % bounds 2.00 % to 9.00 %, 10 processes) is not proven to break the "
        "limit of at most 6.00 %, the noise floor, as it is above 5.00 %"
    )
    assert found.confidence == pytest.approx(0.99833, abs=1e-5)


@pytest.mark.parametrize(
    ("n", "counted", "expected"),
    [(1, "processes", "1 process"), (2000, "samples", "2,000 samples"), (1, "samples", "1 sample")],
)
def test_counting_in_words(n: int, counted: str, expected: str) -> None:
    """One is singular, thousands are grouped."""
    assert count(n, counted) == expected


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["PASS", "PASS"], "PASS"),
        (["PASS", "UNDECIDED"], "UNDECIDED"),
        (["UNDECIDED", "FAIL", "PASS"], "FAIL"),
        ([], "UNDECIDED"),
    ],
)
def test_the_worst_verdict_counts(words: list[str], expected: str) -> None:
    """A failure outweighs doubt, doubt outweighs a pass, and nothing judged is not a pass."""
    one = judged("max", 1.0).to_dict()
    assert overall([Verdict.from_dict({**one, "verdict": word}) for word in words]) == expected


def test_advice_does_not_count() -> None:
    """A rule that is not required neither fails nor passes anything."""
    one = judged("max", 1.0).to_dict()
    words = [("FAIL", False), ("PASS", True)]
    verdicts = [Verdict.from_dict({**one, "verdict": w, "required": r}) for w, r in words]

    assert overall(verdicts) == "PASS"
    assert overall(verdicts[:1]) == "UNDECIDED"


def test_older_verdicts_can_be_read() -> None:
    """What an earlier version wrote lacks the newer fields."""
    old = judged("max", 1.0).to_dict()
    new = ("required", "against", "confidence", "family", "standing", "floor", "power", "note")
    found = Verdict.from_dict({k: v for k, v in old.items() if k not in new})

    assert (found.required, found.family, found.standing) == (True, "proof", False)


@pytest.mark.parametrize(
    ("value", "unit", "limit", "rounding", "expected"),
    [
        (0.00001, "fraction", 0.01, ROUND_CEILING, "0.0001"),
        (-0.00001, "fraction", 0.01, ROUND_CEILING, "-0.00001"),
        (0.0, "fraction", 0.01, ROUND_CEILING, "0.0000"),
        (0.0100001, "fraction", 0.01, ROUND_CEILING, "0.0101"),
        (0.010000001, "fraction", 0.01, ROUND_FLOOR, "0.010000001"),
        (4.9999, "x", 5.0, ROUND_FLOOR, "4.99x"),
        (2.0004, "ms", 2.0, ROUND_FLOOR, "2.0004 ms"),
        (2.0, "ms", 2.0, ROUND_FLOOR, "2.000 ms"),
        (0.1 + 0.2, "fraction", 0.5, ROUND_CEILING, "0.3000"),
        (1234567.0, "bytes", 1e6, ROUND_CEILING, "1,234,567 bytes"),
    ],
)
def test_numbers_are_never_shown_better_than_they_are(
    value: float, unit: Any, limit: float, rounding: str, expected: str
) -> None:
    """A loss is never shown as 0, nor a value as equal to a limit that it is not equal to."""
    assert show(value, unit, limit, rounding) == expected
