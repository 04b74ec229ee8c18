"""What a person reads first when a run has ended: networks, artifacts, verdicts; from results.json.

The verdict stands in the first column. A table that is too wide loses whole columns. Below 80
columns, where even that is too wide, and in a pipe, each row becomes one record of `name=value`
words, so that no number is ever cut.
"""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kdpipe.pipeline import returned
from kdpipe.stages import Rule

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
    columns = (*FIRST, _metric(results), *LAST)
    lines = _table(rows, columns, width) if table and width >= NARROW else []
    text = [*_notes(results), "", *_judgements(results)]
    if table:
        text = [part for line in text for part in _wrapped(line, width)]
    return [*(lines or [_record(row, columns) for row in rows]), "", *text]


def _metric(results: Results) -> str:
    """The headline metric, e.g. accuracy; a run that broke before its data were read has none."""
    return str(results["metric"] or "score")


def _networks(results: Results) -> Iterator[Row]:
    teacher, student, control = results["teacher"], results["student"], results["control"]
    metric = _metric(results)
    if teacher:
        yield {"gate": "ref", "artifact": "teacher", metric: _fraction(teacher[metric])}
    named = {"student (PyTorch)": student, "control, no KD": control}
    for name, network in named.items():
        if teacher and network and network != teacher:
            drop = teacher[metric] - network[metric]
            yield {
                "gate": "-",
                "artifact": name,
                metric: _fraction(network[metric]),
                "drop (95 %)": f"{drop:+.4f}",
            }


def _artifact(row: Mapping[str, Any], results: Results) -> Row:
    latency, speedup, metric = row["latency_ms"], row["speedup"], _metric(results)
    return {
        "gate": _word(row["id"], results),
        "artifact": row["id"],
        metric: _fraction(row[metric]),
        "drop (95 %)": f"{row['drop']['mean']:+.4f} <{_bound(row['drop']['high'])}",
        "p50 ms": f"{latency['p50']:.3f}" if latency else "-",
        "p95 ms": f"{latency['p95']:.3f}" if latency else "-",
        "speed": f"{speedup['ratio']:.1f}x" if speedup else "-",
        "size": size(row["size_bytes"]),
    }


def _word(artifact: str, results: Results) -> str:
    """The artifact's worst verdict."""
    words = [v["verdict"] for v in results["gate"]["rules"] if v["artifact"] == artifact]
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


def _notes(results: Results) -> Iterator[str]:
    """What the table has no room for: sizes of the networks, the gain, what the numbers rest on."""
    teacher, student, control = results["teacher"], results["student"], results["control"]
    if teacher and student and teacher["parameters"] and student["parameters"]:
        share = student["parameters"] / teacher["parameters"]
        yield (
            f"student  {student['parameters']:,} parameters, {share:.0%} of the teacher's "
            f"{teacher['parameters']:,}"
        )
    if control:
        yield f"gain     {_gain(control['gain'])} against the control without distillation"
    if quantized := results.get("quantized"):
        yield f"int8     {_steps(quantized)}"
        if search := quantized.get("search"):
            yield from returned.lines(search)
    for row in results["artifacts"][:1]:
        latency = row["latency_ms"]
        measured = (
            f"; latency: {latency['processes']} fresh processes, {latency['iterations']} iterations"
            if latency
            else ""
        )
        yield f"samples  {row['samples']} eval samples{measured}"
    yield from _slow(results)
    if hops := results["waterfall"]:
        path = ", ".join(f"{hop['hop']} {_fraction(hop[_metric(results)])}" for hop in hops)
        yield f"hops     {path}"
    yield from _details(results)


def _slow(results: Results) -> Iterator[str]:
    """Artifacts that are slower than their fp32 twins beyond doubt, unless a rule says it already.

    Example: openvino-int8 runs 0.81x as fast as its fp32 twin: in float: ...; try another target
    """
    rules = results["gate"]["rules"]
    judged = {v["artifact"] for v in rules if v["rule"].get("against") == "fp32"}
    for row in results["artifacts"]:
        twin = row["speedup_fp32"]
        if twin and row["id"] not in judged and (twin["high"] or math.inf) < 1:
            slower = f"slow     {row['id']} runs {twin['ratio']:.2f}x as fast as its fp32 twin"
            # Results of an earlier kdpipe have no diagnosis.
            yield f"{slower}: {why}" if (why := row.get("diagnosis")) else slower


def _details(results: Results) -> Iterator[str]:
    """What the task reports beside its headline metric; those of single classes have a slash."""
    judged = {"teacher": results["teacher"], **{row["id"]: row for row in results["artifacts"]}}
    for name, row in judged.items():
        shown = [
            f"{metric} {_fraction(value)}"
            for metric, value in ((row or {}).get("details") or {}).items()
            if "/" not in metric
        ]
        if shown:
            yield f"also     {name}: {', '.join(shown)}"


def _steps(quantized: Mapping[str, Any]) -> str:
    """Example: qat, in PyTorch: student 0.9733 -> 0.9711, control 0.9667 -> 0.9600"""
    steps = [
        f"{name} {_fraction(step['fp32'])} -> {_fraction(step['int8'])}"
        for name, step in ((name, quantized[name]) for name in ("student", "control"))
        if step
    ]
    return f"{quantized['mode']}, in {quantized['runtime']}: {', '.join(steps)}"


def _gain(gain: Mapping[str, Any]) -> str:
    pairs = f"{gain['pairs']} seed{'s' if gain['pairs'] > 1 else ''}"
    if gain["low"] is None:
        why = "no interval from one" if gain["pairs"] == 1 else "all alike, so no interval"
        return f"{gain['mean']:+.4f} ({pairs}; {why})"
    return f"{gain['mean']:+.4f} (90 % interval {gain['low']:+.4f} to {gain['high']:+.4f}, {pairs})"


def _judgements(results: Results) -> Iterator[str]:
    """One sentence per rule, failures first; then what was skipped or broke."""
    order = ("FAIL", "UNDECIDED", "PASS")
    for verdict in sorted(results["gate"]["rules"], key=lambda v: order.index(v["verdict"])):
        word = {"PASS": "pass", "UNDECIDED": "UNDEC"}.get(verdict["verdict"], verdict["verdict"])
        yield f"{word:<5}  {verdict['artifact']}: {verdict['reason']}"
    for aside in results["gate"]["skipped"]:
        yield f"SKIP   {aside['artifact']}: {_rule(aside['rule'])} was not judged"
    for skipped in results["skipped"]:
        yield f"SKIP   {skipped['id']}: {skipped['reason']}; {skipped['fix']}"
    for failed in results["failed"]:
        yield f"ERROR  {failed['step']}: {failed['error']}"


def _rule(rule: Mapping[str, Any]) -> str:
    """Example: latency_p95_ms max 2"""
    limits = Rule.model_validate(rule).limits
    return " ".join([rule["metric"], *(f"{name} {value:g}" for name, value in limits.items())])


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


def _fraction(value: float) -> str:
    return f"{value:.4f}"


def _bound(value: float | None) -> str:
    """An upper bound, rounded outwards as the sentences of the gate are."""
    return "?" if value is None else f"{math.ceil(value * 1e4 - 1e-6) / 1e4:+.4f}"


def size(count: float) -> str:
    """Bytes for people. Example: 44_100 -> 43.1 KiB"""
    if count < 1024:
        return f"{count:.0f} B"
    return f"{count / 1024:.1f} KiB" if count < 1024**2 else f"{count / 1024**2:.1f} MiB"
