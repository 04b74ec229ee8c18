"""Two runs, or two artifacts, side by side: what `kdpipe compare` does and prints.

`contrast.py` compares two artifacts; here is decided which, and how it is shown.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from kdpipe.pipeline.contrast import Change, Line, Value, contrast, same_samples
from kdpipe.pipeline.notes import leak
from kdpipe.pipeline.spread import size
from kdpipe.pipeline.subject import Subject, subjects
from kdpipe.targets.errors import UsageError, listing

SCHEMA = "kdpipe.compare/1"


def compare(a: str, b: str, artifact: str | None = None) -> dict[str, Any]:
    """Compare what `a` and `b` name: a run, `RUN:ARTIFACT`, or a file in a run's folder.

    Artifacts of two runs are matched by id; `artifact` picks one of them. Returns what
    `--json` prints. Raises UsageError when there is nothing to compare.
    """
    left, right = (_chosen(subjects(typed), artifact, typed) for typed in (a, b))
    pairs = list(_pairs(left, right))
    if not pairs:
        raise UsageError(
            "the two have no artifact in common",
            found=f"{listing([s.id for s in left])} and {listing([s.id for s in right])}",
            fix=f"name one of each: kdpipe compare {left[0].name} {right[0].name}",
        )
    matched = [[side.id for side in pair] for pair in zip(*pairs, strict=True)]
    return {
        "schema": SCHEMA,
        "a": a,
        "b": b,
        "pairs": [_pair(*pair) for pair in pairs],
        "only_in_a": [s.id for s in left if s.id not in matched[0]],
        "only_in_b": [s.id for s in right if s.id not in matched[1]],
    }


def render(compared: Mapping[str, Any], width: int, table: bool) -> Iterator[str]:
    """The comparison as lines: a table where one fits, else a sentence for each number."""
    for index, pair in enumerate(compared["pairs"]):
        if index:
            yield ""
        for side in ("a", "b"):
            yield f"{side.upper()}  {pair[side]['name']}  sha256 {pair[side]['sha256'][:12]}"
        lines = [
            _line(found, bool(pair["a"]["leak"] or pair["b"]["leak"])) for found in pair["lines"]
        ]
        rows = _table(lines) if table else []
        if rows and max(map(len, rows)) <= width:
            yield from rows
            notes = [f"{line.what}: {line.note}" for line in lines if line.note]
            notes += ["scores are paired, sample by sample"] * pair["same_samples"]
        else:
            yield from _wrapped(map(_sentence, lines), width if table else 0, 13)
            notes = []
        yield from _wrapped((f"note  {n}" for n in (*notes, *pair["notes"])), width * table, 6)
    for side, word in (("only_in_a", "removed"), ("only_in_b", "new")):
        for name in compared[side]:
            yield f"{word:<8} {name}"
    yield "bounds are one-sided, 95 %"


def _chosen(found: Sequence[Subject], artifact: str | None, typed: str) -> list[Subject]:
    chosen = [subject for subject in found if artifact in (None, subject.id)]
    if not chosen:
        there = listing([subject.id for subject in found]) or "none"
        raise UsageError(
            f"{typed} has no artifact" + (f" '{artifact}'" if artifact else ""),
            found=f"it has {there}",
        )
    return chosen


def _pairs(left: Sequence[Subject], right: Sequence[Subject]) -> Iterator[tuple[Subject, Subject]]:
    """One artifact of each is a pair whatever they are called; several are matched by id."""
    if len(left) == 1 == len(right):
        yield left[0], right[0]
        return
    others = {subject.id: subject for subject in right}
    yield from ((one, others[one.id]) for one in left if one.id in others)


def _pair(a: Subject, b: Subject) -> dict[str, Any]:
    sides = {
        name: {
            "name": side.name,
            "artifact": side.id,
            "sha256": side.row["sha256"],
            "leak": leak(side.results),
        }
        for name, side in {"a": a, "b": b}.items()
    }
    lines = [line.to_dict() for line in contrast(a, b)]
    return {**sides, "same_samples": same_samples(a, b), "lines": lines, "notes": [*_notes(a, b)]}


def _notes(a: Subject, b: Subject) -> Iterator[str]:
    for side in (a, b):
        yield from side.changed
        if why := leak(side.results):
            yield f"* {side.name}: {why}"
    if a.row["sha256"] == b.row["sha256"] and not (a.changed or b.changed):
        yield "A and B are the same file"
    if not all(side.inputs() for side in (a, b)):
        yield "a run's plan.json is not there: whether teacher and data are the same is not known"


def _line(found: Mapping[str, Any], leaked: bool) -> Line:
    """A number to show; a score has a mark where either side was trained on eval samples."""
    parts = {name: Value(**found[name]) for name in ("a", "b")}
    change = Change(**found["change"]) if found["change"] else None
    marked = leaked and found["unit"] == "fraction" and found["a"]["counted"]
    what = f"{found['what']}*" if marked else found["what"]
    return Line(**{**found, **parts, "what": what, "change": change})


def _table(lines: Sequence[Line]) -> list[str]:
    head = ("verdict", "what", "A", "B", "B against A", "n")
    cells = [head, *((*_cells(line), _counts(line)) for line in lines)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    rows = [
        "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in cells
    ]
    return [rows[0], "-" * max(map(len, rows)), *rows[1:]]


def _cells(line: Line) -> tuple[str, str, str, str, str]:
    return line.verdict, line.what, _spread(line, line.a), _spread(line, line.b), _change(line)


def _sentence(line: Line) -> str:
    """Example: better  size: A 253.4 KiB, B 241.6 KiB; B against A -11.8 KiB, exact"""
    verdict, what, a, b, change = _cells(line)
    note = f"; {line.note}" if line.note else ""
    counts = _counts(line) + (", paired" if line.paired else "")
    return f"{verdict:<12} {what}: A {a}, B {b}; B against A {change}, {counts}{note}"


def _counts(line: Line) -> str:
    """What stands behind the numbers, of both where they differ."""
    if not line.a.counted:
        return "exact"
    counts = f"{line.a.n:,}" if line.a.n == line.b.n else f"{line.a.n:,} and {line.b.n:,}"
    one = {"processes": "process"}.get(line.a.counted, line.a.counted.removesuffix("s"))
    counted = one if line.a.n == line.b.n == 1 else line.a.counted
    return f"{counts} {counted}"


def _spread(line: Line, value: Value) -> str:
    """A value with the wider of its bounds' distances, in its unit."""
    shown = _UNITS[line.unit]
    if not value.counted:
        return shown(value.point)
    if value.low is None or value.high is None:
        return f"{shown(value.point)} ± ?"
    return f"{shown(value.point)} ± {shown(max(value.high - value.point, value.point - value.low))}"


def _change(line: Line) -> str:
    if line.change is None:
        return "-"
    change, exact = line.change, not line.a.counted
    ratio = change.kind == "ratio"
    shown: Callable[[float], str] = _speed if ratio else _signed(_UNITS[line.unit])
    if exact:
        return shown(change.point)
    bounds = "no bounds"
    if change.low is not None and change.high is not None:
        bounds = f"{shown(change.low)} to {shown(change.high)}"
    return f"{shown(change.point)}{' as fast' if ratio else ''} ({bounds})"


def _speed(value: float) -> str:
    return f"{value:.2f}x"


def _signed(shown: Callable[[float], str]) -> Callable[[float], str]:
    def signed(value: float) -> str:
        text = shown(abs(value))
        return text if value == 0 else f"{'-' if math.copysign(1, value) < 0 else '+'}{text}"

    return signed


_UNITS: Mapping[str, Callable[[float], str]] = {
    "fraction": lambda value: f"{value:.4f}",
    "ms": lambda value: f"{value:.3f} ms",
    "x": _speed,
    "bytes": size,
    "mJ": lambda value: f"{value:.3f} mJ",
    "parameters": lambda value: f"{value:,.0f}",
    "MACs": lambda value: f"{value:,.0f}",
}


def _wrapped(lines: Iterator[str], width: int, indent: int) -> Iterator[str]:
    """Each line on as many as it takes; as it is where `width` is 0."""
    for line in lines:
        yield from textwrap.wrap(line, width, subsequent_indent=" " * indent) if width else [line]
