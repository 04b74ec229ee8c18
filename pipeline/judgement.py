"""Judging one run, after it has ended or long after: rules over evidence, one conclusion.

`stages/gate/` judges one rule; here is decided which rules can be judged on this machine at all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kdpipe.pipeline.conclusion import Conclusion, conclude
from kdpipe.stages import Rule
from kdpipe.stages.evidence import Evidence
from kdpipe.targets.errors import KdpipeError

Skipped = Mapping[str, str]
"""A target that could not run here: `id`, `target` (its name), `reason`, `fix`."""


def judgement(
    rules: Sequence[Rule],
    evidence: Sequence[Evidence],
    skipped: Sequence[Skipped],
    failed: Mapping[str, KdpipeError],
) -> tuple[Conclusion, dict[str, Any]]:
    """How a run ended, and the part of `results.json` that says so.

    A rule whose `target` names only targets that were skipped is listed and not judged: that they
    may be missing was the user's decision (`required: false`).
    """
    from kdpipe.stages.gate.judge import judge

    aside = {rule: names for rule in rules if (names := _skipped_for(rule, evidence, skipped))}
    # Where the chain broke before anything was measured, that is the one cause to report.
    broke = bool(failed) and not evidence
    asked = [] if broke else [rule for rule in rules if rule not in aside]
    verdicts = [verdict.to_dict() for verdict in judge(asked, evidence)]
    conclusion = conclude(verdicts, failed, rules=len(rules), skipped=len(skipped))
    gate = {
        "policy": [rule.as_dict() for rule in rules],
        "rules": verdicts,
        "skipped": [
            {"rule": rule.as_dict(), "artifact": row["id"], "reason": row["reason"]}
            for rule, rows in aside.items()
            for row in rows
        ],
    }
    return conclusion, {"gate": gate, **verdict_fields(conclusion)}


def verdict_fields(conclusion: Conclusion) -> dict[str, Any]:
    """How `results.json` says the conclusion."""
    return {
        "verdict": conclusion.word,
        "exit_code": conclusion.exit_code,
        "reason": conclusion.reason,
    }


def _skipped_for(
    rule: Rule, evidence: Sequence[Evidence], skipped: Sequence[Skipped]
) -> list[Skipped]:
    """The skipped targets that `rule` names, unless it also names one that was measured."""
    if any(rule.target in (one.artifact, one.target) for one in evidence):
        return []
    return [row for row in skipped if rule.target in (row["id"], row["target"])]
