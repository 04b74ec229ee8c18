"""The gate's sentences: a value with its bounds, what stands behind them, and the limit.

A sentence never flatters: measured values are rounded to the worse side, bounds outwards, and
nothing that differs from the limit or from zero is shown as if it were equal to it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal

from kdpipe.stages.gate.measure import Case, Measure
from kdpipe.stages.gate.metrics import Unit

SHOWN: Mapping[Unit, tuple[int, str]] = {
    "fraction": (4, ""),
    "%": (2, " %"),
    "ms": (3, " ms"),
    "bytes": (0, " bytes"),
    "mJ": (3, " mJ"),
    "parameters": (0, ""),
    "MACs": (0, ""),
    "x": (2, "x"),
}
"""Decimals and suffix of each unit."""
_ALL_DIGITS = Context(prec=350)
"""Enough for the largest float with 12 decimals."""


def sentence(case: Case, measure: Measure, word: str) -> str:
    """One sentence for people on why a measure passes, fails or cannot be decided."""
    least = case.name.startswith("min")
    worse = ROUND_FLOOR if least else ROUND_CEILING
    value = show(measure.point, measure.unit, case.limit, worse)
    bound = _bound(case, measure, least)
    fact = f"{measure.what} {value} ({_backing(case, measure)})"
    if word == "FAIL":
        return f"{fact} breaks the limit of {bound}{_beyond(case, measure)}"
    if word == "PASS":
        kept = "is not proven to break" if case.rule.regression and measure.counted else "keeps"
        return f"{fact} {kept} the limit of {bound}"
    beyond = measure.point < case.limit if least else measure.point > case.limit
    return f"{fact} cannot be told from the limit of {bound}: {_remedy(case, measure, beyond)}"


def within_floor(case: Case, measure: Measure) -> bool:
    """Whether the bounds exclude the limit, but by less than the noise floor."""
    beyond = case.limit - measure.high, measure.low - case.limit
    return beyond[0 if case.name.startswith("min") else 1] > 0 and measure.floor > 0


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
        shown = exact.quantize(Decimal(1).scaleb(-places), rounding, _ALL_DIGITS)
        if all(shown != mark or exact == mark for mark in marks):
            break
    return f"{abs(shown) if shown == 0 else shown:,f}{suffix}"


def percent(confidence: float) -> str:
    """Example: percent(0.95) -> "95 %", percent(1 - 0.005 / 3) -> "99.83 %"."""
    return f"{100 * confidence:.4g} %"


def _backing(case: Case, measure: Measure) -> str:
    """What stands behind a value, e.g. `95 % bounds 0.0141 to 0.0277, 5,000 samples`."""
    if not measure.counted:
        return "exact"
    counted = ", ".join(filter(None, [count(measure.n, measure.counted), measure.how]))
    low, high = (
        show(bound, measure.unit, case.limit, outwards) if math.isfinite(bound) else ""
        for bound, outwards in ((measure.low, ROUND_FLOOR), (measure.high, ROUND_CEILING))
    )
    if low and high:
        return f"{percent(case.confidence)} bounds {low} to {high}, {counted}"
    if low and measure.low > 0:  # at or below it says nothing
        return f"{percent(case.confidence)} lower bound {low}, no upper one, {counted}"
    return f"{counted}, too few for bounds"


def _bound(case: Case, measure: Measure, least: bool) -> str:
    """Example: `at most 2.000 ms`; where the noise floor is what counts, that is said."""
    limit = _show_limit(case.limit, measure.unit)
    if case.rule.regression and measure.floor > case.limit:
        return f"at most {_floor(measure)}, the noise floor, as it is above {limit}"
    return f"{'at least' if least else 'at most'} {limit}"


def _beyond(case: Case, measure: Measure) -> str:
    """That a proven failure is more than noise, where that is known."""
    if case.rule.regression or not measure.floor:
        return ""
    return f" by more than the noise floor of {_floor(measure)}"


def _floor(measure: Measure) -> str:
    return show(measure.floor, measure.unit, 0.0, ROUND_CEILING)


def _remedy(case: Case, measure: Measure, beyond: bool) -> str:
    if measure.doubt:
        return measure.doubt
    if within_floor(case, measure):
        return f"the same file measured twice differs by up to {_floor(measure)}, the noise floor"
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
    usual = exact.quantize(Decimal(1).scaleb(-decimals), context=_ALL_DIGITS)
    return f"{usual if usual == exact else exact.normalize():,f}{suffix}"
