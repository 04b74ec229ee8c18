"""JUnit XML: one suite for each artifact, one test case for each rule.

A rule that could not be decided is a failure of type `undecided`, a stage that broke is an error.
An advisory rule that does not hold is a skipped case, for JUnit knows no warning. No case has a
`time`: a rule takes none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from xml.etree import ElementTree as ET

from kdpipe.pipeline.ci import numbers
from kdpipe.pipeline.ci.context import Context
from kdpipe.pipeline.ci.escape import xml
from kdpipe.pipeline.ci.findings import Finding, Results, findings

RUN = "run"
"""The suite of what is about no artifact."""

TAGS = {"error": "error", "failed": "failure", "undecided": "failure"}
TAGS |= {"warning": "skipped", "skipped": "skipped"}
COUNTED = {"errors": "error", "failures": "failure", "skipped": "skipped"}
"""Attribute of a suite -> the elements that it counts."""


def render(results: Results, context: Context) -> str:
    """A document of the schema that Jenkins' xUnit plugin publishes, and GitLab and GitHub read."""
    suites: dict[str, list[Finding]] = {row["id"]: [] for row in results["artifacts"]}
    for finding in findings(results):
        suites.setdefault(finding.artifact or RUN, []).append(finding)
    machines = {row["id"]: row.get("machine", {}) for row in results["artifacts"]}
    digests = {row["id"]: row.get("sha256", "") for row in results["artifacts"]}
    root = ET.Element("testsuites", name=xml(f"kdpipe {context.id}"))
    for name, found in suites.items():
        suite = ET.SubElement(root, "testsuite", name=xml(name))
        machine = machines.get(name) or results["run"].get("machine", {})
        _properties(suite, {"sha256": digests.get(name), **machine})
        # Sorted by name: where a case stands must not depend on how it ended.
        for finding in sorted(found, key=lambda finding: finding.name):
            _case(suite, name, finding)
        _count(suite, [suite])
    _count(root, list(root))
    # The platforms' readers refuse what XML 1.0 has no way to write; `xml` has removed it.
    ET.indent(root, " ")
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, "unicode") + "\n"


def _case(suite: ET.Element, name: str, finding: Finding) -> None:
    case = ET.SubElement(suite, "testcase", name=xml(finding.name), classname=xml(f"kdpipe.{name}"))
    if tag := TAGS.get(finding.level):
        advice = finding.level == "warning" and finding.verdict
        advisory = "advisory, not counted: " if advice else ""
        message = xml(f"{advisory}{finding.message}")
        outcome = ET.SubElement(case, tag, message=message, type=finding.level)
        if finding.verdict:
            outcome.text = xml(_facts(finding.verdict))


def _facts(verdict: Mapping[str, Any]) -> str:
    cells = {
        "measured": numbers.measured(verdict),
        "bounds": numbers.bounds(verdict),
        "limit": numbers.limit(verdict),
        "n": numbers.counted(verdict),
    }
    return "\n".join(f"{name}: {value}" for name, value in cells.items())


def _properties(suite: ET.Element, facts: Mapping[str, Any]) -> None:
    found = {name: value for name, value in facts.items() if value not in (None, "")}
    parent = ET.SubElement(suite, "properties") if found else suite
    for name, value in found.items():
        shown = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
        ET.SubElement(parent, "property", name=xml(name), value=xml(shown))


def _count(element: ET.Element, suites: Sequence[ET.Element]) -> None:
    """`tests`, `failures` and so on, of an element, over its suites."""
    cases = [case for suite in suites for case in suite.findall("testcase")]
    element.set("tests", str(len(cases)))
    for attribute, tag in COUNTED.items():
        if element.tag == "testsuite" or attribute != "skipped":
            element.set(attribute, str(sum(case.find(tag) is not None for case in cases)))
