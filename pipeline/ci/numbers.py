"""Numbers in tables, each with its unit, its bounds and what it counted; null is a hyphen."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from typing import Any

from kdpipe.pipeline.ci.findings import limit_of
from kdpipe.stages.gate.verdict import count, show
from kdpipe.stages.gate.wording import SHOWN

NONE = "-"


def measured(verdict: Mapping[str, Any]) -> str:
    """What was measured, rounded to the worse side as in the gate's sentences."""
    least = next(iter(limit_of(verdict["rule"])), "").startswith("min")
    return _shown(verdict, "measured", ROUND_FLOOR if least else ROUND_CEILING)


def bounds(verdict: Mapping[str, Any]) -> str:
    """Example: 0.0141 to 0.0277 (95 %); `exact` where nothing was estimated."""
    if verdict["measured"] is None:
        return NONE
    if not verdict.get("counted"):
        return "exact"
    if verdict["low"] is None and verdict["high"] is None:
        return "none"
    low, high = _shown(verdict, "low", ROUND_FLOOR), _shown(verdict, "high", ROUND_CEILING)
    confidence = verdict.get("confidence") or verdict["rule"].get("confidence")
    level = f" ({100 * confidence:.4g} %)" if confidence else ""
    return f"{low} to {high}{level}"


def limit(verdict: Mapping[str, Any]) -> str:
    """Example: at most 0.0100

    A regression passes unless a loss is proven: `no proven loss above 5.00 %`, or above the noise
    floor where that is more.
    """
    least = next(iter(limit_of(verdict["rule"])), "").startswith("min")
    if verdict.get("family") == "regression" and not least:
        floor = verdict.get("floor") or 0.0
        most = max(("limit", "floor"), key={"limit": verdict["limit"], "floor": floor}.__getitem__)
        if most == "floor":
            return (
                f"no proven loss above {_shown(verdict, 'floor', ROUND_CEILING)}, the noise floor"
            )
        return f"no proven loss above {_as_written(verdict)}"
    return f"{'at least' if least else 'at most'} {_as_written(verdict)}"


def _as_written(verdict: Mapping[str, Any]) -> str:
    """The limit with all its digits, and at least the usual ones. Example: 0.001x"""
    exact = Decimal(repr(float(verdict["limit"])))
    decimals, suffix = SHOWN.get(verdict["unit"], (0, f" {verdict['unit']}".rstrip()))
    own = exact.normalize().as_tuple().exponent
    places = max(decimals, -own if isinstance(own, int) else 0)
    return f"{exact:,.{places}f}{suffix}"


def counted(verdict: Mapping[str, Any]) -> str:
    """Example: 5,000 samples"""
    return count(verdict["n"], verdict["counted"]) if verdict.get("counted") else NONE


def interval(row: Mapping[str, Any] | None, key: str, decimals: int, unit: str = "") -> str:
    """A value of `results.json` with its 95 % bounds. Example: 0.9733 (0.9601 to 0.9830)"""
    if not row or row.get(key) is None:
        return NONE
    low, high = (
        "?" if row.get(name) is None else _rounded(row[name], decimals, outwards)
        for name, outwards in (("low", ROUND_FLOOR), ("high", ROUND_CEILING))
    )
    return f"{row[key]:.{decimals}f}{unit} ({low} to {high})"


def _rounded(value: float, decimals: int, rounding: str) -> str:
    """Bounds are rounded outwards, as in the gate's sentences. Example: 0.02148 -> 0.0214"""
    exact = Decimal(repr(round(value, 12)))
    return str(exact.quantize(Decimal(1).scaleb(-decimals), rounding) + 0)  # + 0: never -0


def _shown(verdict: Mapping[str, Any], name: str, rounding: str) -> str:
    value, unit = verdict[name], verdict["unit"]
    if value is None:
        return "?"
    try:
        return show(value, unit, verdict["limit"], rounding)
    except KeyError:  # of a later kdpipe, whose units this one does not know
        return f"{value:g} {unit}".rstrip()
