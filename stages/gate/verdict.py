"""What the gate says: PASS, FAIL or UNDECIDED, and one sentence why; `judge.py` does the measuring.

Two families of rules. A *proof* passes when its limit is proven to hold, and fails when it is
proven not to. A *regression*, a loss against the baseline, fails when it is proven and passes
otherwise: an earlier run has shown already that the artifact is good enough.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self

from kdpipe.stages.gate.measure import Case, Measure
from kdpipe.stages.gate.metrics import unit_of
from kdpipe.stages.gate.rules import Rule
from kdpipe.stages.gate.wording import count as count
from kdpipe.stages.gate.wording import sentence
from kdpipe.stages.gate.wording import show as show

Word = Literal["PASS", "FAIL", "UNDECIDED"]
Family = Literal["proof", "regression"]
BETTER = (
    "it is better than the baseline beyond doubt: `kdpipe gate RUN --update-baseline` makes later "
    "runs keep that"
)


@dataclass(frozen=True)
class Verdict:
    """One limit of one rule, judged on one artifact.

    `rule`: as in the YAML, with this one limit. `measured`, `low`, `high`, `limit`, `floor` are in
    `unit`; `measured` is None when there is no such measurement, a bound when nothing bounds that
    side. `n` and `needed` count what `counted` says. `reason`: one sentence for people.

    `required`: False for advice, which never changes how a run ends. `against`: what the value is
    compared with, empty for a limit on the value itself. `confidence`: of `low` and of `high`, each
    alone. `standing`: the rule is none of the user's own. `floor`: the noise floor, None where
    none was measured or times are not compared. `power`: probability that an artifact which is as
    good as its reference (or, under a limit on a value, as good as measured) passes; None where
    nothing was measured. `note`: what to do now, although the rule holds.
    """

    rule: dict[str, Any]
    artifact: str
    metric: str
    verdict: Word
    measured: float | None
    low: float | None
    high: float | None
    limit: float
    unit: str
    n: int
    needed: int | None
    reason: str
    counted: str = ""
    required: bool = True
    against: str = ""
    confidence: float | None = None
    family: Family = "proof"
    standing: bool = False
    floor: float | None = None
    power: float | None = None
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain values that JSON can hold."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """What `to_dict` gave."""
        return cls(**values)


def overall(verdicts: Sequence[Verdict]) -> Word:
    """FAIL when any is, else UNDECIDED when any is or nothing was judged at all, else PASS.

    Advice (`required: false`) does not count.
    """
    words = {verdict.verdict for verdict in verdicts if verdict.required}
    if "FAIL" in words:
        return "FAIL"
    return "PASS" if words == {"PASS"} else "UNDECIDED"


def decide(case: Case, metric: str, measure: Measure) -> Verdict:
    """Judge a measure: PASS, FAIL or UNDECIDED, with the sentence."""
    word = _regressed(case, measure) if case.rule.regression else _proven(case, measure)
    better = case.rule.regression and -measure.high > max(case.limit, measure.floor)
    return Verdict(
        **_about(case.rule, case.evidence.artifact, case.standing),
        metric=metric,
        verdict=word,
        measured=measure.point,
        low=_finite(measure.low),
        high=_finite(measure.high),
        unit=measure.unit,
        n=measure.n,
        needed=measure.needed if word == "UNDECIDED" else None,
        reason=sentence(case, measure, word) + (f"; {BETTER}" if better else ""),
        counted=measure.counted,
        confidence=case.confidence if measure.counted else None,
        floor=measure.floor or None,
        power=measure.power if measure.counted else float(word == "PASS"),
        note=BETTER if better else "",
    )


def not_measured(
    rule: Rule, artifact: str, metric: str, why: str, *, standing: bool = False
) -> Verdict:
    """What has no usable measurement fails: it never passes for want of evidence."""
    return Verdict(
        **_about(rule, artifact, standing),
        metric=metric,
        verdict="FAIL",
        measured=None,
        low=None,
        high=None,
        unit=unit_of(rule.metric, rule.limit[0]),
        n=0,
        needed=None,
        reason=f"{metric} was not measured: {why}",
    )


def exceeds(case: Case, measure: Measure) -> bool:
    """Whether a loss against the baseline is proven, beyond the limit and the noise floor."""
    return measure.low > max(case.limit, measure.floor)


def _proven(case: Case, measure: Measure) -> Word:
    """PASS when the bound that hurts keeps the limit, FAIL when the other one is beyond it.

    A failure has to be larger than what the same file differs from itself by.
    """
    # A minimum is a maximum seen in the mirror: from here on, smaller is better.
    least = case.name.startswith("min")
    good, bad = (-measure.high, -measure.low) if least else (measure.low, measure.high)
    edge = -case.limit if least else case.limit
    if bad <= edge:
        return "PASS"
    return "FAIL" if good > edge + measure.floor else "UNDECIDED"


def _regressed(case: Case, measure: Measure) -> Word:
    if not (math.isfinite(measure.low) and math.isfinite(measure.high)):
        return "UNDECIDED"
    return "FAIL" if exceeds(case, measure) else "PASS"


def _about(rule: Rule, artifact: str, standing: bool) -> dict[str, Any]:
    """What a verdict says of its rule."""
    return {
        "rule": rule.as_dict(),
        "artifact": artifact,
        "limit": rule.limit[1],
        "required": rule.required,
        "against": rule.against if rule.compares else "",
        "family": "regression" if rule.regression else "proof",
        "standing": standing,
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
