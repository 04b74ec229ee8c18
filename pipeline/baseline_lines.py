"""What an update of the baseline changes, as lines: every number with unit, n and spread."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

from kdpipe.pipeline import lock
from kdpipe.pipeline.spread import score, size
from kdpipe.stages.gate.baseline import LogMean, Remembered
from kdpipe.stages.statistics import mean_score
from kdpipe.stages.statistics.summaries import exp_bounds

CONFIDENCE = 0.95
"""One-sided confidence of the bounds that are shown."""
EXACT = ("size_bytes", "parameters", "macs", "int8_fraction")
"""Numbers that are counted, not measured."""


def lines(path: Path, config: str, old: lock.Entries, new: lock.Entries) -> Iterator[str]:
    """What an update changes: one line for each artifact, and one for each of its numbers."""
    words = {name: _word(old.get(name), new.get(name)) for name in sorted({**old, **new})}
    counts = [f"{n} {word}" for word in _WORDS if (n := list(words.values()).count(word))]
    yield f"baseline {path} ({config}): {', '.join(counts) or 'no artifact'}"
    for name, word in words.items():
        yield f"  {word:<8} {name}"
        if word != "same":
            yield from (f"    {line}" for line in _lines(old.get(name), new.get(name)))
    if counts and set(words.values()) != {"same"}:
        yield "  bounds are one-sided, 95 %"


_WORDS = ("new", "changed", "same", "removed")


def _word(old: Remembered | None, new: Remembered | None) -> str:
    if old is None or new is None:
        return "new" if old is None else "removed"
    texts = [lock.text({"": {"": entry}}) for entry in (old, new)]
    return "same" if texts[0] == texts[1] else "changed"


def _lines(old: Remembered | None, new: Remembered | None) -> Iterator[str]:
    """Every number of an artifact with unit, n and spread, before and after."""
    before, after = ({} if entry is None else dict(_shown(entry)) for entry in (old, new))
    for name in {**after, **before}:
        pair = [side.get(name) for side in (before, after)]
        if old is None or new is None or pair[0] == pair[1]:
            yield f"{name:<18} {pair[0] or pair[1]}"
        else:
            yield f"{name:<18} {pair[0] or 'absent'} -> {pair[1] or 'absent'}"


def _shown(entry: Remembered) -> Iterator[tuple[str, str]]:
    """Example: ("latency artifact", "0.0821 ms (0.0790 to 0.0853, 10 processes)")"""
    yield entry.metric, f"{entry.score:.4f} ({_backing(entry)})"
    if entry.eval_sha256:
        yield "eval samples", f"sha256 {entry.eval_sha256[:12]}"
    for role, logs in entry.latency.items():
        yield f"latency {role}", _latency(logs)
    if entry.noise_floor is not None:
        processes = entry.latency["artifact"].processes
        yield "noise floor", f"{100 * entry.noise_floor:.1f} % ({processes} processes, bound)"
    yield from _values(entry.values)
    if entry.machine:
        facts = {k: v for k, v in sorted(entry.machine.items()) if not isinstance(v, list)}
        yield "machine", ", ".join(f"{name} {value}" for name, value in facts.items())


def _backing(entry: Remembered) -> str:
    """The bounds of a score where its samples were kept, as in the summary; else its deviation.

    Mean and variance alone give no bounds that hold for scores between 0 and 1.
    """
    if entry.scores is not None and entry.groups is None:
        mean = mean_score(entry.scores, CONFIDENCE)
        bounds = {"mean": mean.point, "low": mean.low, "high": mean.high}
        return f"±{score(bounds, 'mean').partition('±')[2]}, {entry.samples:,} samples"
    groups = "" if entry.groups is None else f" of {entry.groups:,} groups"
    deviation = f"standard deviation {math.sqrt(entry.variance):.4f}{groups}"
    return f"{deviation}, {entry.samples:,} samples"


def _latency(logs: LogMean) -> str:
    low, high = exp_bounds(
        logs.mean, logs.variance / logs.processes, logs.processes - 1, CONFIDENCE
    )
    bounds = f"{low:.4f} to {high:.4f}" if math.isfinite(high) else "no bounds"
    processes = "1 process" if logs.processes == 1 else f"{logs.processes} processes"
    return f"{math.exp(logs.mean):.4f} ms ({bounds}, {processes})"


def _values(values: Mapping[str, float]) -> Iterator[tuple[str, str]]:
    """Single numbers: counted ones are exact, those of processes have their n and deviation."""
    for name, value in sorted(values.items()):
        if name.endswith(("_processes", "_deviation")):
            continue
        told = "exact" if name in EXACT else "spread not kept"
        if processes := values.get(f"{name}_processes"):
            spread = values.get(f"{name}_deviation")
            deviation = "" if spread is None else f", standard deviation {_amount(name, spread)}"
            told = f"median of {processes:.0f} processes{deviation}"
        yield name.removesuffix("_bytes").replace("_", " "), f"{_amount(name, value)} ({told})"


def _amount(name: str, value: float) -> str:
    if name.endswith("_bytes"):
        return size(value)
    unit = " mJ" if name.endswith("_mj") else ""
    return f"{value:,.0f}{unit}" if value.is_integer() else f"{value:,.4f}{unit}"
