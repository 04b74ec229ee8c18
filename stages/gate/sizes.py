"""What an artifact takes: bytes, parameters, operations, memory, energy, and shares of these."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from kdpipe.stages import statistics
from kdpipe.stages.evidence import Evidence
from kdpipe.stages.gate import power
from kdpipe.stages.gate.measure import Case, Measure, NotMeasuredError, exact, of_processes
from kdpipe.stages.gate.metrics import METRICS
from kdpipe.stages.gate.times import compared, singles

Array = NDArray[np.float64]


def single(case: Case) -> Measure:
    """A number without doubt, or by how many percent it lies above the reference's."""
    name = case.rule.metric
    value = _value(case.evidence, name)
    if not case.rule.compares:
        return exact(_words(name), METRICS[name].unit, value)
    if case.rule.against == "baseline":
        old = case.remembered.values.get(name)
    else:
        old = _value(case.evidence, f"teacher_{name}")
    if old is None or not 0 < old < math.inf:
        raise NotMeasuredError(f"{case.whose} has no {name}")
    return exact(f"{_words(name)} above that of {case.whose}", "%", 100 * (value - old) / old)


def compression(case: Case) -> Measure:
    """How many times smaller than the teacher's file in the same runtime."""
    size, teacher = (_value(case.evidence, f"{who}size_bytes") for who in ("", "teacher_"))
    return exact("compression over the teacher", "x", teacher / size)


def memory(case: Case) -> Measure:
    """What the model takes in a process; a tiny one may take nothing, or less than an empty one."""
    return _weighed(case, _processes(case.evidence, "artifact", "memory"))


def gpu_memory(case: Case) -> Measure:
    """What the model takes of the GPU's memory in a process."""
    return _weighed(case, _processes(case.evidence, "gpu", "memory"))


def energy(case: Case) -> Measure:
    """Energy of one call, one value for each process."""
    own = _processes(case.evidence, "artifact", "energy")
    if np.median(own) <= 0:
        raise NotMeasuredError("calls took no more energy than idling, so that none was seen")
    return _weighed(case, own)


def _weighed(case: Case, own: Array) -> Measure:
    """One value for each process: its median, or how it compares with the reference's."""
    if case.rule.compares:
        return _compared(case, own)
    metric = case.rule.metric
    found = statistics.central(own, case.confidence)
    good = 0.0
    if math.isfinite(found.high):
        error = math.sqrt(found.variance / found.n)
        good = power.passing(case.limit - found.point, found.high - found.point, error)
    return Measure(
        _words(metric),
        METRICS[metric].unit,
        found.point,
        found.low,
        found.high,
        found.n,
        "processes",
        of_processes(found, found.point - case.limit, case.confidence),
        power=good,
    )


def _compared(case: Case, own: Array) -> Measure:
    """By how many percent it lies above the reference's: Welch's t interval on logarithms."""
    what = f"{_words(case.rule.metric)} above that of {case.whose}"
    if not (own > 0).all():
        raise NotMeasuredError("a process took nothing for the model, which has no percentage")
    how = ""
    if case.rule.against == "baseline":
        then, how = _remembered(case), "on the same machine"
        now = _of_median(float(np.median(own)), float(own.std(ddof=own.size > 1)), own.size)
    else:
        now = statistics.log_mean(singles(own))
        kind = "energy" if case.rule.metric == "energy_mj" else "memory"
        teacher = _processes(case.evidence, "teacher", kind)
        if not (teacher > 0).all():
            raise NotMeasuredError("a process took nothing for the teacher: no percentage")
        then = statistics.log_mean(singles(teacher))
    return compared(case, what, statistics.ratio_of(then, now, case.confidence), 0.0, how)


def _remembered(case: Case) -> statistics.LogSummary:
    """What the baseline kept: median, deviation and number of processes.

    Raises NotMeasuredError on another machine, whose kernels take other memory.
    """
    name, old = case.rule.metric, case.remembered
    median, processes = (old.values.get(key, 0.0) for key in (name, f"{name}_processes"))
    if not 0 < median < math.inf or processes < 1:
        raise NotMeasuredError(f"the baseline has no {name}")
    if not old.same_machine(case.evidence.machine):
        fix = "update the baseline here"
        raise NotMeasuredError(f"the baseline's {name} is that of another machine; {fix}")
    deviation = old.values.get(f"{name}_deviation", 0.0)
    return _of_median(median, deviation, int(processes))


def _of_median(median: float, deviation: float, processes: int) -> statistics.LogSummary:
    """The same on the logarithm (delta method). A median of normal values varies pi / 2 times as
    much as their mean, and both sides have to be medians: skewed ones differ from means."""
    variance = math.pi / 2 * (deviation / median) ** 2
    return statistics.LogSummary(math.log(median), variance, processes)


def _processes(evidence: Evidence, role: str, kind: str) -> Array:
    found = (evidence.energy_mj if kind == "energy" else evidence.memory).get(role)
    if found is None or not found.size:
        why = "no energy was measured" if kind == "energy" else "no process was weighed"
        raise NotMeasuredError(why)
    if not np.isfinite(found).all():
        raise NotMeasuredError(f"the {kind} of a process is not a finite number")
    return found.astype(np.float64)


def _value(evidence: Evidence, name: str) -> float:
    value = evidence.values.get(name)
    if value is None:
        raise NotMeasuredError(f"{name} is absent")
    share = METRICS.get(name, METRICS["size_bytes"]).unit == "fraction"
    # A file without bytes, or a network without operations, was not counted. A share may be none.
    if not (0 <= value <= 1 if share else 0 < value < math.inf):
        raise NotMeasuredError(f"{name} is {value:g}")
    return float(value)


def _words(name: str) -> str:
    """Example: size_bytes -> size"""
    spelled = {"energy_mj": "energy of a call", "gpu_memory_bytes": "GPU memory", "macs": "MACs"}
    return spelled.get(name, name.removesuffix("_bytes").replace("_", " "))
