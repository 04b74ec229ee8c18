"""What kdpipe can do, as rows for people and for JSON: targets and methods describe themselves."""

from __future__ import annotations

from typing import Any

from kdpipe.stages.distill import METHODS
from kdpipe.targets import targets


def target_rows() -> list[dict[str, Any]]:
    """Each target with its device, and whether it can run on this machine."""
    rows = []
    for kind in targets():
        target = kind.model_validate({"name": kind.model_fields["name"].default})
        missing = target.missing()
        rows.append(
            {
                "name": target.name,
                "status": "missing" if missing else "ok",
                "device": kind.device,
                "summary": f"{missing.reason}; {missing.fix}" if missing else kind.summary,
            }
        )
    return rows


def method_rows() -> list[dict[str, Any]]:
    """Each distillation method with what it needs and where it comes from."""
    return [
        {
            "kind": method.model_fields["kind"].default,
            "needs": ",".join(method.needs),
            "summary": method.summary,
            "paper": method.paper,
        }
        for method in METHODS
    ]
