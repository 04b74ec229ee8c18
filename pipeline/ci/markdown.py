"""A run in Markdown: the verdict, the worst sentence, the rules, what was not gated, the details.

Text that would be too long loses whole parts, in the order of `LEVELS`, and says which.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

from kdpipe.pipeline.ci import numbers
from kdpipe.pipeline.ci.context import Context
from kdpipe.pipeline.ci.escape import line
from kdpipe.pipeline.ci.escape import markdown as text
from kdpipe.pipeline.ci.findings import Finding, Results, findings, metric, state
from kdpipe.pipeline.notes import leak, mark
from kdpipe.pipeline.spread import size

SUMMARY_BYTES = 250_000
"""GitHub takes step summaries of up to 1 MiB and loses them near that; below 256 KiB is safe."""
MANY = 20
"""How many rules that do not hold are shown when not all fit."""

Groups = dict[tuple[str, str], list[str]]
"""Names of rules by artifact and message."""

WORDS = {"failed": "**FAIL**", "undecided": "**UNDECIDED**", "error": "**ERROR**"}
WORDS |= {"warning": "warning", "skipped": "skipped", "passed": "pass"}


@dataclass(frozen=True)
class Cut:
    """What a text goes without: folded details, rows that passed, others after the first few."""

    details: bool = False
    passed: bool = False
    most: int | None = None


LEVELS = (
    Cut(),
    Cut(details=True),
    Cut(details=True, passed=True),
    Cut(details=True, passed=True, most=MANY),
    Cut(details=True, passed=True, most=0),
)


def render(results: Results, context: Context) -> str:
    """The step summary: below 256 KiB in UTF-8, however large the run was."""
    return fitting(results, context, (), SUMMARY_BYTES, lambda line: len(line.encode()))


def fitting(
    results: Results,
    context: Context,
    head: Sequence[str],
    most: int,
    length: Callable[[str], int],
) -> str:
    """The longest text of at most `most` by `length`; `head` are lines above it."""
    found = findings(results)
    for cut in LEVELS[:-1]:
        lines: list[str] = []
        room = most
        for row in chain(head, _lines(results, context, found, cut)):
            room -= length(row) + 1
            if room < 0:
                break
            lines.append(row)
        else:
            return "\n".join([*lines, ""])
    return "\n".join([*head, *_lines(results, context, found, LEVELS[-1]), ""])


def title(results: Results, context: Context, found: Sequence[Finding]) -> str:
    """Example: kdpipe: FAILED, 1 of 4 rules failed (was: passed)"""
    now, steps = state(results), len(results["failed"])
    required = [f for f in found if f.verdict and (f.blocks or f.level == "passed")]
    counted = sum(f.level == now for f in required)
    word = {"passed": "PASSED", "failed": "FAILED", "undecided": "FAILED, not enough evidence"}[now]
    parts = [
        word,
        f"{steps} {'step' if steps == 1 else 'steps'} broke" if steps else "",
        f"{counted:,} of {len(required):,} rules {now}" if counted else "",
    ]
    was = f" (was: {context.previous})" if context.previous not in (None, now) else ""
    star = f" {text(mark(results))}".rstrip()
    return f"kdpipe: {', '.join(part for part in parts if part)}{star}{was}"


def sentence(results: Results, context: Context, found: Sequence[Finding]) -> str:
    """The worst that the run has to say, and where its rule stands; counts where it passed."""
    if state(results) == "passed":
        return text(results["reason"])
    worst = next(f for f in found if f.blocks)
    about, star = worst.artifact or worst.name, mark(results)
    named = f"**{text(about)}**: {text(worst.message.removesuffix(f' {star}'))}"
    row = context.source.line(worst.rule)
    placed = f"{named} ({text(context.source.name)}, line {row})" if row else named
    return f"{placed}; {text(f'{star} {why}')}" if (why := leak(results)) else placed


def _lines(results: Results, context: Context, found: Sequence[Finding], cut: Cut) -> Iterator[str]:
    yield from [f"### {title(results, context, found)}", "", sentence(results, context, found), ""]
    yield from _rules(found, cut, mark(results))
    yield from _ungated(found, cut)
    if not cut.details:
        yield from _details(results, found)
    yield from _left_out(found, cut)
    yield " | ".join(_about(results, context))


def _rules(found: Sequence[Finding], cut: Cut, star: str) -> Iterator[str]:
    """The table, failures first; a verdict is a row, and so is what broke.

    `star`: the mark of a leak, or nothing.
    """
    shown = [f for f in found if f.level != "skipped" and not (cut.passed and f.level == "passed")]
    shown = shown[: cut.most]
    if shown:
        header = ("gate", "artifact", "rule", "measured", "bounds", "limit", "n")
        yield from _table(header, (_row(finding, star) for finding in shown))


def _row(finding: Finding, star: str) -> tuple[str, ...]:
    first = (WORDS[finding.level], text(finding.artifact), text(finding.name))
    verdict = finding.verdict
    if not verdict:
        return (*first, *[numbers.NONE] * 4)
    cells = (numbers.bounds, numbers.limit, numbers.counted)
    measured = text(numbers.measured(verdict) + star)
    return (*first, measured, *(text(cell(verdict)) for cell in cells))


def _ungated(found: Sequence[Finding], cut: Cut) -> Iterator[str]:
    """What did not decide: advice, what was skipped, what to do next; each message once."""
    advice = "Advisory rules that do not hold (`required: false`):"
    heads = {
        advice: _grouped(found, lambda f: f.message if f.level == "warning" and f.verdict else ""),
        "Not gated:": _grouped(found, lambda f: f.message if f.level == "skipped" else ""),
        "Notes:": _grouped(found, lambda f: f.verdict.get("note", "")),
    }
    for head, groups in heads.items():
        if groups and cut.most != 0:
            yield from [head, ""]
            for (artifact, message), names in islice(groups.items(), cut.most):
                yield _item(artifact, names, message)
            yield ""


def _grouped(found: Sequence[Finding], message: Callable[[Finding], str]) -> Groups:
    """The findings that have a message, by it."""
    groups: Groups = {}
    for finding in found:
        if said := message(finding):
            groups.setdefault((finding.artifact, said), []).append(finding.name)
    return groups


def _item(artifact: str, names: Sequence[str], message: str) -> str:
    about = ": ".join(part for part in (artifact, ", ".join(names)) if part)
    return f"- **{text(about)}**: {text(message)}"


def _details(results: Results, found: Sequence[Finding]) -> Iterator[str]:
    """Folded: why rules do not hold, and what was measured of each artifact."""
    blocking, rows = [f for f in found if f.blocks], results["artifacts"]
    if not blocking and not rows:
        return
    yield from ["<details><summary>Reasons, and what was measured of each artifact</summary>", ""]
    for finding in blocking:
        yield _item(finding.artifact, [finding.name], finding.message)
    if blocking:
        yield ""
    if rows:
        name = metric(results)
        header = (
            *("artifact", text(name), "drop", "samples"),
            *("mean latency", "speedup", "processes", "size"),
        )
        yield from _table(header, (_artifact(row, name, mark(results)) for row in rows))
        yield from [
            "In brackets: one-sided 95 % bounds. Drop and speedup: against the teacher.",
            "",
        ]
    if power := results["gate"].get("power"):
        yield from [f"Power of the policy: {text(power['sentence'])}.", ""]
    yield from ["</details>", ""]


def _artifact(row: Mapping[str, Any], name: str, star: str) -> tuple[str, ...]:
    latency, speedup = row["latency_ms"], row["speedup"]
    cells = (
        row["id"],
        numbers.interval(row, name, 4) + star,
        numbers.interval(row["drop"], "mean", 4) + star,
        f"{row['samples']:,}",
        numbers.interval(latency, "mean", 3, " ms"),
        numbers.interval(speedup, "ratio", 2, "x"),
        f"{latency['processes']:,}" if latency else numbers.NONE,
        size(row["size_bytes"]),
    )
    return tuple(text(cell) for cell in cells)


def _left_out(found: Sequence[Finding], cut: Cut) -> Iterator[str]:
    """What this text would have been too long with."""
    passed = sum(f.level == "passed" for f in found)
    others = len(found) - passed
    dropped = [
        "the details" if cut.details else "",
        f"{passed:,} rules that passed" if cut.passed and passed else "",
        f"{others:,} others" if cut.most == 0 else "",
        f"others after the first {cut.most} ({others:,} in all)" if cut.most else "",
    ]
    if any(dropped):
        said = "; ".join(part for part in dropped if part)
        yield from [f"Left out, for it would be too long: {said}. `results.json` has it all.", ""]


def _about(results: Results, context: Context) -> Iterator[str]:
    if context.report:
        yield f"[Full report](<{_address(context.report)}>)"
    yield f"rules in {text(context.source.path or context.source.name)}"
    if context.commit:
        yield f"commit {text(context.commit[:10])}"
    if cpu := results["run"].get("machine", {}).get("cpu"):
        yield f"measured on {text(cpu)}"
    yield f"kdpipe {text(results['run']['kdpipe'])}"


def _address(url: str) -> str:
    return "".join(c for c in line(url) if c not in '<>"\\ ')


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(header)} |"
    yield f"|{'---|' * len(header)}"
    yield from (f"| {' | '.join(row)} |" for row in rows)
    yield ""
