"""What CI knows beside the results: the comment that stands there, the commit, the repository."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from kdpipe.pipeline.ci.findings import Results, State
from kdpipe.pipeline.ci.source import Source

ROOTS = ("GITHUB_WORKSPACE", "CI_PROJECT_DIR")
"""Where platforms say that the repository was checked out."""


@dataclass(frozen=True)
class Context:
    """`id`: of the sticky comment, one for each config. `previous`: how the run before ended, None
    where there was none. `commit` and `report` (an address): shown where they are given."""

    source: Source
    id: str
    previous: State | None = None
    commit: str = ""
    report: str = ""

    @classmethod
    def of(
        cls,
        results: Results,
        environment: Mapping[str, str],
        *,
        id: str = "",
        previous: State | None = None,
        commit: str = "",
        report: str = "",
    ) -> Context:
        """The context of a run in the environment of a job."""
        named = next((environment[name] for name in ROOTS if environment.get(name)), None)
        source = Source.of(results, Path(named).absolute() if named else Path.cwd())
        chosen = tag_name(id or Path(results["run"]["config"]).stem)
        return cls(source, chosen, previous, commit, report)


def tag_name(text: str) -> str:
    """A name that an HTML comment can hold. Example: "edge -- int8" -> "edge-int8"."""
    return re.sub(r"-{2,}", "-", re.sub(r"[^A-Za-z0-9._-]+", "-", text)).strip("-") or "default"


def open_tag(id: str) -> str:
    """The first line of the sticky comment, by which it is found again."""
    return f"<!-- kdpipe:{id} -->"


def state_tag(state: State) -> str:
    """The second line of the sticky comment: how the run ended that it speaks of."""
    return f"<!-- kdpipe-verdict:{state} -->"


def state_in(comment: str) -> State | None:
    """How the run ended that a sticky comment speaks of; None where it does not say.

    Only its first two lines count: what stands further below came from users.
    """
    head = "\n".join(comment.splitlines()[:2])
    return next((s for s in get_args(State) if state_tag(s) in head), None)
