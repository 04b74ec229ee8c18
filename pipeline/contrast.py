"""Two measured artifacts, number by number: what changed from A to B, and whether that is certain.

Samples that both saw are compared in pairs. Times of two runs were not taken in turns, so that they
are compared on the same machine only, and the speed over the teacher, which was, counts for more.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from kdpipe.pipeline.subject import LASTING, Subject, require_sound
from kdpipe.stages import statistics
from kdpipe.stages.evidence import Timing
from kdpipe.stages.gate.times import noise_floor
from kdpipe.stages.statistics.distributions import t_quantile
from kdpipe.stages.statistics.means import variance
from kdpipe.stages.statistics.summaries import exp_bounds, welch_freedom
from kdpipe.targets.errors import listing

CONFIDENCE = 0.95
"""One-sided confidence of every bound."""
ALIKE = 0.05
"""Times whose ratio is certain to be nearer to 1 are the same: from one day to the next the same
file on the same machine differs by a few per cent."""
Word = Literal["better", "worse", "same", "cannot tell", "not compared"]
Unit = Literal["fraction", "ms", "x", "bytes", "mJ", "parameters", "MACs"]
Values = NDArray[np.float64]


@dataclass(frozen=True)
class Value:
    """One side: `n` of what was `counted`; an exact number has no bounds and counts nothing."""

    point: float
    low: float | None = None
    high: float | None = None
    n: int = 1
    counted: str = ""


@dataclass(frozen=True)
class Change:
    """From A to B: B - A, or for a `ratio` how many times faster B is; bounds as in `Value`."""

    kind: Literal["difference", "ratio"]
    point: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Line:
    """One number of both artifacts. `paired`: sample by sample. `note`: what limits the verdict."""

    what: str
    unit: Unit
    verdict: Word
    a: Value
    b: Value
    change: Change | None
    paired: bool = False
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain values that JSON can hold."""
        return asdict(self)


def contrast(a: Subject, b: Subject) -> list[Line]:
    """Every number that both have: score, agreement, speed, memory, energy, sizes.

    Raises UsageError when the samples of either cannot be read, or are no numbers.
    """
    for subject in (a, b):
        require_sound(subject.evidence)
    return [*_scores(a, b), *_times(a, b), *_resources(a, b), *_exact(a, b)]


def same_samples(a: Subject, b: Subject) -> bool:
    """Whether both were scored on the same eval split, as far as the runs wrote that down."""
    digests = a.evidence.eval_sha256, b.evidence.eval_sha256
    if not all(digests):
        digests = a.inputs().get("data", ""), b.inputs().get("data", "")
    equal = bool(digests[0]) and digests[0] == digests[1]
    return equal and a.evidence.score.size == b.evidence.score.size


def same_teacher(a: Subject, b: Subject) -> bool:
    """Whether both were measured against the same trained teacher, in the same runtime."""
    teachers = a.inputs().get("teacher"), b.inputs().get("teacher")
    return bool(teachers[0]) and teachers[0] == teachers[1] and a.row["target"] == b.row["target"]


# --- scores -------------------------------------------------------------------------------------


def _scores(a: Subject, b: Subject) -> Iterator[Line]:
    one, two = a.evidence, b.evidence
    if one.metric != two.metric:
        note = f"A measures {one.metric} and B {two.metric}"
        left, right = (_mean(s, s.evidence.score) for s in (a, b))
        yield Line("score", "fraction", "not compared", left, right, None, note=note)
    else:
        yield _score(one.metric, a, b, one.score, two.score)
    if a.inputs().get("teacher") and a.inputs().get("teacher") == b.inputs().get("teacher"):
        yield _score("agreement", a, b, one.agreement, two.agreement)


def _score(
    what: str, a: Subject, b: Subject, one: NDArray[np.float32], two: NDArray[np.float32]
) -> Line:
    paired = same_samples(a, b)
    if paired:
        drop: Any = statistics.paired_drop(one, two, CONFIDENCE, a.evidence.groups)
        point, equal = drop.drop, bool(np.array_equal(one, two))
    else:
        summaries = (
            statistics.score_summary(one, a.evidence.groups),
            statistics.score_summary(two, b.evidence.groups),
        )
        drop = statistics.unpaired_drop(*summaries, CONFIDENCE)
        point, equal = drop.point, False
    change = Change("difference", 0.0 - point, _finite(-drop.high), _finite(-drop.low))
    note = "" if paired else "not known to be the same eval samples, so they are not paired"
    verdict = "same" if equal else _word(-drop.high, -drop.low)
    left, right = _mean(a, one), _mean(b, two)
    return Line(what, "fraction", verdict, left, right, change, paired, note)


def _mean(subject: Subject, scores: NDArray[np.float32]) -> Value:
    groups = subject.evidence.groups
    mean = statistics.mean_score(scores, CONFIDENCE, groups)
    return _value(mean, "samples" if groups is None else "groups")


# --- times --------------------------------------------------------------------------------------


def _times(a: Subject, b: Subject) -> Iterator[Line]:
    one, two = (s.evidence.latency.get("artifact") for s in (a, b))
    if one is None or two is None:
        return
    left, right = _latency(one), _latency(two)
    floor = max(noise_floor(s.evidence) or 0.0 for s in (a, b))
    ratio = statistics.latency_ratio(one.processes, two.processes, CONFIDENCE)
    word, note = _raw_word(a, b, ratio, floor)
    change = Change("ratio", ratio.point, _finite(ratio.low), _finite(ratio.high))
    known = None if word == "not compared" else change
    yield Line("latency", "ms", word, left, right, known, note=note)
    if same_teacher(a, b) and all("teacher" in s.evidence.latency for s in (a, b)):
        yield _over_teacher(a, b, floor)


def _raw_word(a: Subject, b: Subject, ratio: statistics.Interval, floor: float) -> tuple[Word, str]:
    """What times of two runs can say: nothing on two machines, little when the teacher moved too.

    The teacher is the same file: where it ran faster in one run, the machine was in another state.
    """
    if a.rundir.folder == b.rundir.folder and a.id == b.id:
        return "same", "the very same measurement"
    differ = sorted(
        name for name in {**a.machine, **b.machine} if a.machine.get(name) != b.machine.get(name)
    )
    if not a.machine or set(differ) & set(LASTING):
        return "not compared", "measured on another machine"
    teachers = [s.evidence.latency.get("teacher") for s in (a, b)]
    notes = ["not measured in turns", "" if floor else "no noise floor was measured"]
    notes += [f"with other {listing(differ)}" if differ else ""]
    note = ", ".join(filter(None, notes))
    if teachers[0] and teachers[1] and same_teacher(a, b):
        then, now = teachers[0].processes, teachers[1].processes
        drift = statistics.latency_ratio(then, now, CONFIDENCE)
        if _word(_log(drift.low), _log(drift.high), floor) in ("better", "worse"):
            bounds = f"{drift.low:.2f} to {drift.high:.2f}"
            moved = f"the same teacher ran {drift.point:.2f}x as fast in B ({bounds})"
            return "cannot tell", f"{moved}: conditions differed"
    word = _word(_log(ratio.low), _log(ratio.high), floor, ALIKE)
    return word, ", ".join(filter(None, [note, _within(word, ratio.low, ratio.high, floor)]))


def _over_teacher(a: Subject, b: Subject, floor: float) -> Line:
    """How many times faster than the teacher, which was timed in turns with each of them."""
    timings = [s.evidence.latency for s in (a, b)]
    sides, logs = [], []
    for latency in timings:
        pair = latency["teacher"].processes, latency["artifact"].processes
        sides.append(_value(statistics.latency_ratio(pair[0], pair[1], CONFIDENCE), "processes"))
        logs.append([statistics.log_mean(processes) for processes in pair])
    (slow_a, fast_a), (slow_b, fast_b) = logs
    centre = (slow_b.mean - fast_b.mean) - (slow_a.mean - fast_a.mean)
    errors = [side.variance / side.processes for pair in logs for side in pair]
    freedom = welch_freedom(errors, [side.processes - 1 for pair in logs for side in pair])
    low, high = exp_bounds(centre, sum(errors), freedom, CONFIDENCE)
    change = Change("ratio", math.exp(centre), _finite(low), _finite(high))
    word = "same" if a.name == b.name else _word(_log(low), _log(high), floor, ALIKE)
    note = _within(word, low, high, floor)
    return Line("speed over teacher", "x", word, sides[0], sides[1], change, note=note)


def _within(word: Word, low: float, high: float, floor: float) -> str:
    """Why a ratio whose bounds exclude 1 tells nothing all the same; empty for any other."""
    apart = _word(_log(low), _log(high)) in ("better", "worse")
    percent = math.ceil(1000 * floor - 1e-6) / 10
    return f"within the noise floor of {percent} %" if apart and word == "cannot tell" else ""


def _latency(timing: Timing) -> Value:
    """The geometric mean over processes, as it is what the ratio is of."""
    logs = statistics.log_mean(timing.processes)
    error, freedom = logs.variance / logs.processes, logs.processes - 1
    low, high = exp_bounds(logs.mean, error, freedom, CONFIDENCE)
    known = freedom > 0
    bounds = (low if known else None, high if known else None)
    return Value(math.exp(logs.mean), *bounds, logs.processes, "processes")


# --- memory, energy, sizes ----------------------------------------------------------------------


def _resources(a: Subject, b: Subject) -> Iterator[Line]:
    found: Mapping[str, tuple[Unit, list[Any]]] = {
        "memory": ("bytes", [s.evidence.memory.get("artifact") for s in (a, b)]),
        "energy of a call": ("mJ", [s.evidence.energy_mj.get("artifact") for s in (a, b)]),
    }
    for what, (unit, (one, two)) in found.items():
        if one is None or two is None or not one.size or not two.size:
            continue
        left, right = _mean_of(one), _mean_of(two)
        low, high = _welch(one, two)
        point = float(two.mean() - one.mean())
        change = Change("difference", point, _finite(low), _finite(high))
        equal = np.array_equal(one, two)
        word: Word = "same" if equal else _word(-high, -low)
        yield Line(what, unit, word, left, right, change)


def _exact(a: Subject, b: Subject) -> Iterator[Line]:
    """Numbers that were counted: any difference is one."""
    known: Mapping[str, tuple[str, Unit, int]] = {
        "size_bytes": ("size", "bytes", -1),
        "parameters": ("parameters", "parameters", -1),
        "macs": ("multiply-accumulates", "MACs", -1),
        "int8_fraction": ("share in int8", "fraction", 1),
    }
    for name, (what, unit, sign) in known.items():
        one, two = (s.evidence.values.get(name) for s in (a, b))
        if one is None or two is None:
            continue
        better = sign * (two - one)
        word: Word = "same" if one == two else "better" if better > 0 else "worse"
        change = Change("difference", two - one, two - one, two - one)
        yield Line(what, unit, word, Value(one), Value(two), change)


def _mean_of(each: Values) -> Value:
    """The mean over processes, as it is what the change is of, with the bounds of a t interval."""
    mean, n = float(each.mean()), each.size
    if n < 2:
        return Value(mean, None, None, n, "processes")
    reach = t_quantile(CONFIDENCE, n - 1) * math.sqrt(variance(each) / n)
    return Value(mean, mean - reach, mean + reach, n, "processes")


def _welch(one: Values, two: Values) -> tuple[float, float]:
    """Bounds of mean(two) - mean(one) by Welch's t interval; infinite with a single process."""
    errors = [variance(side) / side.size for side in (one, two)]
    freedom = welch_freedom(errors, [one.size - 1, two.size - 1])
    centre = float(two.mean() - one.mean())
    if freedom <= 0:
        return -math.inf, math.inf
    reach = t_quantile(CONFIDENCE, freedom) * math.sqrt(sum(errors))
    return centre - reach, centre + reach


def _word(low: float, high: float, floor: float = 0.0, alike: float = 0.0) -> Word:
    """B against A from the bounds of a difference of which more is better, 0 being none.

    Of times the difference is a logarithm. `floor`: the fraction within which the same artifact
    differs from itself. `alike`: the fraction within which two are called the same.
    """
    least, most = math.log1p(floor), math.log1p(alike)
    if low > least:
        return "better"
    if high < -least:
        return "worse"
    return "same" if most and -most <= low and high <= most else "cannot tell"


def _log(value: float) -> float:
    return math.log(value) if value > 0 else -math.inf


def _value(found: statistics.Interval, counted: str) -> Value:
    return Value(found.point, _finite(found.low), _finite(found.high), found.n, counted)


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
