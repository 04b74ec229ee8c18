"""Times as the gate's rules ask for them: latencies, how much faster than a reference, cold starts.

The process is the replicate. A comparison inside the noise floor, by which the same file measured
twice differs from itself, is a tie, and a tie is no failure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from kdpipe.stages import statistics
from kdpipe.stages.evidence import Evidence, Timing
from kdpipe.stages.gate import power
from kdpipe.stages.gate.baseline import Remembered
from kdpipe.stages.gate.measure import WHOSE, Case, Measure, NotMeasuredError, of_processes
from kdpipe.stages.gate.metrics import PERCENTILES, Unit
from kdpipe.stages.statistics import latency as latency_statistics
from kdpipe.stages.statistics.autocorrelation import effective_iterations
from kdpipe.stages.statistics.summaries import exp_bounds, welch_freedom

Array = NDArray[np.float64]
FLOOR_CONFIDENCE = 0.95
"""One-sided confidence of the bounds that the noise floor is read from."""
_SHORTEST, _LONGEST = 1e-12, 1e12
"""Milliseconds between which every latency lies."""
_NO_CHANCE = 10
"""Two processes do not take the same time in so many iterations, one after another."""
_ROLES = {**WHOSE, "artifact": "the artifact", "again": "the artifact's second timing"}


def latency(case: Case) -> Measure:
    """The mean latency, a percentile of it, or how it compares with a reference's."""
    metric = case.rule.metric
    if case.rule.compares:
        return _compared(case)
    timing = timed(case.evidence, "artifact")
    if metric in PERCENTILES:
        return _percentile(case, timing, PERCENTILES[metric])
    found = statistics.mean_latency(timing.processes, case.confidence)
    return _at_most(case, "mean latency", found)


def speedup(case: Case) -> Measure:
    """How many times faster than the reference, by the mean latencies of processes."""
    return _compared(case)


def start(case: Case) -> Measure:
    """Time to load the file, or of the first call, in a fresh process: one value for each."""
    each = case.evidence.start.get("artifact", {}).get(case.rule.metric)
    if each is None or not each.size:
        raise NotMeasuredError("no fresh process was timed from its start")
    if not _plausible(each):
        raise NotMeasuredError("times of the artifact's start are missing or not above 0")
    what = {"load_ms": "time to load", "first_ms": "time of the first call"}[case.rule.metric]
    return _at_most(case, what, statistics.mean_latency(singles(each), case.confidence))


def timed(evidence: Evidence, role: str) -> Timing:
    """The latencies of a role. Raises NotMeasuredError where there are none that are sound."""
    timing, whose = evidence.latency.get(role), _ROLES.get(role, role)
    if timing is None or not timing.processes:
        raise NotMeasuredError(f"{whose} was not timed")
    for samples in timing.processes:
        if samples.ndim != 1 or not samples.size or not _plausible(samples):
            raise NotMeasuredError(f"latencies of {whose} are missing, infinite or not above 0")
    long = [samples.tobytes() for samples in timing.processes if samples.size >= _NO_CHANCE]
    if len(set(long)) < len(long):
        why = "copies, or a clock that is too coarse"
        raise NotMeasuredError(f"processes of {whose} took the very same times: {why}")
    return timing


def _plausible(times: Array) -> bool:
    """Whether all are above 0 and below 30 years."""
    return bool(((times > _SHORTEST) & (times < _LONGEST)).all())


def noise_floor(evidence: Evidence) -> float | None:
    """The factor, less 1, by which the artifact differs from itself when it is timed twice.

    None where that was not measured, or not by two processes at least.
    """
    if "again" not in evidence.latency:
        return None
    own, again = (timed(evidence, role).processes for role in ("artifact", "again"))
    floor = latency_statistics.noise_floor(own, again, FLOOR_CONFIDENCE).floor
    return floor if math.isfinite(floor) else None


def singles(each: Array) -> list[Array]:
    """(n,) values, one for each process, as the statistics of latencies take them: n arrays."""
    return list(each.reshape(-1, 1))


def compared(case: Case, what: str, ratio: statistics.Interval, floor: float, how: str) -> Measure:
    """A ratio reference / artifact as a speedup, or as the percentage that the artifact is above.

    `floor`: a fraction of the artifact's value.
    """
    percent = case.name == "percent-max-degradation"
    limit = 1 / (1 + case.limit / 100) if percent else case.limit
    needed = of_processes(ratio, math.log(ratio.point) - math.log(limit), case.confidence)
    good = 0.0
    if math.isfinite(ratio.high) and ratio.low > 0:
        room, reach = math.log(ratio.point / limit), math.log(ratio.point / ratio.low)
        good = power.passing(room, reach, math.sqrt(ratio.variance / ratio.n))
    point, low, high = ratio.point, ratio.low, ratio.high
    beyond = case.limit * floor / (1 + floor)
    if percent:
        point, low, high = _above(point), _above(high), _above(low)
        beyond = 100 * floor
    unit: Unit = "%" if percent else "x"
    return Measure(
        what,
        unit,
        point,
        low,
        high,
        ratio.n,
        "processes",
        needed,
        how,
        floor=beyond,
        power=good,
    )


def _above(ratio: float) -> float:
    """By how many percent the artifact's value lies above a reference `ratio` times as large."""
    return 100 * (1 / ratio - 1) if ratio else math.inf


def _compared(case: Case) -> Measure:
    if case.rule.against == "baseline":
        ratio, then, how = _since(case)
    else:
        ratio, then, how = _ratio(case), 0.0, ""
    floor = max(noise_floor(case.evidence) or 0.0, then)
    what = f"speedup over {case.whose}"
    if case.name == "percent-max-degradation":
        what = f"{_what(case)} above that of {case.whose}"
    elif case.rule.metric in PERCENTILES:
        what = f"speedup of the {_what(case)} over {case.whose}"
    return _unless_thin(case, compared(case, what, ratio, floor, how))


def _what(case: Case) -> str:
    percentile = PERCENTILES.get(case.rule.metric)
    return f"p{100 * percentile:g} latency" if percentile else "mean latency"


def _ratio(case: Case) -> statistics.Interval:
    """Of two models measured in turns: by their means, or by the percentile of each process."""
    reference = timed(case.evidence, case.rule.against)
    artifact = timed(case.evidence, "artifact")
    percentile = PERCENTILES.get(case.rule.metric)
    slow, fast = reference.processes, artifact.processes
    if percentile:
        slow, fast = (_quantiles(side, percentile) for side in (slow, fast))
    return statistics.latency_ratio(slow, fast, case.confidence)


def _quantiles(processes: Sequence[Array], percentile: float) -> tuple[Array, ...]:
    """The percentile of each process; type 8 of Hyndman and Fan, as for the percentile itself."""
    return tuple(np.quantile(p, [percentile], method="median_unbiased") for p in processes)


def _unless_thin(case: Case, found: Measure) -> Measure:
    """The same, but without bounds where a side has too few iterations to tell the percentile."""
    percentile = PERCENTILES.get(case.rule.metric)
    if not percentile:
        return found
    sides = [timed(case.evidence, role).processes for role in ("artifact", case.rule.against)]
    least, of = min((effective_iterations(p, percentile), sum(map(len, p))) for p in sides)
    needed = statistics.needed_samples(percentile, case.confidence)
    if least >= needed:
        return found
    thin = replace(found, low=-math.inf, high=math.inf, power=0.0)
    return replace(thin, n=least, counted="iterations", needed=needed, how=_effective(least, of))


def _effective(iterations: int, of: int) -> str:
    return "" if iterations == of else f"effective of {of:,}"


def _since(case: Case) -> tuple[statistics.Interval, float, str]:
    """Baseline / artifact, the baseline's noise floor, and how they were compared.

    On the machine of the baseline times are compared, on another one ratios to the teacher are.
    """
    old, evidence = case.remembered, case.evidence
    now = statistics.log_mean(timed(evidence, "artifact").processes)
    floor = old.noise_floor or 0.0
    if old.same_machine(evidence.machine):
        then = _logs(old, "artifact")
        return statistics.ratio_of(then, now, case.confidence), floor, "on the same machine"
    teacher = statistics.log_mean(timed(evidence, "teacher").processes)
    logs = [_logs(old, "artifact"), now, _logs(old, "teacher"), teacher]
    how = "on another machine, so both in relation to the teacher"
    return _contrast(logs, case.confidence), floor, how


def _logs(old: Remembered, role: str) -> statistics.LogSummary:
    found = old.latency.get(role)
    if found is None:
        raise NotMeasuredError(f"the baseline has no latency of {WHOSE.get(role, 'the artifact')}")
    return statistics.LogSummary(found.mean, found.variance, found.processes)


def _contrast(logs: Sequence[statistics.LogSummary], confidence: float) -> statistics.Interval:
    """exp(a - b - c + d) of four mean logarithms: Welch's t interval with Satterthwaite's freedom.

    Satterthwaite (Biometrics 2, 110, 1946) for a sum of any number of independent means.
    """
    a, b, c, d = (one.mean for one in logs)
    errors = [one.variance / one.processes for one in logs]
    least = min(one.processes for one in logs)
    freedom = welch_freedom(errors, [one.processes - 1 for one in logs])
    low, high = exp_bounds(a - b - c + d, sum(errors), freedom, confidence)
    spread = sum(one.variance for one in logs)
    return statistics.Interval(math.exp(a - b - c + d), low, high, least, spread)


def _percentile(case: Case, timing: Timing, percentile: float) -> Measure:
    """A percentile; neighbours in time that repeat one another count as one iteration."""
    what = f"p{100 * percentile:g} latency"
    found = statistics.latency_percentile(timing.processes, percentile, case.confidence)
    needed = statistics.needed_samples(percentile, case.confidence)
    effective = effective_iterations(timing.processes, percentile)
    if effective >= needed:
        return _at_most(case, what, found)
    how = _effective(effective, timing.pooled.size)
    low, high = -math.inf, math.inf
    return Measure(
        what, "ms", found.point, low, high, effective, "iterations", needed, how, power=0.0
    )


def _at_most(case: Case, what: str, found: statistics.Interval) -> Measure:
    """A time of processes under a limit in ms; their number is planned on the logarithm."""
    room = math.log(case.limit) - math.log(found.point)
    good = 0.0
    if math.isfinite(found.high):
        error = math.sqrt(found.variance / found.n)
        good = power.passing(room, math.log(found.high / found.point), error)
    return Measure(
        what,
        "ms",
        found.point,
        found.low,
        found.high,
        found.n,
        "processes",
        of_processes(found, room, case.confidence),
        power=good,
    )
