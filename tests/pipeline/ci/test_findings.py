"""Findings: nothing is lost, nothing that is advisory blocks, the worst comes first."""

from __future__ import annotations

from typing import Any

from kdpipe.pipeline.ci.findings import findings, rule_name, state

SKIPPED = {"id": "tensorrt-int8", "target": "tensorrt", "reason": "no GPU", "fix": "buy one"}
BROKEN = {"step": "compile[openvino-int8]", "error": "no luck\n  found: a cat", "exit_code": 1}


def told(results: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(level, artifact, name) of each finding."""
    return [(f.level, f.artifact, f.name) for f in findings(results)]


def test_worst_comes_first(judged: Any, run_of: Any) -> None:
    """Steps that broke, then failed rules by how far off they are, then undecided ones."""
    verdicts = [
        judged("a"),
        judged("b", "UNDECIDED"),
        judged("c", "FAIL", measured=0.02),
        judged("d", "FAIL", measured=0.05),
        judged("e", "FAIL", measured=None, low=None, high=None),
        judged("f", "FAIL", required=False),
    ]
    results = run_of(*verdicts, failed=[BROKEN])

    assert told(results) == [
        ("error", "openvino-int8", "compile[openvino-int8]"),
        ("failed", "e", "accuracy max-degradation"),
        ("failed", "d", "accuracy max-degradation"),
        ("failed", "c", "accuracy max-degradation"),
        ("undecided", "b", "accuracy max-degradation"),
        ("warning", "f", "accuracy max-degradation"),
        ("skipped", "openvino-int8", "target"),
        ("passed", "a", "accuracy max-degradation"),
    ]


def test_lines_of_an_error_are_told_apart(run_of: Any) -> None:
    """What was found does not run into what happened, also where both share a line."""
    (finding, _) = findings(run_of(failed=[BROKEN], reason="compile[openvino-int8]: no luck"))

    assert finding.message == "no luck;\n  found: a cat"


def test_advisory_rules_never_block(judged: Any, run_of: Any) -> None:
    """A rule with `required: false` that does not hold is a warning."""
    results = run_of(
        *(judged(word, word, required=False) for word in ("FAIL", "UNDECIDED", "PASS"))
    )

    assert [f.level for f in findings(results)] == ["warning", "warning", "passed"]
    assert not any(f.blocks for f in findings(results))
    assert state(results) == "passed"


def test_a_failed_run_always_has_a_cause(judged: Any, run_of: Any) -> None:
    """A run may fail while every rule holds: when a file is no longer the one that was measured."""
    changed = {"verdict": "FAILED", "exit_code": 3, "reason": "a: the file is not the one"}
    unjudged = {"verdict": "FAILED", "exit_code": 5, "reason": "none of 2 rules could be judged"}

    for word in ("PASS", "UNDECIDED", "FAIL"):
        assert "the file is not" in findings(run_of(judged("a", word), **changed))[0].message
    first = findings(run_of(judged("a"), **changed))[0]
    second = findings(run_of(**unjudged))[0]

    assert (first.level, first.message) == ("error", "a: the file is not the one")
    assert (second.level, second.message) == ("undecided", "none of 2 rules could be judged")


def test_a_leak_is_one_warning_and_no_second_cause(leaked: Any) -> None:
    """The failed rule is the cause, mark or not; the leak is told beside it."""
    assert told(leaked) == [("failed", "a", "accuracy max-degradation"), ("warning", "", "leak")]
    assert "known from train: exact 3" in findings(leaked)[1].message
    assert "no score is to be trusted" in findings(leaked)[1].message


def test_rules_of_absent_artifacts_are_listed(judged: Any, run_of: Any) -> None:
    """Each rule is there once for a target that could not run, and for one whose step broke."""
    everywhere = {"metric": "accuracy", "max-degradation": 0.01, "against": "teacher"}
    elsewhere = {"metric": "agreement", "min": 0.9, "target": "onnxruntime"}
    there = {"metric": "latency_p95_ms", "max": 2.0, "target": "tensorrt"}
    both = {"metric": "score", "min": 0.5, "max-degradation": 0.1}
    policy = [everywhere, elsewhere, there, both]
    results = run_of(gate={"policy": policy}, skipped=[SKIPPED], failed=[BROKEN])

    assert [(artifact, name) for level, artifact, name in told(results) if level == "skipped"] == [
        ("tensorrt-int8", "accuracy max-degradation"),
        ("tensorrt-int8", "latency_p95_ms max"),
        ("tensorrt-int8", "score min"),
        ("tensorrt-int8", "score max-degradation"),
        ("openvino-int8", "accuracy max-degradation"),
        ("openvino-int8", "score min"),
        ("openvino-int8", "score max-degradation"),
        ("onnxruntime", "agreement min"),
    ]


def test_no_rule_is_lost_where_the_run_broke(run_of: Any) -> None:
    """A run that broke before anything was measured lists its rules all the same."""
    policy = [{"metric": "accuracy", "max-degradation": 0.01}, {"metric": "size_bytes", "max": 1}]
    broken = {"step": "teacher", "error": "no words", "exit_code": 1}

    found = findings(run_of(gate={"policy": policy}, failed=[broken]))

    assert [(f.level, f.artifact, f.name) for f in found] == [
        ("error", "", "teacher"),
        ("skipped", "", "accuracy max-degradation"),
        ("skipped", "", "size_bytes max"),
    ]
    assert found[1].message == "not judged: the run broke"


def test_a_judged_rule_is_not_listed_again(judged: Any, run_of: Any) -> None:
    """A rule that named a broken artifact got a verdict: it is there once."""
    policy = [{**judged()["rule"], "target": "openvino-int8"}]
    failed = judged("openvino-int8", "FAIL", rule={"target": "openvino-int8"})
    results = run_of(failed, gate={"policy": policy}, failed=[BROKEN])

    assert [name for _, _, name in told(results)].count("accuracy max-degradation") == 1


def test_names_outlive_limits(judged: Any, run_of: Any) -> None:
    """A rule keeps its name when its value changes; rules that differ in value alone get it."""
    assert rule_name({"metric": "speedup", "min": 1.0, "against": "fp32", "confidence": 0.9}) == (
        "speedup min against fp32"
    )
    assert rule_name({"metric": "speedup", "min": 2.0, "against": "teacher"}) == "speedup min"

    twice = [judged("a", rule={"max-degradation": limit}) for limit in (0.01, 0.02, 0.02)]
    assert [name for _, _, name in told(run_of(*twice, judged("b")))] == [
        "accuracy max-degradation 0.01",
        "accuracy max-degradation 0.02",
        "accuracy max-degradation 0.02 #2",
        "accuracy max-degradation",
    ]


def test_state_follows_the_verdict(run_of: Any) -> None:
    """PASSED, exit code 5, and every other failure."""
    ends = {"passed": ("PASSED", 0), "undecided": ("FAILED", 5), "failed": ("FAILED", 3)}

    for expected, (word, code) in ends.items():
        assert state(run_of(verdict=word, exit_code=code)) == expected
    assert state(run_of(verdict="FAILED", exit_code=130)) == "failed"
