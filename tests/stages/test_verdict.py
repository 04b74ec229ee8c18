"""From a measure and a limit to a word and a sentence; measuring is tested in test_gate.py."""

from __future__ import annotations

import math
from decimal import ROUND_CEILING, ROUND_FLOOR
from typing import Any

import pytest

from kdpipe.stages.gate.rules import Rule
from kdpipe.stages.gate.verdict import Measure, Verdict, count, decide, overall, show

RULES = {"max": "latency_mean_ms", "min": "speedup"}


def judged(name: str, limit: float, low: float = 2.0, high: float = 3.0) -> Verdict:
    """The verdict on a value of 2.5 with bounds, under a rule with one limit."""
    rule = Rule.model_validate({"metric": RULES[name], name: limit})
    measure = Measure("value", "x", 2.5, low, high, 10, "processes", 40)
    return decide(rule, "openvino-int8", rule.metric, measure)


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
