"""GitLab's metrics report, in the OpenMetrics text format.

GitLab compares values as text, so they have fixed decimals. Latency, memory and all that is made of
them differ from run to run on the very same file: they are left out, and the gate judges them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from kdpipe.pipeline.ci.context import Context
from kdpipe.pipeline.ci.escape import label
from kdpipe.pipeline.ci.findings import LEVELS, Results, findings, metric, state
from kdpipe.pipeline.notes import leak

Sample = tuple[Mapping[str, str], float | None]


@dataclass(frozen=True)
class Family:
    """One metric; `unit` is the end of its name, as the format demands."""

    name: str
    unit: str
    help: str
    decimals: int
    samples: tuple[Sample, ...]


def render(results: Results, context: Context) -> str:
    """The exposition, closed by `# EOF`; what was not measured is absent."""
    lines = [line for family in _families(results) for line in _lines(family)]
    return "\n".join([*lines, "# EOF", ""])


def _families(results: Results) -> Iterator[Family]:
    name, levels = metric(results), [f.level for f in findings(results)]
    passed = float(state(results) == "passed")
    yield Family("kdpipe_passed", "", "Whether the run passed.", 0, (({}, passed),))
    counts = tuple(({"level": level}, float(levels.count(level))) for level in LEVELS)
    yield Family("kdpipe_findings", "", "Rules, steps and targets by outcome.", 0, counts)
    networks = {which: results[which] for which in ("teacher", "student") if results[which]}
    yield _of(networks, "kdpipe_network_parameters", "parameters", "Parameters.", "parameters", 0)
    leaked = {"leaked": "true"} if leak(results) else {}
    scored = {"metric": name, **leaked}
    yield _of(networks, "kdpipe_network_score_ratio", "ratio", "Headline metric.", name, 6, scored)
    artifacts = {row["id"]: row for row in results["artifacts"]}
    drops = {id: row["drop"] for id, row in artifacts.items()}
    yield _of(artifacts, "kdpipe_score_ratio", "ratio", "Headline metric.", name, 6, scored)
    yield _of(drops, "kdpipe_drop_ratio", "ratio", "Loss against the teacher.", "mean", 6, scored)
    help = "Share of samples decided as the teacher does."
    yield _of(artifacts, "kdpipe_agreement_ratio", "ratio", help, "agreement", 6, leaked)
    help = "Share of multiply-accumulates in int8."
    yield _of(artifacts, "kdpipe_int8_ratio", "ratio", help, "int8_fraction", 6)
    yield _of(artifacts, "kdpipe_size_bytes", "bytes", "Size of the file.", "size_bytes", 0)


def _of(
    rows: Mapping[str, Mapping[str, Any]],
    name: str,
    unit: str,
    help: str,
    key: str,
    decimals: int,
    labels: Mapping[str, str] = {},
) -> Family:
    """One sample for each row, by its name."""
    samples = tuple(({"artifact": row, **labels}, found.get(key)) for row, found in rows.items())
    return Family(name, unit, help, decimals, samples)


def _lines(family: Family) -> Iterator[str]:
    measured = [(labels, value) for labels, value in family.samples if value is not None]
    if not measured:
        return
    yield f"# TYPE {family.name} gauge"
    if family.unit:
        yield f"# UNIT {family.name} {family.unit}"
    yield f"# HELP {family.name} {family.help}"
    for labels, value in measured:
        inside = ",".join(f'{name}="{label(text)}"' for name, text in labels.items())
        shown = f"{value:.{family.decimals}f}"
        number = shown.removeprefix("-") if float(shown) == 0 else shown
        yield f"{family.name}{{{inside}}} {number}" if inside else f"{family.name} {number}"
