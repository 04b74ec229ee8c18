"""What a run has to say to CI, worst first: broken stages, verdicts, skipped targets.

Every format shows these and no others, so that none of them counts a rule that another one forgot.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from kdpipe.pipeline.conclusion import UNDECIDED
from kdpipe.pipeline.notes import leak, mark

Results = Mapping[str, Any]
State = Literal["passed", "failed", "undecided"]
Level = Literal["error", "failed", "undecided", "warning", "skipped", "passed"]
LEVELS: tuple[Level, ...] = ("error", "failed", "undecided", "warning", "skipped", "passed")
"""Worst first. `warning`: a rule with `required: false` that failed or was not decided, or scores
that are not to be trusted."""


@dataclass(frozen=True)
class Finding:
    """One rule on one artifact, one broken stage, a leak, or one target that could not run.

    `artifact`: empty where it is about the run as a whole. `name`: the same in every run of a
    policy. `message`: one sentence. `rule` and `verdict`: as in `results.json`; empty where there
    is none.
    """

    level: Level
    artifact: str
    name: str
    message: str
    rule: Mapping[str, Any]
    verdict: Mapping[str, Any]

    @property
    def blocks(self) -> bool:
        """Whether the run fails for it."""
        return self.level in ("error", "failed", "undecided")


def state(results: Results) -> State:
    """How the run ended; `undecided` is a failure for want of evidence."""
    if results["verdict"] == "PASSED":
        return "passed"
    return "undecided" if results["exit_code"] == UNDECIDED else "failed"


def metric(results: Results) -> str:
    """The headline metric; a run that broke before its data were read has none."""
    return str(results["metric"] or "score")


def findings(results: Results) -> list[Finding]:
    """All of them, worst first; equally bad ones in the order of the results.

    The `reason` of a run that failed is among them, also where no rule and no step says it, as
    when a file is no longer the one that was measured.
    """
    found = [*_broken(results), *_judged(results)]
    found += _aside(results, found)
    found += _unjudged(results, found)
    reason, now = results["reason"], state(results)
    # A verdict's mark stands behind its sentence, the conclusion's at the very end.
    marked = f" {mark(results)}".rstrip()
    first = [f.message.partition("\n")[0].removesuffix(";") for f in found if f.blocks]
    said = any(cause.removesuffix(marked) in reason for cause in first)
    if now != "passed" and not said:
        level: Level = "undecided" if now == "undecided" else "error"
        found.append(Finding(level, "", "run", reason, {}, {}))
    if why := leak(results):
        found.append(Finding("warning", "", "leak", why, {}, {}))
    return sorted(_named_apart(found), key=_badness)


def limit_of(rule: Mapping[str, Any]) -> dict[str, float]:
    """The limits of a rule, by their YAML names."""
    return {
        name: value
        for name, value in rule.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and name != "confidence"
    }


def rule_name(rule: Mapping[str, Any]) -> str:
    """A rule without its value, which may change while the rule stays.

    Example: {metric: speedup, min: 1, against: fp32} -> "speedup min against fp32"
    """
    against = rule.get("against") or "teacher"
    words = [rule["metric"], *limit_of(rule)]
    return " ".join([*words, *(["against", against] if against != "teacher" else [])])


def _broken(results: Results) -> Iterator[Finding]:
    for row in results["failed"]:
        # Most formats have one line for it: "no luck; found: a black cat".
        error = ";\n".join(row["error"].splitlines())
        yield Finding("error", _artifact_of(row["step"]), row["step"], error, {}, {})


def _judged(results: Results) -> Iterator[Finding]:
    levels: dict[str, Level] = {"FAIL": "failed", "UNDECIDED": "undecided", "PASS": "passed"}
    for verdict in results["gate"]["rules"]:
        rule, level = verdict["rule"], levels[verdict["verdict"]]
        if level != "passed" and not verdict.get("required", True):
            level = "warning"
        name = rule_name(rule)
        yield Finding(level, verdict["artifact"], name, verdict["reason"], rule, verdict)


def _aside(results: Results, found: Sequence[Finding]) -> Iterator[Finding]:
    """Rules of artifacts that there are none of: each is listed, so that counts stay the same."""
    policy = [part for rule in results["gate"]["policy"] for part in _parts(rule)]
    known = {(finding.artifact, _identity(finding.rule)) for finding in found}
    for id, target, why in _absent(results):
        rules = [rule for rule in policy if rule.get("target") in (None, id, target)]
        for rule in rules:
            if (id, _identity(rule)) not in known:
                yield Finding("skipped", id, rule_name(rule), why, rule, {})
        if not rules:
            yield Finding("skipped", id, "target", why, {}, {})


def _absent(results: Results) -> Iterator[tuple[str, str, str]]:
    """(id, name of the target, why) of artifacts that were asked for and not measured."""
    for row in results["skipped"]:
        yield row["id"], row["target"], f"{row['reason']}; {row['fix']}"
    broken = {_artifact_of(row["step"]): row["step"] for row in results["failed"]}
    for id, step in broken.items():
        if id:
            yield id, id, f"not judged: {step} broke"


def _unjudged(results: Results, found: Sequence[Finding]) -> Iterator[Finding]:
    """Rules that nothing else speaks of."""
    known = {_identity(finding.rule) for finding in found}
    why = "the run broke" if results["failed"] else "it speaks of no artifact of this run"
    for rule in results["gate"]["policy"]:
        for part in _parts(rule):
            if _identity(part) not in known:
                target = rule.get("target") or ""
                yield Finding("skipped", target, rule_name(part), f"not judged: {why}", part, {})


def _artifact_of(step: str) -> str:
    """Example: compile[openvino-int8] -> openvino-int8"""
    inside = re.search(r"\[(.+)\]$", step)
    return inside[1] if inside else ""


def _parts(rule: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """A rule once for each of its limits."""
    limits = limit_of(rule)
    shared = {name: value for name, value in rule.items() if name not in limits}
    yield from ({**shared, name: value} for name, value in limits.items())


def _identity(rule: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted((name, repr(value)) for name, value in rule.items() if value is not None))


def _named_apart(found: Sequence[Finding]) -> Iterator[Finding]:
    """Rules of one artifact that differ in value alone are told apart by it, or by number."""
    names = Counter((finding.artifact, finding.name) for finding in found)
    seen: Counter[tuple[str, str]] = Counter()
    for finding in found:
        name = finding.name
        if names[finding.artifact, name] > 1 and finding.rule:
            name = " ".join([name, *(f"{value:g}" for value in limit_of(finding.rule).values())])
        seen[finding.artifact, name] += 1
        number = seen[finding.artifact, name]
        yield replace(finding, name=f"{name} #{number}" if number > 1 else name)


def _badness(finding: Finding) -> tuple[int, float]:
    """Sorts by level, then by how far beyond its limit a value lies; nothing measured is worst."""
    verdict = finding.verdict
    excess = math.inf
    if verdict and verdict["measured"] is not None:
        excess = abs(verdict["measured"] - verdict["limit"]) / (abs(verdict["limit"]) or 1)
    return LEVELS.index(finding.level), -excess if finding.level != "passed" else 0.0
