"""What the gate says: PASS, FAIL or UNDECIDED, and one sentence why; `judge.py` does the measuring.

A sentence never flatters: measured values are rounded to the worse side, bounds outwards, and
nothing that differs from the limit or from zero is shown as if it were equal to it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from typing import Any, Literal, Self

from kdpipe.stages.gate.rules import Rule, Unit

Word = Literal["PASS", "FAIL", "UNDECIDED"]

SHOWN: Mapping[Unit, tuple[int, str]] = {
    "fraction": (4, ""),
    "%": (2, " %"),
    "ms": (3, " ms"),
    "bytes": (0, " bytes"),
    "parameters": (0, ""),
    "x": (2, "x"),
}
"""Decimals and suffix of each unit."""


@dataclass(frozen=True)
class Measure:
    """A measured value with its one-sided bounds, in `unit`; infinite where nothing bounds it.

    `n` of what was `counted` (samples, groups, processes, iterations); empty for exact numbers.
    `needed`: how many of them would probably decide; None when that is not known or never.
    """

    what: str
    unit: Unit
    point: float
    low: float
    high: float
    n: int
    counted: str = ""
    needed: int | None = None


@dataclass(frozen=True)
class Verdict:
    """One limit of one rule, judged on one artifact.

    `rule`: as in the YAML, with this one limit. `measured`, `low`, `high`, `limit` are in `unit`;
    `measured` is None when there is no such measurement, a bound when nothing bounds that side.
    `n` and `needed` count what `counted` says. `reason`: one sentence for people.
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

    def to_dict(self) -> dict[str, Any]:
        """Plain values that JSON can hold."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """What `to_dict` gave."""
        return cls(**values)


def overall(verdicts: Sequence[Verdict]) -> Word:
    """FAIL when any is, else UNDECIDED when any is or nothing was judged at all, else PASS."""
    words = {verdict.verdict for verdict in verdicts}
    if "FAIL" in words:
        return "FAIL"
    return "PASS" if words == {"PASS"} else "UNDECIDED"


def decide(rule: Rule, artifact: str, metric: str, measure: Measure) -> Verdict:
    """Judge a measure by a rule with one limit.

    PASS when the bound that hurts keeps the limit, FAIL when the other one is beyond it.
    """
    ((name, limit),) = rule.limits.items()
    # A minimum is a maximum seen in the mirror: from here on, smaller is better.
    good, bad = (measure.low, measure.high) if name != "min" else (-measure.high, -measure.low)
    edge = limit if name != "min" else -limit
    word: Word = "UNDECIDED"
    if bad <= edge:
        word = "PASS"
    if good > edge:
        word = "FAIL"
    return Verdict(
        rule=rule.as_dict(),
        artifact=artifact,
        metric=metric,
        verdict=word,
        measured=measure.point,
        low=_finite(measure.low),
        high=_finite(measure.high),
        limit=limit,
        unit=measure.unit,
        n=measure.n,
        needed=measure.needed if word == "UNDECIDED" else None,
        reason=_sentence(rule, measure, word),
        counted=measure.counted,
    )


def not_measured(rule: Rule, artifact: str, metric: str, unit: str, why: str) -> Verdict:
    """What has no usable measurement fails: it never passes for want of evidence."""
    (limit,) = rule.limits.values()
    return Verdict(
        rule=rule.as_dict(),
        artifact=artifact,
        metric=metric,
        verdict="FAIL",
        measured=None,
        low=None,
        high=None,
        limit=limit,
        unit=unit,
        n=0,
        needed=None,
        reason=f"{metric} was not measured: {why}",
    )


def count(n: int, counted: str) -> str:
    """Example: count(1, "processes") -> "1 process"; count(2000, "samples") -> "2,000 samples"."""
    one = {"processes": "process"}.get(counted, counted.removesuffix("s"))
    return f"{n:,} {one if n == 1 else counted}"


def show(value: float, unit: Unit, limit: float, rounding: str) -> str:
    """`value` with its unit, rounded by `rounding` (of `decimal`) to the usual decimals.

    It gets as many more decimals as it takes not to read as zero or as `limit` when it is not.
    Example: show(0.010004, "fraction", 0.01, ROUND_FLOOR) -> "0.010004"
    """
    decimals, suffix = SHOWN[unit]
    exact = Decimal(repr(round(float(value), 12)))  # 12: what 0.1 + 0.2 leaves is not a measurement
    marks = [Decimal(0), Decimal(repr(float(limit)))]
    shown = exact
    for places in range(decimals, 13):
        shown = exact.quantize(Decimal(1).scaleb(-places), rounding)
        if all(shown != mark or exact == mark for mark in marks):
            break
    return f"{abs(shown) if shown == 0 else shown:,f}{suffix}"


def _sentence(rule: Rule, measure: Measure, word: Word) -> str:
    ((name, limit),) = rule.limits.items()
    least = name == "min"
    worse = ROUND_FLOOR if least else ROUND_CEILING
    value = show(measure.point, measure.unit, limit, worse)
    bound = f"{'at least' if least else 'at most'} {_show_limit(limit, measure.unit)}"
    fact = f"{measure.what} {value} ({_backing(rule, measure, limit)})"
    if word == "PASS":
        return f"{fact} keeps the limit of {bound}"
    if word == "FAIL":
        return f"{fact} breaks the limit of {bound}"
    beyond = measure.point < limit if least else measure.point > limit
    return f"{fact} cannot be told from the limit of {bound}: {_remedy(measure, beyond)}"


def _backing(rule: Rule, measure: Measure, limit: float) -> str:
    """What stands behind a value, e.g. `95 % bounds 0.0141 to 0.0277, 5,000 samples`."""
    if not measure.counted:
        return "exact"
    counted = count(measure.n, measure.counted)
    if not (math.isfinite(measure.low) and math.isfinite(measure.high)):
        return f"{counted}, too few for bounds"
    low = show(measure.low, measure.unit, limit, ROUND_FLOOR)
    high = show(measure.high, measure.unit, limit, ROUND_CEILING)
    return f"{100 * rule.confidence:g} % bounds {low} to {high}, {counted}"


def _remedy(measure: Measure, beyond: bool) -> str:
    if measure.needed is None:
        return "it lies on the limit, where no number of measurements decides"
    needed = count(measure.needed, measure.counted)
    if not math.isfinite(measure.high):
        return f"at least {needed} are needed"
    if beyond:
        return f"as measured it does not keep it, and about {needed} would prove that"
    return f"about {needed} would decide"


def _show_limit(limit: float, unit: Unit) -> str:
    """The limit as the user wrote it, with at least the usual decimals."""
    decimals, suffix = SHOWN[unit]
    exact = Decimal(repr(limit))
    usual = exact.quantize(Decimal(1).scaleb(-decimals))
    return f"{usual if usual == exact else exact.normalize():,f}{suffix}"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
