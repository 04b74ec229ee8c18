"""What a mean score does not show, as the gate's rules ask for it: classes, groups, calibration."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from kdpipe.stages import statistics
from kdpipe.stages.evidence import Decisions
from kdpipe.stages.gate import power
from kdpipe.stages.gate.measure import Case, Measure, NotMeasuredError, more_than
from kdpipe.stages.gate.scores import checked, counted, mean, paired
from kdpipe.stages.quality.band import groups_of, mean_scores
from kdpipe.stages.quality.calibration import calibration_error
from kdpipe.stages.quality.f1 import macro_f1, macro_f1_drop
from kdpipe.stages.quality.worst import (
    LEAST,
    MOST,
    Part,
    class_drops,
    group_drops,
    hits,
    worst,
)


def worst_class_drop(case: Case) -> Measure:
    """The largest drop of any class: its upper bound is the largest of all classes'."""
    decisions, classes = _decisions(case), case.evidence.classes
    if not classes:
        raise NotMeasuredError("the names of the classes are absent")
    parts = class_drops(decisions, classes, case.confidence, case.evidence.groups)
    there = {part.name for part in parts}
    absent = tuple(name for name in classes if name not in there)
    return _worst(case, parts, absent, "class")


def worst_group_drop(case: Case) -> Measure:
    """The largest drop of any group of samples that has enough of them."""
    evidence, groups = case.evidence, case.evidence.groups
    if groups is None:
        raise NotMeasuredError("the data has no groups")
    own = checked(evidence.score, evidence, "of the artifact")
    teacher = checked(evidence.teacher_score, evidence, "of the teacher")
    parts, few = group_drops(own, teacher, groups, case.confidence)
    if not parts:
        number = np.unique(groups).size
        why = f"none has {LEAST} samples" if number <= MOST else f"over {MOST} say nothing"
        raise NotMeasuredError(f"of {number:,} groups {why}")
    return _worst(case, parts, few, "group")


def f1(case: Case) -> Measure:
    """The mean F1 of the classes, or how much of it is lost against the teacher."""
    decisions, evidence = _decisions(case), case.evidence
    number = len(evidence.classes) or int(decisions.labels.max()) + 1
    if case.name == "min":
        found = macro_f1(
            decisions.labels, decisions.prediction, number, case.confidence, evidence.groups
        )
        return _resampled(case, "macro F1", found)
    drop = macro_f1_drop(decisions, number, case.confidence, evidence.groups)
    lost = _resampled(case, "macro F1 drop against the teacher", drop)
    # A model as good as its teacher has no drop, whatever this one has.
    error = math.sqrt(drop.variance / drop.n)
    return replace(lost, power=power.passing(case.limit, drop.high - drop.point, error))


def ece(case: Case) -> Measure:
    """The expected calibration error, of 15 bins."""
    decisions = _decisions(case)
    right, _ = hits(decisions)
    found = calibration_error(right, decisions.confidence, case.confidence, case.evidence.groups)
    if found is None:
        raise NotMeasuredError("the artifact does not say how sure it is")
    return _resampled(case, "expected calibration error", found)


def robustness(case: Case) -> Measure:
    """The mean score of a sample over all corruptions, or what it lost against the teacher."""
    evidence = case.evidence
    if not evidence.robustness:
        raise NotMeasuredError("set `benchmark.robustness` to score corrupted samples")
    every = [scores for pair in evidence.robustness.values() for scores in pair]
    if len({scores.shape for scores in every}) > 1 or every[0].ndim != 1:
        raise NotMeasuredError("not all corruptions were scored on the same samples")
    if not every[0].size or not all(((each >= 0) & (each <= 1)).all() for each in every):
        raise NotMeasuredError("scores of corrupted samples are not from 0 to 1")
    checked(evidence.score, evidence, "of the artifact")
    own, teacher = mean_scores(evidence.robustness)
    if own.size > evidence.score.size:
        raise NotMeasuredError(f"{own.size} corrupted samples, but {evidence.score.size} scores")
    groups = groups_of(evidence.groups, own.size)
    case = replace(case, evidence=replace(evidence, groups=groups))
    how = f"{len(evidence.robustness)} corruptions"
    if case.name == "min":
        return mean(case, f"{evidence.metric} under corruptions", own, how)
    what = f"{evidence.metric} drop against the teacher under corruptions"
    return paired(case, what, teacher, own, how)


def _worst(case: Case, parts: list[Part], left_out: tuple[str, ...], kind: str) -> Measure:
    """The largest drop of any of the parts; the one that keeps the verdict open is named."""
    found = worst(parts, left_out)
    interval, name = found.interval, found.widest
    widest = next((part for part in parts if part.name == name), None)
    doubt = f"{kind} {name!r} has too few samples to say anything"
    if widest is not None:
        room = case.limit - widest.drop.drop
        planned = statistics.samples_to_separate(room, widest.drop.variance, case.confidence)
        least = statistics.needed_samples(1 - case.limit, case.confidence)
        more = more_than(widest.drop.n, max(planned or least, least))
        doubt = f"{kind} {name!r} has {widest.drop.n:,} of the about {more:,} samples that it takes"
    grouped = kind == "class" and case.evidence.groups is not None
    powers = [power.of_drop(part.drop, case.limit, grouped) for part in parts]
    return Measure(
        f"largest drop of a {kind} against the teacher, that of {found.name!r},",
        "fraction",
        interval.point,
        interval.low,
        interval.high,
        sum(part.drop.n for part in parts),
        "samples" if kind == "group" else counted(case.evidence),
        how=f"{len(parts) + len(left_out)} {'classes' if kind == 'class' else 'groups'}",
        doubt=doubt,
        power=0.0 if left_out else power.together(powers),
    )


def _resampled(case: Case, what: str, found: statistics.Interval) -> Measure:
    """A statistic with bounds from resampling, under a limit of either kind."""
    room = (found.point - case.limit) * (1 if case.name == "min" else -1)
    reach = found.point - found.low if case.name == "min" else found.high - found.point
    needed = statistics.samples_to_separate(room, found.variance, case.confidence)
    if not math.isfinite(reach):
        needed = None
    good = power.passing(room, reach, math.sqrt(found.variance / found.n))
    return Measure(
        what,
        "fraction",
        found.point,
        found.low,
        found.high,
        found.n,
        counted(case.evidence),
        more_than(found.n, needed),
        "resampled",
        doubt="" if math.isfinite(reach) else f"{found.n} of them are too few to resample",
        power=good,
    )


def _decisions(case: Case) -> Decisions:
    """What was decided on each sample. Raises NotMeasuredError where that was not kept, or where
    it is not about these samples and classes."""
    found, evidence = case.evidence.decisions, case.evidence
    if found is None:
        raise NotMeasuredError("the decisions on single samples were not kept")
    scores = checked(evidence.score, evidence, "of the artifact")
    for name, each in vars(found).items():
        if each.shape != scores.shape:
            raise NotMeasuredError(f"{scores.size} scores, but {each.size} decisions ({name})")
    said = found.labels, found.prediction, found.teacher_prediction
    classes = len(evidence.classes) or int(found.labels.max()) + 1
    if found.labels.min() < 0 or max(each.max() for each in said) >= classes:
        raise NotMeasuredError(f"labels or decisions are not numbers of its {classes} classes")
    if ((found.confidence < 0) | (found.confidence > 1)).any():
        raise NotMeasuredError("the artifact's confidences are not from 0 to 1")
    return found
