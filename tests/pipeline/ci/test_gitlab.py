"""GitLab's reports: code quality as JSON, metrics as OpenMetrics text that compares as text."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

from kdpipe.pipeline.ci import codequality, metrics
from kdpipe.pipeline.ci.context import Context
from kdpipe.pipeline.ci.source import Source

SEVERITIES = {"info", "minor", "major", "critical", "blocker"}
SAMPLE = re.compile(r"^(?P<name>[a-z0-9_]+)(?:\{(?P<labels>[^{}]*)\})? (?P<value>-?\d+(?:\.\d+)?)$")
LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\["\\n])*)"')


def issues(results: dict[str, Any], context: Context) -> list[dict[str, Any]]:
    """The issues, each with all that GitLab requires."""
    found: list[dict[str, Any]] = json.loads(codequality.render(results, context))
    for issue in found:
        assert set(issue) == {"description", "check_name", "fingerprint", "severity", "location"}
        assert issue["severity"] in SEVERITIES
        assert isinstance(issue["location"]["lines"]["begin"], int)
        assert not issue["location"]["path"].startswith(("/", "./"))
    fingerprints = [issue["fingerprint"] for issue in found]
    assert len(set(fingerprints)) == len(fingerprints)
    return found


def test_what_does_not_hold_is_an_issue(judged: Any, run_of: Any, context: Context) -> None:
    """By severity, at the line of the rule; rules that hold and targets without are none."""
    verdicts = [
        judged("a"),
        judged("b", "FAIL", required=False),
        judged("c", "UNDECIDED"),
        judged("d", "FAIL"),
    ]
    failed = [{"step": "compile[e]", "error": "no luck", "exit_code": 1}]
    skipped = [{"id": "f", "target": "f", "reason": "no GPU", "fix": "buy one"}]

    found = issues(run_of(*verdicts, failed=failed, skipped=skipped), context)

    assert [(issue["severity"], issue["description"]) for issue in found] == [
        ("blocker", "e: no luck"),
        ("critical", "d: the reason of d for FAIL"),
        ("major", "c: the reason of c for UNDECIDED"),
        ("minor", "b: the reason of b for FAIL"),
    ]
    assert found[1]["location"] == {"path": "ci/kdpipe.yaml", "lines": {"begin": 14}}
    assert found[0]["location"] == {"path": "ci/kdpipe.yaml", "lines": {"begin": 1}}


def test_an_issue_stays_itself(judged: Any, run_of: Any, context: Context) -> None:
    """Another measurement, limit or sentence is the same issue; another artifact or config not."""
    first = judged("a", "FAIL")
    again = judged("a", "FAIL", measured=0.5, reason="worse", rule={"max-degradation": 0.02})

    def fingerprint(verdict: dict[str, Any], context: Context = context) -> str:
        (issue,) = issues(run_of(verdict), context)
        return str(issue["fingerprint"])

    assert fingerprint(first) == fingerprint(again)
    assert fingerprint(first) != fingerprint(judged("b", "FAIL"))
    assert fingerprint(first) != fingerprint(first, replace(context, id="other"))


def test_a_config_outside_still_has_a_path(judged: Any, run_of: Any, context: Context) -> None:
    """GitLab refuses an issue without one."""
    outside = replace(context, source=Source("kdpipe.yaml"))

    (issue,) = issues(run_of(judged("a", "FAIL")), outside)

    assert issue["location"]["path"] == "kdpipe.yaml"


def exposition(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], str]:
    """Samples by name and labels, read by the rules of OpenMetrics 1.0."""
    assert text.endswith("# EOF\n")
    lines = text.splitlines()[:-1]
    samples: dict[tuple[str, tuple[tuple[str, str], ...]], str] = {}
    open_family, done = "", set()
    for line in lines:
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            assert kind == "gauge"
            assert name not in done, "a family is written in one piece"
            open_family = name
            done.add(name)
        elif line.startswith(("# UNIT ", "# HELP ")):
            _, kind, name, rest = line.split(" ", 3)
            assert name == open_family
            assert kind == "HELP" or name.endswith(f"_{rest}")
        else:
            match = SAMPLE.match(line)
            assert match, line
            assert match["name"] == open_family
            labels = tuple(LABEL.findall(match["labels"] or ""))
            assert LABEL.sub("", match["labels"] or "").strip(",") == ""
            assert (match["name"], labels) not in samples
            samples[match["name"], labels] = match["value"]
    return samples


def test_metrics_of_a_run(judged: Any, run_of: Any, context: Context) -> None:
    """Scores, drops, agreement, sizes and counts, with fixed decimals."""
    found = exposition(metrics.render(run_of(judged("a", "FAIL"), judged("a")), context))

    one = (("artifact", "a"),)
    scored = (*one, ("metric", "accuracy"))
    assert found["kdpipe_passed", ()] == "0"
    assert found["kdpipe_findings", (("level", "failed"),)] == "1"
    assert found["kdpipe_findings", (("level", "passed"),)] == "1"
    assert found["kdpipe_score_ratio", scored] == "0.760300"
    assert found["kdpipe_drop_ratio", scored] == "0.020900"
    assert found["kdpipe_agreement_ratio", one] == "0.930000"
    assert found["kdpipe_size_bytes", one] == "123456"


def test_equal_runs_give_equal_text(judged: Any, run_of: Any, context: Context) -> None:
    """Latency, memory, load and a rounding error of a score do not show."""
    first, again = run_of(judged("a")), run_of(judged("a", measured=0.0212))
    row = again["artifacts"][0]
    row |= {"latency_ms": {**row["latency_ms"], "mean": 13.0}, "accuracy": 0.7603 + 1e-9}
    row |= {"speedup": {**row["speedup"], "ratio": 3.1}, "memory_bytes": 5.0}
    row["drop"] = {**row["drop"], "mean": 0.0209 - 1e-9}

    assert metrics.render(first, context) == metrics.render(again, context)


def test_what_was_not_measured_is_absent(judged: Any, run_of: Any, context: Context) -> None:
    """Null is no zero, and a run that broke at once has still a valid report."""
    broken = run_of(teacher=None, student=None, metric=None, failed=[])
    half = run_of(judged("a"))
    half["artifacts"][0] |= {"int8_fraction": None, "agreement": None}
    half["artifacts"][0]["drop"] = {"mean": -1e-9, "low": None, "high": None}

    assert exposition(metrics.render(broken, context))["kdpipe_passed", ()] == "1"
    found = exposition(metrics.render(half, context))
    assert not [
        name for name, _ in found if name in ("kdpipe_int8_ratio", "kdpipe_agreement_ratio")
    ]
    assert found["kdpipe_drop_ratio", (("artifact", "a"), ("metric", "accuracy"))] == "0.000000"


def test_labels_survive(judged: Any, run_of: Any, context: Context) -> None:
    """Quotes, backslashes and line breaks in names keep the text readable by machines."""
    found = exposition(metrics.render(run_of(judged('a"b\\c\nd')), context))

    assert ("kdpipe_size_bytes", (("artifact", 'a\\"b\\\\c d'),)) in found
