"""Judging: rules (`rules.py`) over raw evidence (`evidence.py`), by what statistics can prove.

For each limit and artifact: find the measurement with its bounds, then let `verdict.py` say PASS,
FAIL or UNDECIDED. A metric that is missing, not a number or not finite never passes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from kdpipe.stages import statistics
from kdpipe.stages.evidence import Evidence, Timing
from kdpipe.stages.gate.rules import METRICS, PERCENTILES, SCORE, SCORES, Rule, Unit
from kdpipe.stages.gate.verdict import Measure, decide, not_measured
from kdpipe.stages.gate.verdict import Verdict as Verdict
from kdpipe.stages.gate.verdict import overall as overall
from kdpipe.targets.errors import listing

if TYPE_CHECKING:
    from numpy.typing import NDArray

PROCESSES = 10
"""Asked for when a single process was measured and its spread is therefore unknown."""


class NotMeasuredError(Exception):
    """There is no usable measurement of what a rule asks for; says why, in a few words."""


def judge(rules: Sequence[Rule], evidence: Sequence[Evidence]) -> list[Verdict]:
    """One verdict per limit of each rule and artifact, in that order.

    A rule whose target matches nothing gets a FAIL of its own. A speedup over fp32 says nothing
    about artifacts that are fp32 themselves, and a share of int8 nothing about those that are not
    int8; they get no verdict unless the rule names them.
    """
    parts = [part for rule in rules for part in rule.parts()]
    return [verdict for part in parts for verdict in _judge_part(part, evidence)]


def _judge_part(rule: Rule, evidence: Sequence[Evidence]) -> list[Verdict]:
    named = [e for e in evidence if rule.target in (None, e.artifact, e.target)]
    if not named:
        there = listing([e.artifact for e in evidence]) or "none"
        what = f"'{rule.target}' matches no artifact" if rule.target else "there is no artifact"
        return [_unmeasured(rule, rule.target or "", rule.metric, f"{what} (there are: {there})")]
    judged = [e for e in named if not _beside_the_point(rule, e)]
    if not judged and rule.target:
        why = _beside_the_point(rule, named[0])
        return [_unmeasured(rule, rule.target, rule.metric, f"{rule.target} is {why}")]
    return [_judge_one(rule, e) for e in judged]


def _judge_one(rule: Rule, evidence: Evidence) -> Verdict:
    metric = evidence.metric if rule.metric == SCORE else rule.metric
    try:
        measure = MEASURES[rule.metric](rule, evidence)
    except NotMeasuredError as missing:
        return _unmeasured(rule, evidence.artifact, metric, str(missing))
    verdict = decide(rule, evidence.artifact, metric, measure)
    if verdict.verdict == "FAIL" and evidence.diagnosis and _about_int8(rule):
        return replace(verdict, reason=f"{verdict.reason}; {evidence.diagnosis}")
    return verdict


def _beside_the_point(rule: Rule, evidence: Evidence) -> str:
    """Why a rule says nothing about an artifact, or nothing when it does."""
    if rule.against == "fp32" and evidence.precision == "fp32":
        return "fp32 itself, so it has no fp32 twin to be faster than"
    if rule.metric == "int8_fraction" and evidence.precision != "int8":
        return f"{evidence.precision}, so none of it is meant to run in int8"
    return ""


def _about_int8(rule: Rule) -> bool:
    """Whether a rule fails because of what the runtime made of the int8 file."""
    return rule.metric == "int8_fraction" or rule.against == "fp32"


def _unmeasured(rule: Rule, artifact: str, metric: str, why: str) -> Verdict:
    unit = "%" if rule.percent_max_degradation is not None else METRICS[rule.metric].unit
    return not_measured(rule, artifact, metric, unit, why)


# --- scores -------------------------------------------------------------------------------------


def _score(rule: Rule, evidence: Evidence) -> Measure:
    """The headline metric itself (`min`), or its loss against the teacher (`max-degradation`)."""
    if rule.metric not in (SCORE, evidence.metric):
        raise NotMeasuredError(f"this run measures {evidence.metric}")
    if rule.min is not None:
        return _mean(rule, evidence, evidence.metric, evidence.score, "of the artifact")
    return _drop(rule, evidence)


def _drop(rule: Rule, evidence: Evidence) -> Measure:
    """Loss against the teacher; in percent, its score on these very samples counts as 100 %."""
    teacher = _scores(evidence.teacher_score, evidence, "of the teacher")
    score = _scores(evidence.score, evidence, "of the artifact")
    ((name, limit),) = rule.limits.items()
    percent = name == "percent-max-degradation"
    whole = float(teacher.mean(dtype=np.float64))
    if percent and whole == 0:
        raise NotMeasuredError("the teacher scores 0, which has no percentage")
    scale = 100 / whole if percent else 1.0
    drop = statistics.paired_drop(teacher, score, rule.confidence, evidence.groups)
    margin = limit / scale
    needed = _replicates(evidence, drop, margin - drop.drop, 1 - margin, rule.confidence)
    return Measure(
        what=f"{evidence.metric} drop against the teacher",
        unit="%" if percent else "fraction",
        point=drop.drop * scale,
        low=drop.low * scale,
        high=drop.high * scale,
        n=drop.n,
        counted=_counted(evidence),
        needed=_more_than(drop.n, needed),
    )


def _agreement(rule: Rule, evidence: Evidence) -> Measure:
    what = "agreement with the teacher"
    return _mean(rule, evidence, what, evidence.agreement, "of agreement")


def _mean(
    rule: Rule, evidence: Evidence, what: str, found: NDArray[np.float32], whose: str
) -> Measure:
    scores, least = _scores(found, evidence, whose), _limit(rule)
    mean = statistics.mean_score(scores, rule.confidence, evidence.groups)
    needed = _replicates(evidence, mean, mean.point - least, least, rule.confidence)
    return _bounded(what, "fraction", mean, _counted(evidence), needed)


def _scores(scores: NDArray[np.float32], evidence: Evidence, whose: str) -> NDArray[np.float32]:
    """Scores that are numbers from 0 to 1, of the very samples that the artifact was judged on."""
    if not scores.size:
        raise NotMeasuredError(f"there are no scores {whose}")
    bad = int((~((scores >= 0) & (scores <= 1))).sum())
    if bad:
        raise NotMeasuredError(f"{bad} of {scores.size} scores {whose} are not from 0 to 1")
    if scores.shape != evidence.score.shape:
        found = f"{evidence.score.size} scores, but {scores.size} {whose}"
        raise NotMeasuredError(f"{found}, so they are not pairs")
    if evidence.groups is not None and evidence.groups.shape != scores.shape:
        raise NotMeasuredError(f"{scores.size} scores, but groups of {evidence.groups.size}")
    return scores


def _replicates(
    evidence: Evidence,
    found: statistics.Drop | statistics.Interval,
    room: float,
    share: float,
    confidence: float,
) -> int | None:
    """How many samples, or groups, would tell a value from a limit that leaves it `room`.

    Room below 0: the limit is broken as measured. Samples that keep it are never fewer than it
    takes to prove a `share` of them when all are alike. Groups may be, unless there are already
    as many as their spread asks for.
    """
    if evidence.groups is not None and found.n < 2:
        return 2
    planned = statistics.samples_to_separate(room, found.variance, confidence)
    if room > 0 and planned and (evidence.groups is None or planned <= found.n):
        planned = max(planned, statistics.needed_samples(share, confidence))
    return planned


def _counted(evidence: Evidence) -> str:
    return "samples" if evidence.groups is None else "groups"


# --- latencies ----------------------------------------------------------------------------------


def _mean_latency(rule: Rule, evidence: Evidence) -> Measure:
    timing = _timing(evidence, "artifact")
    interval = statistics.mean_latency(timing.processes, rule.confidence)
    return _latency(rule, "mean latency", "ms", interval)


def _percentile(rule: Rule, evidence: Evidence) -> Measure:
    timing = _timing(evidence, "artifact")
    percentile, iterations = PERCENTILES[rule.metric], timing.pooled.size
    interval = statistics.latency_percentile(timing.processes, percentile, rule.confidence)
    what = f"p{100 * percentile:g} latency"
    needed = statistics.needed_samples(percentile, rule.confidence)
    if iterations < needed:
        low, high = -math.inf, math.inf
        return Measure(what, "ms", interval.point, low, high, iterations, "iterations", needed)
    return _latency(rule, what, "ms", interval)


def _speedup(rule: Rule, evidence: Evidence) -> Measure:
    reference = _timing(evidence, rule.against).processes
    artifact = _timing(evidence, "artifact").processes
    interval = statistics.latency_ratio(reference, artifact, rule.confidence)
    whose = "the teacher" if rule.against == "teacher" else "its fp32 twin"
    return _latency(rule, f"speedup over {whose}", "x", interval)


def _latency(rule: Rule, what: str, unit: Unit, interval: statistics.Interval) -> Measure:
    """A latency or ratio of processes; their number is planned on the logarithm."""
    gap = math.log(interval.point) - math.log(_limit(rule))
    needed: int | None = PROCESSES
    if interval.n > 1:
        needed = statistics.samples_to_separate(gap, interval.variance, rule.confidence)
    return _bounded(what, unit, interval, "processes", needed)


def _timing(evidence: Evidence, role: str) -> Timing:
    timing = evidence.latency.get(role)
    if timing is None or not timing.processes:
        raise NotMeasuredError(f"the {role} was not timed")
    for samples in timing.processes:
        if not samples.size or not (np.isfinite(samples) & (samples > 0)).all():
            raise NotMeasuredError(f"latencies of the {role} are missing, infinite or not above 0")
    return timing


# --- sizes and shares ---------------------------------------------------------------------------


def _exact(rule: Rule, evidence: Evidence) -> Measure:
    value = _value(evidence, rule.metric)
    what = rule.metric.removesuffix("_bytes").replace("_", " ")
    return Measure(what, METRICS[rule.metric].unit, value, value, value, 1)


def _memory(rule: Rule, evidence: Evidence) -> Measure:
    """What the model takes in a process; a tiny one may take nothing, or less than an empty one."""
    processes = evidence.memory.get("artifact")
    if processes is None or not processes.size:
        raise NotMeasuredError("no process was weighed")
    if not np.isfinite(processes).all():
        raise NotMeasuredError("the memory of a process is not a finite number")
    memory = statistics.central(processes, rule.confidence)
    needed: int | None = PROCESSES
    if memory.n > 1:
        gap = memory.point - _limit(rule)
        needed = statistics.samples_to_separate(gap, memory.variance, rule.confidence)
    return _bounded("memory", "bytes", memory, "processes", needed)


def _compression(rule: Rule, evidence: Evidence) -> Measure:
    """How many times smaller than the teacher's file in the same runtime."""
    size, teacher = _value(evidence, "size_bytes"), _value(evidence, "teacher_size_bytes")
    if size <= 0:
        raise NotMeasuredError("the artifact has no bytes")
    ratio = teacher / size
    return Measure("compression over the teacher", "x", ratio, ratio, ratio, 1)


def _value(evidence: Evidence, name: str) -> float:
    value = evidence.values.get(name)
    if value is None:
        raise NotMeasuredError(f"{name} is absent")
    if not math.isfinite(value) or value < 0:
        raise NotMeasuredError(f"{name} is {value}")
    return float(value)


def _limit(rule: Rule) -> float:
    (limit,) = rule.limits.values()
    return limit


def _bounded(
    what: str, unit: Unit, interval: statistics.Interval, counted: str, needed: int | None
) -> Measure:
    more = _more_than(interval.n, needed)
    point, low, high = interval.point, interval.low, interval.high
    return Measure(what, unit, point, low, high, interval.n, counted, more)


def _more_than(n: int, needed: int | None) -> int | None:
    """A plan never asks for less than there is: what is there has just not decided."""
    return None if needed is None else max(needed, n + 1)


MEASURES: Mapping[str, Callable[[Rule, Evidence], Measure]] = {
    **dict.fromkeys(SCORES, _score),
    "agreement": _agreement,
    "speedup": _speedup,
    "latency_mean_ms": _mean_latency,
    **dict.fromkeys(PERCENTILES, _percentile),
    "size_bytes": _exact,
    "memory_bytes": _memory,
    "parameters": _exact,
    "compression": _compression,
    "int8_fraction": _exact,
}
"""How each metric of METRICS is measured."""
