"""Judging one run, after it has ended or long after: rules over evidence, one conclusion.

`stages/gate/` judges one rule; here is decided which rules can be judged on this machine at all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from kdpipe.pipeline.conclusion import Conclusion, conclude
from kdpipe.stages import Rule
from kdpipe.stages.evidence import Evidence
from kdpipe.stages.gate.rules import BASELINE_RULES, STANDING_RULES
from kdpipe.targets.errors import KdpipeError

if TYPE_CHECKING:
    from kdpipe.stages.gate.baseline import Baseline

Skipped = Mapping[str, str]
"""A target that could not run here: `id`, `target` (its name), `reason`, `fix`."""


def judgement(
    rules: Sequence[Rule],
    evidence: Sequence[Evidence],
    skipped: Sequence[Skipped],
    failed: Mapping[str, KdpipeError],
    baseline: Baseline | None = None,
) -> tuple[Conclusion, dict[str, Any]]:
    """How a run ended, and the part of `results.json` that says so.

    Standing rules are judged beside the user's, as far as there are any. A rule whose `target`
    names only targets that were skipped is listed and not judged: that they may be missing was the
    user's decision (`required: false`).
    """
    from kdpipe.stages.gate.judge import judge
    from kdpipe.stages.gate.power import of_policy

    aside = {rule: names for rule in rules if (names := _skipped_for(rule, evidence, skipped))}
    # Where the chain broke before anything was measured, that is the one cause to report.
    broke = bool(failed) and not evidence
    asked = [] if broke else [rule for rule in rules if rule not in aside]
    found = judge(asked, evidence, baseline, _standing(rules, baseline))
    verdicts = [verdict.to_dict() for verdict in found]
    conclusion = conclude(verdicts, failed, rules=len(rules), skipped=len(skipped))
    if leaked := next((one.leaked for one in evidence if one.leaked), ""):
        verdicts = [{**verdict, "reason": f"{verdict['reason']} *"} for verdict in verdicts]
        conclusion = replace(conclusion, reason=f"{conclusion.reason}; * {leaked}")
    gate = {
        "policy": [rule.as_dict() for rule in rules],
        "source": "config",
        "rules": verdicts,
        "power": of_policy(found),
        "baseline": baseline.source if baseline else None,
        **_changes(evidence, skipped, failed, baseline),
        "skipped": [
            {"rule": rule.as_dict(), "artifact": row["id"], "reason": row["reason"]}
            for rule, rows in aside.items()
            for row in rows
        ],
    }
    return conclusion, {"gate": gate, **verdict_fields(conclusion)}


def _changes(
    evidence: Sequence[Evidence],
    skipped: Sequence[Skipped],
    failed: Mapping[str, KdpipeError],
    baseline: Baseline | None,
) -> dict[str, list[str]]:
    """Artifacts that only this run has, and those that only the baseline has.

    What could not run here, or was not reached before the run broke, is not removed.
    """
    now = {one.artifact for one in evidence}
    before = set(baseline.artifacts) if baseline else now
    absent = before if failed else {row["id"] for row in skipped}
    return {"new": sorted(now - before), "removed": sorted(before - now - absent)}


def verdict_fields(conclusion: Conclusion) -> dict[str, Any]:
    """How `results.json` says the conclusion."""
    return {
        "verdict": conclusion.word,
        "exit_code": conclusion.exit_code,
        "reason": conclusion.reason,
    }


def _standing(rules: Sequence[Rule], baseline: Baseline | None) -> tuple[Rule, ...]:
    """The rules that hold beside the user's own; none where no rule was asked for at all."""
    if not rules:
        return ()
    return (*STANDING_RULES, *(BASELINE_RULES if baseline else ()))


def _skipped_for(
    rule: Rule, evidence: Sequence[Evidence], skipped: Sequence[Skipped]
) -> list[Skipped]:
    """The skipped targets that `rule` names, unless it also names one that was measured."""
    if any(rule.target in (one.artifact, one.target) for one in evidence):
        return []
    return [row for row in skipped if rule.target in (row["id"], row["target"])]
