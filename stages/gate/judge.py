"""Judging: rules (`rules.py`) over raw evidence (`evidence.py`), by what statistics can prove.

For each limit and artifact: find the measurement with its bounds (`scores.py`, `quality.py`,
`times.py`, `sizes.py`), then let `verdict.py` say PASS, FAIL or UNDECIDED. A metric that is
missing, not a number or not finite never passes.

Losses against the baseline are judged together, by Holm's procedure: a run like the earlier one
fails falsely in at most 1 of 200. Proofs need no correction, as an artifact has to pass them all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from kdpipe.stages.evidence import Evidence
from kdpipe.stages.gate import quality, scores, sizes, times
from kdpipe.stages.gate.baseline import Baseline
from kdpipe.stages.gate.measure import WHOSE, Case, Measure, NotMeasuredError
from kdpipe.stages.gate.metrics import PERCENTILES, SCORE, SCORES
from kdpipe.stages.gate.rules import Rule
from kdpipe.stages.gate.verdict import Verdict as Verdict
from kdpipe.stages.gate.verdict import decide, exceeds, not_measured
from kdpipe.stages.gate.verdict import overall as overall
from kdpipe.targets.errors import listing

REGRESSION_LEVEL = 0.005
"""How often all regression rules of a run together may fail falsely, at most: 1 in 200."""

MEASURES: Mapping[str, Callable[[Case], Measure]] = {
    **dict.fromkeys(SCORES, scores.score),
    "agreement": scores.agreement,
    "worst_class_drop": quality.worst_class_drop,
    "worst_group_drop": quality.worst_group_drop,
    "macro_f1": quality.f1,
    "ece": quality.ece,
    "robustness": quality.robustness,
    "speedup": times.speedup,
    **dict.fromkeys(("latency_mean_ms", *PERCENTILES), times.latency),
    "load_ms": times.start,
    "first_ms": times.start,
    "size_bytes": sizes.single,
    "memory_bytes": sizes.memory,
    "gpu_memory_bytes": sizes.gpu_memory,
    "energy_mj": sizes.energy,
    "parameters": sizes.single,
    "macs": sizes.single,
    "compression": sizes.compression,
    "int8_fraction": sizes.single,
}
"""How each metric of METRICS is measured."""


def judge(
    rules: Sequence[Rule],
    evidence: Sequence[Evidence],
    baseline: Baseline | None = None,
    standing: Sequence[Rule] = (),
) -> list[Verdict]:
    """One verdict per limit of each rule and artifact, in that order; `standing` rules last.

    A rule whose target matches nothing gets a FAIL of its own. A comparison with the fp32 twin says
    nothing about artifacts that are fp32 themselves, a share of int8 nothing about those that are
    not int8, and a baseline nothing about an artifact that it does not know; they get no verdict
    unless the rule names them. `standing` rules hold for int8 artifacts, and those against the
    baseline for all that it knows, where no rule of the user's says more of the same.
    """
    asked: list[Case | Verdict] = []
    for part in _parts(rules):
        asked += _own(part, evidence, baseline)
    for part in _parts(standing):
        asked += _standing(part, rules, evidence, baseline)
    verdicts = {n: one if isinstance(one, Verdict) else _judge(one) for n, one in enumerate(asked)}
    for required in (True, False):
        family = {
            n: case
            for n, case in enumerate(asked)
            if isinstance(case, Case) and case.rule.regression and verdicts[n].counted
            if case.rule.required == required
        }
        verdicts |= _holm(family)
    return list(verdicts.values())


def _parts(rules: Sequence[Rule]) -> Iterator[Rule]:
    for rule in rules:
        yield from rule.parts()


def _own(
    rule: Rule, evidence: Sequence[Evidence], baseline: Baseline | None
) -> Iterator[Case | Verdict]:
    """What a rule of the user's asks of the artifacts that it is about."""
    named = [e for e in evidence if rule.target in (None, e.artifact, e.target)]
    if not named:
        there = listing([e.artifact for e in evidence]) or "none"
        what = f"'{rule.target}' matches no artifact" if rule.target else "there is no artifact"
        why = f"{what} (there are: {there})"
        yield not_measured(rule, rule.target or "", rule.metric, why)
        return
    reasons = {e.artifact: _beside_the_point(rule, e, baseline) for e in named}
    judged = [e for e in named if not reasons[e.artifact]]
    unknown = rule.against == "baseline" and not judged
    if not judged and (rule.target or unknown):
        why = f"{named[0].artifact} is {reasons[named[0].artifact]}"
        yield not_measured(rule, rule.target or named[0].artifact, rule.metric, why)
    for one in judged:
        yield Case(rule, one, baseline, rule.confidence)


def _standing(
    rule: Rule, own: Sequence[Rule], evidence: Sequence[Evidence], baseline: Baseline | None
) -> Iterator[Case]:
    """What a standing rule asks of those of which no rule of the user's does."""
    for one in evidence:
        covered = any(r.covers(rule) and r.target in (None, one.artifact, one.target) for r in own)
        meant = rule.against == "baseline" or one.precision == "int8"
        if meant and not covered and not _beside_the_point(rule, one, baseline):
            yield Case(rule, one, baseline, rule.confidence, standing=True)


def _judge(case: Case) -> Verdict:
    try:
        return _decide(case, MEASURES[case.rule.metric](case))
    except NotMeasuredError as missing:
        rule, artifact = case.rule, case.evidence.artifact
        return not_measured(rule, artifact, _metric(case), str(missing), standing=case.standing)


def _decide(case: Case, measure: Measure) -> Verdict:
    verdict = decide(case, _metric(case), measure)
    if verdict.verdict != "FAIL":
        return verdict
    causes = [case.evidence.diagnosis] if _about_int8(case.rule) else []
    if case.rule.metric in SCORES:
        causes = [case.evidence.blame]
    return replace(verdict, reason="; ".join(filter(None, [verdict.reason, *causes])))


def _holm(family: Mapping[int, Case]) -> dict[int, Verdict]:
    """Losses against the baseline, judged at a total level (Holm, Scand. J. Stat. 6, 65, 1979).

    Of k that are left, all that are proven at level / k fail, and the others go on with what is
    left of the level. A verdict shows the bounds at which it was made. A run that is like the
    earlier one passes each with 1 - level / k at least.
    """
    verdicts: dict[int, Verdict] = {}
    left, power = family, 1 - REGRESSION_LEVEL / max(1, len(family))
    while left:
        share = REGRESSION_LEVEL / len(left)
        at = {n: replace(case, confidence=1 - share) for n, case in left.items()}
        found = {n: MEASURES[case.rule.metric](case) for n, case in at.items()}
        verdicts |= {n: _decide(at[n], replace(found[n], power=power)) for n in left}
        kept = {n: case for n, case in left.items() if not exceeds(case, found[n])}
        left = kept if len(kept) < len(left) else {}
    return verdicts


def _beside_the_point(rule: Rule, evidence: Evidence, baseline: Baseline | None) -> str:
    """Why a rule says nothing about an artifact, or nothing when it does."""
    if rule.against == "fp32" and evidence.precision == "fp32":
        return "fp32 itself, so it has no fp32 twin to compare with"
    if rule.metric == "int8_fraction" and evidence.precision != "int8":
        return f"{evidence.precision}, so none of it is meant to run in int8"
    if rule.against == "baseline" and baseline and evidence.artifact not in baseline.artifacts:
        return f"new: {WHOSE['baseline']} has {listing(list(baseline.artifacts)) or 'no artifact'}"
    return ""


def _about_int8(rule: Rule) -> bool:
    """Whether a rule fails because of what the runtime made of the int8 file."""
    return rule.metric == "int8_fraction" or rule.against == "fp32"


def _metric(case: Case) -> str:
    return case.evidence.metric if case.rule.metric == SCORE else case.rule.metric
