"""How many samples would decide, before or after measuring."""

from __future__ import annotations

import math

from kdpipe.stages.statistics.distributions import check_fraction, normal_quantile


def needed_samples(percentile: float, confidence: float) -> int:
    """Fewest independent samples whose maximum is an upper bound of a percentile (0 to 1).

    n >= ln(1 - confidence) / ln(percentile). Example: needed_samples(0.95, 0.95) -> 59
    """
    check_fraction(percentile=percentile, confidence=confidence)
    # 1e-9: ln(0.25) / ln(0.5) may come out a hair above 2
    return math.ceil(math.log1p(-confidence) / math.log(percentile) - 1e-9)


def samples_to_separate(
    gap: float,
    variance: float,
    confidence: float,
    power: float = 0.8,
    at_limit: float | None = None,
) -> int | None:
    """Replicates that tell a true value from a limit `gap` away, or None when the gap is 0.

    n = (z_confidence sqrt(v0) + z_power sqrt(v))^2 / gap^2, the normal approximation. `variance`:
    of a replicate as measured, v. `at_limit`: v0, if its mean were the limit; v when left out.
    """
    check_fraction(confidence=confidence, power=power)
    if gap == 0:
        return None
    null = variance if at_limit is None else at_limit
    reach = normal_quantile(confidence) * math.sqrt(null)
    reach += normal_quantile(power) * math.sqrt(variance)
    return max(1, math.ceil((reach / gap) ** 2))


def samples_to_decide(
    drop: float, discordance: float, margin: float, confidence: float, power: float = 0.8
) -> int | None:
    """Samples that prove a drop to be under `margin`, or None when the true drop is not.

    n = (z_confidence + z_power)^2 (d - D^2) / (m - D)^2 (paired non-inferiority), and never fewer
    than zero disagreements need. As `drop_bounds` are wider, 80 % come out as 77, and as 60 where
    six disagreements are expected; `at_limit` of `samples_to_separate` mends that.
    Example: samples_to_decide(0.0, 0.05, 0.01, 0.95) -> 3092
    """
    if drop >= margin:
        return None
    planned = samples_to_separate(margin - drop, discordance - drop**2, confidence, power)
    return max(planned or 1, needed_samples(1 - margin, confidence))


def samples_to_detect(
    drop: float, discordance: float, confidence: float, power: float = 0.8
) -> int | None:
    """Samples for McNemar's test to see a true drop at all, or None when there is none to see.

    n = (z_confidence sqrt(d) + z_power sqrt(d - D^2))^2 / D^2 (Connor 1987). A two-sided test at
    5 % has confidence 0.975. Example: samples_to_detect(0.01, 0.05, 0.975) -> 3923
    """
    check_fraction(confidence=confidence, power=power)
    if drop == 0:
        return None
    null = normal_quantile(confidence) * math.sqrt(discordance)
    true = normal_quantile(power) * math.sqrt(discordance - drop**2)
    return math.ceil((null + true) ** 2 / drop**2)
