"""Numbers as people read them, each with its spread, rounded so that no sentence flatters."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

LEGEND = (
    "spread   ± is the wider of two one-sided 95 % bounds, of times and speeds over processes, of "
    "the control over seeds; < is an upper bound"
)


def fraction(value: float) -> str:
    """Example: 0.9733"""
    return f"{value:.4f}"


def score(row: Mapping[str, Any], metric: str) -> str:
    """The headline metric with its bounds. Example: 0.9733±0.0112; ±? where nothing bounds it."""
    return f"{fraction(row[metric])}±{_reach(row[metric], row, '.4f', 1e4)}"


def percent(point: float, bounds: Mapping[str, Any]) -> str:
    """How far bounds reach from a time or a ratio. Example: percent(2.0, {...}) -> ±4%"""
    scaled = {
        name: None if value is None else 100 * value / point for name, value in bounds.items()
    }
    reach = _reach(100.0, scaled, ".0f", 1)
    return f"±{reach}" if reach == "?" else f"±{reach}%"


def drop(found: Mapping[str, Any]) -> str:
    """A drop and its upper bound. Example: +0.0022 <+0.0127"""
    return f"{found['mean']:+.4f} <{bound(found.get('high'))}"


def bound(value: float | None) -> str:
    """An upper bound, rounded outwards as the sentences of the gate are."""
    return "?" if value is None else f"{math.ceil(value * 1e4 - 1e-6) / 1e4:+.4f}"


def size(count: float) -> str:
    """Bytes for people. Example: 44_100 -> 43.1 KiB"""
    if count < 0:
        return f"-{size(-count)}"
    if count < 1024:
        return f"{count:.0f} B"
    return f"{count / 1024:.1f} KiB" if count < 1024**2 else f"{count / 1024**2:.1f} MiB"


def _reach(point: float, bounds: Mapping[str, Any], form: str, scale: float) -> str:
    """The larger distance of a bound from the point, rounded up; ? without both bounds."""
    low, high = bounds.get("low"), bounds.get("high")
    if low is None or high is None:
        return "?"
    reach = max(point - low, high - point)
    return format(math.ceil(reach * scale - 1e-6) / scale, form)
