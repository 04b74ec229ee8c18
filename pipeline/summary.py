"""What a person reads first when a run has ended: networks, artifacts, verdicts; from results.json.

The verdict stands in the first column. A table that is too wide loses whole columns. Below 80
columns, where even that is too wide, and in a pipe, each row becomes one record of `name=value`
words, so that no number is ever cut.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kdpipe.pipeline import notes
from kdpipe.pipeline.spread import drop, percent, score, size

Results = Mapping[str, Any]
NARROW = 80
FIRST, LAST = ("gate", "artifact"), ("drop (95 %)", "p50 ms", "p95 ms", "speed", "size")
"""Columns before and behind that of the headline metric, which has the metric's own name."""
EXPENDABLE = ("p95 ms", "size")
"""What a table goes without where it is too wide, in this order; `results.json` has it all."""

Row = Mapping[str, str]
"""Cells by column; a column that a row lacks is shown as a hyphen."""


def render(results: Results, width: int, table: bool) -> list[str]:
    """The lines of the summary, none of them wider than `width` where they form a table."""
    rows: list[Row] = [*_networks(results)]
    rows += [_artifact(row, results) for row in results["artifacts"]]
    rows += [{"gate": "SKIP", "artifact": row["id"]} for row in results["skipped"]]
    columns = (*FIRST, notes.metric(results), *LAST)
    lines = _table(rows, columns, width) if table and width >= NARROW else []
    text = [*notes.lines(results), "", *notes.judgements(results)]
    if table:
        text = [part for line in text for part in _wrapped(line, width)]
    return [*(lines or [_record(row, columns) for row in rows]), "", *text]


def _networks(results: Results) -> Iterator[Row]:
    metric, mark = notes.metric(results), notes.mark(results)
    names = {"teacher": "teacher", "student": "student (PyTorch)", "control": "control, no KD"}
    hops = {hop["hop"]: hop["drop"] for hop in results["waterfall"]}
    for role, name in names.items():
        network = results[role]
        if not network or (role == "student" and _alike(network, results["teacher"])):
            continue
        cells = {metric: score(network, metric) + mark}
        if role == "student" and role in hops:
            cells["drop (95 %)"] = drop(hops[role]) + mark
        yield {"gate": "ref" if role == "teacher" else "-", "artifact": name, **cells}


def _alike(student: Mapping[str, Any], teacher: Mapping[str, Any] | None) -> bool:
    """Whether the teacher itself ships; only the teacher has `quality`."""
    return student == {k: v for k, v in (teacher or {}).items() if k != "quality"}


def _artifact(row: Mapping[str, Any], results: Results) -> Row:
    latency, speedup = row["latency_ms"], row["speedup"]
    metric, mark = notes.metric(results), notes.mark(results)
    times = {f"{name} ms": _latency(latency, name) for name in ("p50", "p95")} if latency else {}
    return {
        "gate": _word(row["id"], results),
        "artifact": row["id"],
        metric: score(row, metric) + mark,
        "drop (95 %)": drop(row["drop"]) + mark,
        **times,
        "speed": f"{speedup['ratio']:.1f}x{percent(speedup['ratio'], speedup)}" if speedup else "-",
        "size": size(row["size_bytes"]),
    }


def _latency(latency: Mapping[str, Any], name: str) -> str:
    """Example: 0.136±4%"""
    bounds = latency.get("bounds", {}).get(name, {})
    return f"{latency[name]:.3f}{percent(latency[name], bounds)}"


def _word(artifact: str, results: Results) -> str:
    """The artifact's worst verdict; rules that are not required have no say."""
    words = [
        v["verdict"]
        for v in results["gate"]["rules"]
        if v["artifact"] == artifact and v.get("required", True)
    ]
    if "FAIL" in words:
        return "FAIL"
    if "UNDECIDED" in words:
        return "UNDEC"
    return "pass" if words else "-"


def _table(rows: Sequence[Row], columns: Sequence[str], width: int) -> list[str]:
    """The widest table that fits, and nothing where none does."""
    for dropped in range(len(EXPENDABLE) + 1):
        lines = _aligned(rows, [name for name in columns if name not in EXPENDABLE[:dropped]])
        if max(map(len, lines)) <= width:
            return lines
    return []


def _aligned(rows: Sequence[Row], columns: Sequence[str]) -> list[str]:
    """A header, a ruler and the rows: words to the left, numbers to the right."""
    cells = [columns, *([row.get(name, "-") for name in columns] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]
    return [lines[0], "-" * max(map(len, lines)), *lines[1:]]


def _record(row: Row, columns: Sequence[str]) -> str:
    """Example: FAIL openvino-int8 accuracy=0.9600 drop=+0.0200<+0.0350 p50=0.410"""
    given = {name: row.get(name, "-") for name in columns[2:]}
    values = [f"{k.split()[0]}={v.replace(' ', '')}" for k, v in given.items() if v != "-"]
    return " ".join([row["gate"], row["artifact"].replace(" ", "-"), *values])


def _wrapped(text: str, width: int) -> Iterator[str]:
    """Sentences on as many lines as they take, aligned behind their first word."""
    for line in text.splitlines() or [""]:
        first = re.match(r"\s*\S*\s*", line)
        indent = " " * (first.end() if first else 0)
        yield from textwrap.wrap(
            line,
            width,
            subsequent_indent=indent,
            break_long_words=False,
            break_on_hyphens=False,
        ) or [""]
