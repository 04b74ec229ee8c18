"""How often a good model passes: the power of each rule, and of all of them together.

A gate that asks for proof refuses good models, too, when it has too little evidence: six rules of
power 0.8 pass together in a quarter of runs, at worst in none. Normal approximations, with bounds
as wide as those that were measured.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from kdpipe.stages import statistics
from kdpipe.stages.gate.verdict import Verdict
from kdpipe.stages.gate.wording import count


def passing(room: float, reach: float, error: float) -> float:
    """P(the bound keeps the limit) for an estimate with a standard `error`.

    `room`: from the true value to the limit. `reach`: from the estimate to its bound. All on one
    scale. Phi((room - reach) / error). Example: passing(0.01, 0.00661, 0.00402) -> 0.80
    """
    if error == 0 or not math.isfinite(reach):
        return float(room >= reach)
    return 0.5 * math.erfc((reach - room) / error / math.sqrt(2))


def of_drop(drop: statistics.Drop, margin: float, grouped: bool) -> float:
    """P(a drop is proven to be under `margin`) when the true drop is 0.

    Samples disagree as often as those that were measured do, and groups differ as much; so bounds
    are as wide. Example: 3,092 samples of which 5 % disagree, margin 0.01 at 0.95 -> about 0.79
    """
    # Without a true drop, samples vary by all of their discordance; groups as they were seen to.
    error = math.sqrt((drop.variance if grouped else drop.discordance) / drop.n)
    return passing(margin, drop.high - drop.drop, error)


def together(powers: Sequence[float]) -> float:
    """At least so often all rules pass: 1 - sum(1 - power), which holds however they depend."""
    return max(0.0, 1 - sum(1 - power for power in powers))


def of_policy(verdicts: Sequence[Verdict]) -> dict[str, Any] | None:
    """{"joint", "rules", "least", "sentence"} of the required rules that were measured.

    `joint`: `together` of their powers; `least`: artifact, metric and power of the weakest. None
    where nothing was measured.
    """
    judged = [(v, v.power) for v in verdicts if v.required and v.power is not None]
    if not judged:
        return None
    joint = together([power for _, power in judged])
    weakest, least = min(judged, key=lambda pair: pair[1])
    said = (
        f"a model as good as its reference, and as fast and small as measured, passes "
        f"{_all(len(judged))} in at least {_percent(joint)} of runs"
    )
    if least < 1:
        said += f" (least certain: {weakest.artifact} {weakest.metric}, {_percent(least)})"
    return {
        "joint": joint,
        "rules": len(judged),
        "least": {"artifact": weakest.artifact, "metric": weakest.metric, "power": least},
        "sentence": said,
    }


def _all(rules: int) -> str:
    return "its 1 rule" if rules == 1 else f"all {count(rules, 'rules')}"


def _percent(share: float) -> str:
    """Rounded down: a power is not promised. Example: 0.99996 -> "99.9 %"."""
    return f"{math.floor(1000 * share + 1e-9) / 10:g} %"
