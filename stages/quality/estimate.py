"""A number with what belongs beside it: bounds, n and unit."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Self

from kdpipe.stages.statistics import Drop, Interval


@dataclass(frozen=True)
class Estimate:
    """`value` and its one-sided bounds, infinite or NaN where n cannot give any.

    `n` replicates, of the kind that `counted` names. `unit`: `share`, a number from 0 to 1, or the
    difference of two.
    """

    value: float
    low: float
    high: float
    n: int
    counted: str = "samples"
    unit: str = "share"

    @classmethod
    def of(cls, found: Interval | Drop, counted: str = "samples") -> Self:
        """The estimate that an interval, or a drop, is."""
        value = found.drop if isinstance(found, Drop) else found.point
        return cls(value, found.low, found.high, found.n, counted)

    @classmethod
    def of_change(cls, drop: Drop, counted: str = "samples") -> Self:
        """What a drop is when more is not better: how much more the student has."""
        return cls(-drop.drop, -drop.high, -drop.low, drop.n, counted)

    def to_dict(self) -> dict[str, Any]:
        """For JSON, which knows neither infinity nor NaN: null."""
        numbers = {"value": self.value, "low": self.low, "high": self.high}
        finite = {name: x if math.isfinite(x) else None for name, x in numbers.items()}
        return {**finite, "n": self.n, "counted": self.counted, "unit": self.unit}
