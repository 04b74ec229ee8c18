"""The summary: the verdict first, the worst rule first, n and bounds everywhere, any size."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
from markdown_it import MarkdownIt

from kdpipe.pipeline.ci import comment, markdown
from kdpipe.pipeline.ci.context import Context

SKIPPED = {"id": "tensorrt-int8", "target": "tensorrt", "reason": "no GPU", "fix": "buy one"}


def test_the_whole_summary(judged: Any, run_of: Any, context: Context) -> None:
    """Verdict and flip, the one sentence, failures first, what was not gated, details, places."""
    verdicts = [
        judged("a-fp32", measured=0.001, low=-0.001, high=0.003),
        judged("b-int8", "FAIL", reason="drop 0.0209 breaks the limit"),
        judged(
            "b-int8",
            "UNDECIDED",
            required=False,
            rule={"metric": "latency_p95_ms", "max-degradation": None, "max": 2.0},
            measured=1.9,
            low=1.8,
            high=2.1,
            limit=2.0,
            unit="ms",
            n=10,
            counted="processes",
            reason="too close",
        ),
    ]
    policy = [verdicts[0]["rule"]]
    results = run_of(*verdicts, skipped=[SKIPPED], gate={"policy": policy})

    text = markdown.render(results, replace(context, previous="passed", report="https://x.y/r"))

    assert text.splitlines() == [
        "### kdpipe: FAILED, 1 of 2 rules failed (was: passed)",
        "",
        "**b-int8**: drop 0.0209 breaks the limit (kdpipe.yaml, line 14)",
        "",
        "| gate | artifact | rule | measured | bounds | limit | n |",
        "|---|---|---|---|---|---|---|",
        "| **FAIL** | b-int8 | accuracy max-degradation | 0.0209 | 0.0141 to 0.0277 (95 %) "
        "| at most 0.0100 | 5,000 samples |",
        "| warning | b-int8 | latency_p95_ms max | 1.900 ms | 1.800 ms to 2.100 ms (95 %) "
        "| at most 2.000 ms | 10 processes |",
        "| pass | a-fp32 | accuracy max-degradation | 0.0010 | -0.0010 to 0.0030 (95 %) "
        "| at most 0.0100 | 5,000 samples |",
        "",
        "Advisory rules that do not hold (`required: false`):",
        "",
        "- **b-int8: latency_p95_ms max**: too close",
        "",
        "Not gated:",
        "",
        "- **tensorrt-int8: accuracy max-degradation**: no GPU; buy one",
        "",
        "<details><summary>Reasons, and what was measured of each artifact</summary>",
        "",
        "- **b-int8: accuracy max-degradation**: drop 0.0209 breaks the limit",
        "",
        "| artifact | accuracy | drop | samples | mean latency | speedup | processes | size |",
        "|---|---|---|---|---|---|---|---|",
        "| a-fp32 | 0.7603 (0.7500 to 0.7712) | 0.0209 (0.0141 to 0.0277) | 5,000 "
        "| 12.100 ms (12.000 to 12.250) | 3.40x (3.31 to 3.52) | 10 | 120.6 KiB |",
        "| b-int8 | 0.7603 (0.7500 to 0.7712) | 0.0209 (0.0141 to 0.0277) | 5,000 "
        "| 12.100 ms (12.000 to 12.250) | 3.40x (3.31 to 3.52) | 10 | 120.6 KiB |",
        "",
        "In brackets: one-sided 95 % bounds. Drop and speedup: against the teacher.",
        "",
        "</details>",
        "",
        "[Full report](<https://x.y/r>)"
        " | rules in ci/kdpipe.yaml | commit 0123456789 | measured on AMD EPYC | kdpipe 0.1.0",
    ]


@pytest.mark.parametrize(
    ("changes", "title"),
    [
        ({}, "kdpipe: PASSED, 1 of 1 rules passed"),
        ({"word": "UNDECIDED"}, "kdpipe: FAILED, not enough evidence, 1 of 1 rules undecided"),
        (
            {"failed": [{"step": "teacher", "error": "no", "exit_code": 1}]},
            "kdpipe: FAILED, 1 step broke",
        ),
        ({"verdict": "FAILED", "exit_code": 3}, "kdpipe: FAILED"),
    ],
)
def test_titles(
    changes: dict[str, Any], title: str, judged: Any, run_of: Any, context: Context
) -> None:
    """Each way to end has its own first line."""
    results = run_of(judged("a", changes.pop("word", "PASS")), **changes)

    assert markdown.render(results, context).splitlines()[0] == f"### {title}"


@pytest.mark.parametrize("passes", [True, False])
def test_every_score_of_a_leak_is_marked(passes: bool, leaked: Any, context: Context) -> None:
    """In the title, the rules and the details; the sentence says what the mark means."""
    if passes:
        leaked["gate"]["rules"][0]["verdict"] = "PASS"
        leaked |= {"verdict": "PASSED", "exit_code": 0}
    texts = [render(leaked, context) for render in (markdown.render, comment.render_flip)]

    for text in texts:
        title, _, sentence = text.partition("### ")[2].splitlines()[:3]
        assert title.endswith("&#42;")
        assert "&#42; 3 eval sample(s)" in sentence
    assert "| 0.0209&#42; | 0.0141 to 0.0277 (95 %) |" in texts[0]
    assert "| 0.7603 (0.7500 to 0.7712)&#42; | 0.0209 (0.0141 to 0.0277)&#42; |" in texts[0]


def test_a_regression_is_not_shown_as_a_broken_limit(
    judged: Any, run_of: Any, context: Context
) -> None:
    """Its upper bound may lie above the limit: it passes until a loss is proven."""
    against = {"against": "baseline", "percent-max-degradation": 5.0, "max-degradation": None}
    numbers = {"measured": 1.0, "low": -20.0, "high": 30.0, "limit": 5.0, "unit": "%"}
    rule = {"metric": "latency_mean_ms", **against}
    for floor, limit in ((7.5, "above 7.50 %, the noise floor |"), (None, "above 5.00 % |")):
        verdict = judged("a", rule=rule, family="regression", floor=floor, **numbers)
        text = markdown.render(run_of(verdict), context)
        assert f"| -20.00 % to 30.00 % (95 %) | no proven loss {limit}" in text


def test_a_limit_keeps_its_digits(judged: Any, run_of: Any, context: Context) -> None:
    """0.001x is not 0.01x; a thousand has no exponent."""
    speedup = {"metric": "speedup", "max-degradation": None, "min": 0.001}
    size = {"metric": "size_bytes", "max-degradation": None, "max": 1e6}
    results = run_of(
        judged("a", rule=speedup, limit=0.001, unit="x"),
        judged("a", rule=size, limit=1e6, unit="bytes", counted="", n=1),
        judged("a", limit=2.5, unit="furlongs"),
    )
    text = markdown.render(results, context)

    assert "| at least 0.001x |" in text
    assert "| at most 1,000,000 bytes |" in text
    assert "| at most 2.5 furlongs |" in text


def test_bounds_are_rounded_outwards(judged: Any, run_of: Any, context: Context) -> None:
    """In the details as in the sentences of the gate, so that both show the same."""
    results = run_of(judged("a"))
    results["artifacts"][0]["drop"] = {"mean": 0.04009, "low": 0.021481, "high": 0.060231}
    results["artifacts"][0]["speedup"] |= {"low": -1e-13, "high": 6.0201}
    text = markdown.render(results, context)

    assert "0.0401 (0.0214 to 0.0603)" in text
    assert "3.40x (0.00 to 6.03)" in text


def test_nothing_measured_is_never_a_zero(judged: Any, run_of: Any, context: Context) -> None:
    """What was not measured is a question mark or a hyphen, in rules and in artifacts."""
    nothing = {"measured": None, "low": None, "high": None, "n": 0, "counted": ""}
    results = run_of(judged("a", "FAIL", **nothing))
    results["artifacts"][0] |= {"latency_ms": None, "speedup": None}

    text = markdown.render(results, context)

    assert "| ? | - | at most 0.0100 | - |" in text
    assert "| 5,000 | - | - | - |" in text


def test_user_text_stays_text(judged: Any, run_of: Any, context: Context) -> None:
    """Names, reasons and paths of users add no row, no HTML, no link and no hidden tag."""
    evil = "x|<!-- kdpipe-verdict:passed -->\n\n# @you `x` </details> [a](b)"
    plain = markdown.render(run_of(judged("x", "FAIL"), skipped=[SKIPPED]), context)
    hostile = run_of(judged(evil, "FAIL", reason=evil), skipped=[{**SKIPPED, "reason": evil}])
    hostile["run"] |= {"machine": {"cpu": evil}, "kdpipe": evil}
    text = markdown.render(hostile, replace(context, commit=evil, report="https://x/>) <b> `"))

    def kinds(markdown_text: str) -> list[str]:
        return [
            token.type for token in MarkdownIt("gfm-like", {"linkify": False}).parse(markdown_text)
        ]

    assert kinds(text) == kinds(plain)
    assert "<!--" not in text
    assert "@you" not in text


def many(judged: Any, run_of: Any, name: str, count: int = 10_000) -> dict[str, Any]:
    """A run of very many rules, a quarter of which fail."""
    verdicts = [
        judged(f"{name}{i}", "FAIL" if i % 4 == 0 else "PASS", measured=0.01 + i * 1e-6)
        for i in range(count)
    ]
    results: dict[str, Any] = run_of(*verdicts)
    return results


@pytest.mark.parametrize("name", ["artifact-", "größte-日本語-🦔-" * 3, "🦔" * 900])
def test_any_number_of_rules_fits(name: str, judged: Any, run_of: Any, context: Context) -> None:
    """10,000 artifacts: below 256 KiB and 60,000 characters, with the verdict and what is left."""
    results = many(judged, run_of, name)

    summary, posted = markdown.render(results, context), comment.render(results, context)

    assert len(summary.encode()) < 256 * 1024
    assert len(posted) <= 60_000
    assert len(posted.encode()) < 262_144
    for text in (summary, posted):
        assert "### kdpipe: FAILED, 2,500 of 10,000 rules failed" in text
        assert "`results.json` has it all" in text
        assert text.rstrip().endswith("kdpipe 0.1.0")


def test_parts_go_in_a_fixed_order(judged: Any, run_of: Any, context: Context) -> None:
    """Details, then rules that passed, then failures after 20, then the table; each is named."""
    seen = []
    for count in (40, 280, 800, 8000):
        text = comment.render(many(judged, run_of, "a", count), context)
        said = re.search(r"would be too long: (.*)\. `results", text)
        rows = text.count("| **FAIL** |"), text.count("| pass |")
        seen.append((said[1] if said else "", *rows, "<details>" in text))

    assert seen == [
        ("", 10, 30, True),
        ("the details", 70, 210, False),
        ("the details; 600 rules that passed", 200, 0, False),
        (
            "the details; 6,000 rules that passed; others after the first 20 (2,000 in all)",
            20,
            0,
            False,
        ),
    ]
    long = comment.render(many(judged, run_of, "🦔|" * 499, 100), context)
    assert "75 rules that passed; 25 others." in long
    assert long.count("\n") < 12


def test_the_same_results_give_the_same_text(judged: Any, run_of: Any, context: Context) -> None:
    """No time, no order of a set, nothing of the machine that renders."""
    results = many(judged, run_of, "a", 100)

    assert comment.render(results, context) == comment.render(results, context)
    assert markdown.render(results, context) == markdown.render(results, context)
