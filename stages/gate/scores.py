"""The headline metric, and the agreement with the teacher, as the gate's rules ask for them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kdpipe.stages import statistics
from kdpipe.stages.evidence import Evidence
from kdpipe.stages.gate import power
from kdpipe.stages.gate.measure import Case, Measure, NotMeasuredError, more_than
from kdpipe.stages.gate.metrics import SCORE

Scores = NDArray[np.float32]
PERCENT = "percent-max-degradation"
GAIN = "min-improvement"


def score(case: Case) -> Measure:
    """The headline metric itself (`min`), or what it lost or gained against a reference."""
    evidence = case.evidence
    if case.rule.metric not in (SCORE, evidence.metric):
        raise NotMeasuredError(f"this run measures {evidence.metric}")
    if case.name == "min":
        return mean(case, evidence.metric, checked(evidence.score, evidence, "of the artifact"))
    if case.rule.against == "baseline" and not _pairs_with_baseline(case):
        return _unpaired(case)
    return _paired(case)


def agreement(case: Case) -> Measure:
    """The share of equal answers, or how far it lies below that of an unrelated network."""
    if case.name == "min":
        found = checked(case.evidence.agreement, case.evidence, "of agreement")
        return mean(case, "agreement with the teacher", found)
    return _shortfall(case)


def mean(case: Case, what: str, scores: NDArray[np.floating], how: str = "") -> Measure:
    """A mean score that has to be at least the limit."""
    found = statistics.mean_score(scores, case.confidence, case.evidence.groups)
    room = found.point - case.limit
    share = case.limit if room > 0 else 1 - case.limit
    at_limit = case.limit * (1 - case.limit) if np.isin(scores, (0, 1)).all() else None
    return Measure(
        what,
        "fraction",
        found.point,
        found.low,
        found.high,
        found.n,
        counted(case.evidence),
        replicates(case, found, room, share, at_limit),
        how,
        power=power.passing(room, found.point - found.low, _error(found)),
    )


def paired(
    case: Case,
    what: str,
    reference: NDArray[np.floating],
    own: NDArray[np.floating],
    how: str = "",
    whole: float = 1.0,
) -> Measure:
    """What `own` lost against a reference on the same samples, or gained where that is asked for.

    In percent, `whole`, the reference's own mean, counts as 100 %.
    """
    scale = 100 / whole if case.name == PERCENT else 1.0
    drop = statistics.paired_drop(reference, own, case.confidence, case.evidence.groups)
    margin = case.limit / scale
    gained = case.name == GAIN
    room = -drop.drop - margin if gained else margin - drop.drop
    # That no more is lost, or gained, than a margin takes so many samples even when all are alike.
    share = 1 - margin if (room < 0) == gained and not case.rule.regression else None
    at_limit = statistics.drop_variance(drop, -margin if gained else margin)
    bounds = _mirrored(drop) if gained else (drop.drop, drop.low, drop.high)
    point, low, high = (value * scale for value in bounds)
    good = power.of_drop(drop, margin, case.evidence.groups is not None)
    if gained:
        good = power.passing(room, drop.high - drop.drop, _error(drop))
    return Measure(
        what,
        "%" if case.name == PERCENT else "fraction",
        point,
        low,
        high,
        drop.n,
        counted(case.evidence),
        replicates(case, drop, room, share, at_limit),
        how,
        power=good,
    )


def checked(scores: Scores, evidence: Evidence, whose: str) -> Scores:
    """Scores that are numbers from 0 to 1, of the very samples that the artifact was judged on."""
    if not scores.size:
        raise NotMeasuredError(f"there are no scores {whose}")
    if scores.ndim != 1:
        raise NotMeasuredError(f"scores {whose} of shape {scores.shape} are not one per sample")
    bad = int((~((scores >= 0) & (scores <= 1))).sum())
    if bad:
        raise NotMeasuredError(f"{bad} of {scores.size} scores {whose} are not from 0 to 1")
    if scores.shape != evidence.score.shape:
        found = f"{evidence.score.size} scores, but {scores.size} {whose}"
        raise NotMeasuredError(f"{found}, so they are not pairs")
    if evidence.groups is not None and evidence.groups.shape != scores.shape:
        raise NotMeasuredError(f"{scores.size} scores, but groups of {evidence.groups.size}")
    return scores


def counted(evidence: Evidence) -> str:
    """What the replicates are: samples, or groups of them."""
    return "samples" if evidence.groups is None else "groups"


def replicates(
    case: Case,
    found: statistics.Drop | statistics.Interval,
    room: float,
    share: float | None,
    at_limit: float | None = None,
) -> int | None:
    """How many samples, or groups, would tell a value from a limit that leaves it `room`.

    Room below 0: the limit is broken as measured. Samples are never fewer than it takes to prove a
    `share` of them when all are alike. Groups may be, unless there are already as many as their
    spread asks for. `at_limit`: the variance of a sample, if the limit were the truth.
    """
    grouped = case.evidence.groups is not None
    if grouped and found.n < 2:
        return 2
    planned = statistics.samples_to_separate(
        room, found.variance, case.confidence, at_limit=None if grouped else at_limit
    )
    if planned and share and (not grouped or planned <= found.n):
        planned = max(planned, statistics.needed_samples(share, case.confidence))
    return more_than(found.n, planned)


def _paired(case: Case) -> Measure:
    evidence = case.evidence
    own = checked(evidence.score, evidence, "of the artifact")
    reference = _reference(case)
    whole = float(reference.mean(dtype=np.float64))
    if whole == 0 and case.name != GAIN:
        raise NotMeasuredError(f"{case.whose} scores 0, from which nothing can be lost")
    how = "paired" if case.rule.against == "baseline" else ""
    return paired(case, _compared(case), reference, own, how, whole)


def _reference(case: Case) -> Scores:
    """The reference's scores on the very same samples."""
    evidence, against = case.evidence, case.rule.against
    found = evidence.references.get(against)
    if against == "teacher":
        _require_a_teacher(evidence, case.confidence)
        found = evidence.teacher_score
    if against == "baseline":
        found = case.remembered.scores
    if found is None:
        raise NotMeasuredError(f"there are no scores of {case.whose}")
    return checked(found, evidence, f"of {case.whose}")


def _require_a_teacher(evidence: Evidence, confidence: float) -> None:
    """Losing nothing against a teacher that guesses proves nothing.

    Answers given without looking, as often as the teacher gives each, are right with the sum over
    classes of share of labels times share of answers (Cohen, Educ. Psychol. Meas. 20, 37, 1960).
    Of a single class, or without single decisions, no such comparison can be made.
    """
    found, scores = evidence.decisions, evidence.teacher_score
    if found is None or found.labels.shape != scores.shape or np.ptp(found.labels) == 0:
        return
    if found.teacher_prediction.shape != scores.shape:
        return
    classes, labels = np.unique(found.labels, return_counts=True)
    answers = np.array([(found.teacher_prediction == one).sum() for one in classes])
    chance = float(labels @ answers) / scores.size**2
    known = statistics.mean_score(checked(scores, evidence, "of the teacher"), confidence)
    if known.point > 0 and known.low <= chance:  # of 0 its caller has more to say
        raise NotMeasuredError(
            f"the teacher's {evidence.metric} of {known.point:.4f} ({100 * confidence:g} % bounds"
            f" {known.low:.4f} to {known.high:.4f}, {known.n:,} samples) cannot be told from the"
            f" {chance:.4f} of answers given without looking"
        )


def _pairs_with_baseline(case: Case) -> bool:
    """Whether the baseline kept the scores of the very samples that were judged now."""
    old, new = case.remembered, case.evidence
    if old.metric != new.metric:
        raise NotMeasuredError(f"the baseline holds {old.metric}, this run {new.metric}")
    same = bool(old.eval_sha256) and old.eval_sha256 == new.eval_sha256
    return same and old.scores is not None and old.scores.shape == new.score.shape


def _unpaired(case: Case) -> Measure:
    """Against a baseline whose samples are others, or were not kept one by one."""
    old, evidence = case.remembered, case.evidence
    own = checked(evidence.score, evidence, "of the artifact")
    before = statistics.ScoreSummary(old.score, old.variance, old.groups or old.samples)
    now = statistics.score_summary(own, evidence.groups)
    found = statistics.unpaired_drop(before, now, case.confidence)
    percent, gained = case.name == PERCENT, case.name == GAIN
    if old.score == 0 and not gained:
        raise NotMeasuredError("the baseline scores 0, from which nothing can be lost")
    scale = 100 / old.score if percent else 1.0
    drop = statistics.Drop(found.point, found.low, found.high, found.n, found.variance, 0.0)
    point, low, high = _mirrored(drop) if gained else (drop.drop, drop.low, drop.high)
    room = point - case.limit if gained else case.limit / scale - point
    return Measure(
        _compared(case),
        "%" if percent else "fraction",
        point * scale,
        low * scale,
        high * scale,
        found.n,
        counted(evidence),
        replicates(case, drop, room, None),
        f"unpaired: the baseline has no scores of these {evidence.score.size:,} samples",
        power=power.passing(room, found.point - found.low, _error(found)),
    )


def _shortfall(case: Case) -> Measure:
    """Teacher_score^2 less the agreement: bounds from how each sample moves that (delta method).

    Two networks that are right on a share p of samples, each on samples of its own, are both right
    on p^2 of them. The bounds are never narrower than those of the agreement alone are, which
    count disagreements as they are: few, or none.
    """
    evidence = case.evidence
    teacher = checked(evidence.teacher_score, evidence, "of the teacher").astype(np.float64)
    same = checked(evidence.agreement, evidence, "of agreement")
    level = float(teacher.mean())
    # In [-2, 1]: moved to scores from 0 to 1, for which there are bounds, and back.
    moved = (2 * level * teacher - level**2 - same + 2) / 3
    found = statistics.mean_score(moved, case.confidence, evidence.groups)
    alone = statistics.mean_score(same, case.confidence, evidence.groups)
    point = level**2 - alone.point
    low = min(3 * found.low - 2, level**2 - alone.high)
    high = max(3 * found.high - 2, level**2 - alone.low)
    spread = statistics.Interval(point, low, high, found.n, max(9 * found.variance, alone.variance))
    room = case.limit - point
    return Measure(
        f"shortfall of agreement with the teacher ({alone.point:.4f}; of an unrelated network as "
        f"good as the teacher {level**2:.4f})",
        "fraction",
        point,
        low,
        high,
        found.n,
        counted(evidence),
        replicates(case, spread, room, 1 - case.limit if room > 0 else None),
        power=power.passing(room, high - point, _error(spread)),
    )


def _compared(case: Case) -> str:
    """Example: accuracy drop against the teacher"""
    kind = "gain over" if case.name == GAIN else "drop against"
    return f"{case.evidence.metric} {kind} {case.whose}"


def _mirrored(drop: statistics.Drop) -> tuple[float, float, float]:
    """A drop as a gain: point, low, high."""
    return -drop.drop, -drop.high, -drop.low


def _error(found: statistics.Drop | statistics.Interval) -> float:
    return float(np.sqrt(found.variance / found.n))
