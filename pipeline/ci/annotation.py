"""GitHub annotations: workflow commands that put what does not hold beside the config's lines."""

from __future__ import annotations

from kdpipe.pipeline.ci.context import Context
from kdpipe.pipeline.ci.escape import command, command_property
from kdpipe.pipeline.ci.findings import Finding, Results, findings

MOST = 10
"""The runner shows ten errors and ten warnings of a step."""


def render(results: Results, context: Context) -> str:
    """One command a line, worst first, ten at most; empty where all rules hold.

    They are for the runner's eyes: print them in a job, on stderr.
    """
    told = [finding for finding in findings(results) if finding.level not in ("skipped", "passed")]
    shown = told if len(told) <= MOST else told[: MOST - 1]
    lines = [_command(finding, context) for finding in shown]
    if len(told) > len(shown):
        rest = len(told) - len(shown)
        kind = "error" if any(finding.blocks for finding in told[len(shown) :]) else "warning"
        lines.append(f"::{kind} title=kdpipe::and {rest:,} more: see the summary of this job")
    return "".join(f"{line}\n" for line in lines)


def _command(finding: Finding, context: Context) -> str:
    line = context.source.line(finding.rule)
    where = {"file": context.source.path, "line": None if line is None else str(line)}
    about = " ".join(part for part in (finding.artifact, finding.name) if part)
    properties = {**(where if context.source.path else {}), "title": f"kdpipe {about}"}
    written = ",".join(f"{k}={command_property(v)}" for k, v in properties.items() if v)
    kind = "error" if finding.blocks else "warning"
    return f"::{kind} {written}::{command(finding.message)}"
