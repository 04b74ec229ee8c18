"""GitLab's code quality report: what does not hold, as issues at the lines of the config."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from kdpipe.pipeline.ci.context import Context
from kdpipe.pipeline.ci.escape import line
from kdpipe.pipeline.ci.findings import Finding, Results, findings

SEVERITY = {"error": "blocker", "failed": "critical", "undecided": "major", "warning": "minor"}
"""By level; what passed or was skipped is no issue."""


def render(results: Results, context: Context) -> str:
    """A JSON list of issues, as GitLab's merge request widget compares it between branches."""
    told = [finding for finding in findings(results) if finding.level in SEVERITY]
    return json.dumps([_issue(finding, context) for finding in told], indent=1) + "\n"


def _issue(finding: Finding, context: Context) -> dict[str, Any]:
    """The fingerprint holds nothing measured: an issue stays the same until its rule holds."""
    identity = "\0".join((context.id, finding.artifact, finding.name))
    about = f"{finding.artifact}: " if finding.artifact else ""
    return {
        "description": line(f"{about}{finding.message}"),
        "check_name": line(f"kdpipe {finding.name}"),
        "fingerprint": hashlib.sha256(identity.encode(errors="replace")).hexdigest(),
        "severity": SEVERITY[finding.level],
        "location": {
            # Required by GitLab: the file as a whole is its first line.
            "path": context.source.path or context.source.name,
            "lines": {"begin": context.source.line(finding.rule) or 1},
        },
    }
