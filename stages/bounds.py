"""Intervals as results show them: bounds of 95 %, and null where there is none.

JSON knows no infinity, and a bound that does not exist is not 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from kdpipe.stages.statistics import Drop, Interval
else:
    from kdpipe.targets.lazy import np

CONFIDENCE = 0.95
"""One-sided confidence of every bound that is shown without a rule of its own."""


def bounds(interval: Interval | Drop) -> dict[str, float | None]:
    """{"low", "high"}; null where the samples cannot give one."""
    low, high = (float(b) if math.isfinite(b) else None for b in (interval.low, interval.high))
    return {"low": low, "high": high}


def of_processes(values: NDArray[np.float64]) -> dict[str, Any]:
    """{"median", "low", "high", "processes"} of one value for each fresh process, (n,); nulls where
    one is not a finite number."""
    from kdpipe.stages.statistics import central

    found = central(np.asarray(values, dtype=np.float64), CONFIDENCE)
    median = found.point if math.isfinite(found.point) else None
    return {"median": median, **bounds(found), "processes": found.n}


def medians(each: Mapping[str, NDArray[np.float64]]) -> dict[str, Any]:
    """Several values of the same processes: {name: median, "bounds": {name: ...}, "processes"}."""
    found = {name: of_processes(values) for name, values in each.items()}
    return {
        **{name: one["median"] for name, one in found.items()},
        "bounds": {name: {"low": one["low"], "high": one["high"]} for name, one in found.items()},
        "processes": min(one["processes"] for one in found.values()),
    }
