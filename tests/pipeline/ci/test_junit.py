"""JUnit XML by the rules of the schema that the platforms read, checked without its code."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree as ET

from kdpipe.pipeline.ci import junit
from kdpipe.pipeline.ci.context import Context

OUTCOME = {"message", "type"}
CASE = {"name", "classname", "time", "group", "file", "line", "assertions", "status"}
SUITE = {"name", "tests", "failures", "errors", "skipped", "disabled", "time", "timestamp"}
SUITE |= {"hostname", "id", "package", "group", "file", "log", "url", "version"}
SCHEMA: dict[str, tuple[set[str], set[str], set[str]]] = {
    "testsuites": ({"testsuite"}, set(), {"name", "time", "tests", "failures", "errors"}),
    "testsuite": ({"properties", "testcase"}, {"name", "tests", "failures", "errors"}, SUITE),
    "properties": ({"property"}, set(), set()),
    "property": (set(), {"name", "value"}, {"name", "value"}),
    "testcase": ({"failure", "error", "skipped"}, {"name", "classname"}, CASE),
    "failure": (set(), set(), OUTCOME),
    "error": (set(), set(), OUTCOME),
    "skipped": (set(), set(), OUTCOME),
}
"""Element -> children, attributes it must have, attributes it may have, after junit-10.xsd."""


def check(element: ET.Element) -> None:
    """Assert that an element and all below it keep the schema, and that the counts are true."""
    children, needed, allowed = SCHEMA[element.tag]
    assert {child.tag for child in element} <= children
    assert needed <= set(element.attrib) <= needed | allowed, element.attrib
    if element.tag == "testcase":
        assert len(element) <= 1
        assert "time" not in element.attrib
    if element.tag == "testsuite":
        assert [child.tag for child in element].count("properties") <= 1
        assert "properties" not in [child.tag for child in element][1:]
    if element.tag in ("testsuites", "testsuite"):
        counts = {"tests": "testcase", "failures": "failure", "errors": "error"}
        for attribute, tag in counts.items():
            assert int(element.attrib[attribute]) == len(list(element.iter(tag)))
    if element.tag == "testsuite":
        assert int(element.attrib["skipped"]) == len(list(element.iter("skipped")))
    for child in element:
        check(child)


def parsed(results: dict[str, Any], context: Context) -> ET.Element:
    """The document, as an XML parser that knows nothing of kdpipe reads it."""
    root = ET.fromstring(junit.render(results, context).encode())
    check(root)
    return root


def outcome(root: ET.Element, suite: str) -> list[tuple[str, str, str]]:
    """(case, element, type) of a suite's cases; empty words for a case that passed."""
    cases = root.findall(f"testsuite[@name='{suite}']/testcase")
    return [
        (case.attrib["name"], *((e.tag, e.attrib["type"]) for e in case))
        if len(case)
        else (case.attrib["name"], ("", ""))
        for case in cases
    ]  # type: ignore[misc]


def test_each_outcome_has_its_element(judged: Any, run_of: Any, context: Context) -> None:
    """PASS, FAIL, UNDECIDED, advisory, skipped and broken, each as platforms know it."""
    rules = [
        ("PASS", {"metric": "a"}, {}),
        ("FAIL", {"metric": "b"}, {}),
        ("UNDECIDED", {"metric": "c"}, {}),
        ("FAIL", {"metric": "d"}, {"required": False}),
    ]
    verdicts = [judged("x", word, rule=rule, **more) for word, rule, more in rules]
    results = run_of(
        *verdicts,
        gate={"policy": [verdicts[0]["rule"]]},
        skipped=[{"id": "trt", "target": "tensorrt", "reason": "no GPU", "fix": "buy one"}],
        failed=[{"step": "teacher", "error": "no words\n  try: more", "exit_code": 1}],
    )

    root = parsed(results, context)

    assert outcome(root, "x") == [
        ("a max-degradation", ("", "")),
        ("b max-degradation", ("failure", "failed")),
        ("c max-degradation", ("failure", "undecided")),
        ("d max-degradation", ("skipped", "warning")),
    ]
    assert outcome(root, "trt") == [("a max-degradation", ("skipped", "skipped"))]
    assert outcome(root, "run") == [("teacher", ("error", "error"))]
    failure = root.find(".//failure[@type='failed']")
    assert failure is not None
    assert failure.attrib["message"] == "the reason of x for FAIL"
    assert failure.text == (
        "measured: 0.0209\nbounds: 0.0141 to 0.0277 (95 %)\nlimit: at most 0.0100\nn: 5,000 samples"
    )
    advisory = root.find(".//skipped[@type='warning']")
    assert advisory is not None
    assert advisory.attrib["message"].startswith("advisory, not counted: ")


def test_the_machine_and_the_file_are_properties(
    judged: Any, run_of: Any, context: Context
) -> None:
    """Whoever reads a number can see where it was measured, and of which file."""
    root = parsed(run_of(judged("x")), context)

    properties = {p.attrib["name"]: p.attrib["value"] for p in root.iter("property")}
    assert properties == {
        "sha256": "ab" * 32,
        "cpu": "AMD EPYC",
        "cores": "2",
        "flags": "avx2, fma",
        "load": "0.5",
    }


def test_names_and_count_do_not_depend_on_the_outcome(
    judged: Any, run_of: Any, context: Context
) -> None:
    """The same policy gives the same cases in the same order, however they end."""

    def names(*words: str, **changes: Any) -> list[str]:
        verdicts = [
            judged("x", word, rule={"metric": metric}, measured=value)
            for metric, word, value in zip("cab", words, (0.1, 0.3, 0.2), strict=True)
        ]
        policy = [judged("x", rule={"metric": metric})["rule"] for metric in "cab"]
        results = run_of(*(verdicts if words else []), gate={"policy": policy}, **changes)
        cases = parsed(results, context).findall("testsuite[@name='x']/testcase")
        return [case.attrib["name"] for case in cases]

    usual = ["a max-degradation", "b max-degradation", "c max-degradation"]
    assert names("PASS", "PASS", "PASS") == usual
    assert names("FAIL", "PASS", "UNDECIDED") == usual
    skipped = {"id": "x", "target": "toy", "reason": "gone", "fix": "buy one"}
    results = run_of(
        gate={"policy": [judged("x", rule={"metric": m})["rule"] for m in "cab"]},
        skipped=[skipped],
    )
    cases = parsed(results, context).findall("testsuite[@name='x']/testcase")
    assert [case.attrib["name"] for case in cases] == usual


def test_a_leak_is_no_failure_and_no_advice(leaked: Any, context: Context) -> None:
    """It is a skipped case of the run, with its own words."""
    root = parsed(leaked, context)

    assert (root.get("failures"), root.get("errors")) == ("1", "0")
    assert outcome(root, "run") == [("leak", ("skipped", "warning"))]
    (message,) = [case.get("message") for case in root.iter("skipped")]
    assert message is not None
    assert message.startswith("3 eval sample(s)")


def test_any_text_is_well_formed(judged: Any, run_of: Any, context: Context) -> None:
    """Markup, CDATA ends, control characters, half surrogates and emoji survive as text."""
    evil = "]]> <a href='x'> & \" \x00\x1b[31m \ud800 \ufffe größer 🦔"
    results = run_of(judged(evil, "FAIL", reason=evil, rule={"metric": evil}))
    results["run"]["machine"] = {"cpu": evil}

    root = parsed(results, context)

    expected = "]]> <a href='x'> & \" ??[31m ? ? größer 🦔"
    assert [suite.attrib["name"] for suite in root] == [expected]
    assert next(root.iter("failure")).attrib["message"] == expected
