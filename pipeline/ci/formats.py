"""The formats, in one tuple; a new one is one file and one line here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from kdpipe.pipeline.ci import annotation, codequality, comment, junit, markdown, metrics
from kdpipe.pipeline.ci.context import Context
from kdpipe.pipeline.ci.findings import Results


@dataclass(frozen=True)
class Format:
    """`name`: on the command line. `file`: in the run's folder `ci/`."""

    name: str
    file: str
    render: Callable[[Results, Context], str]


FORMATS: tuple[Format, ...] = (
    Format("junit", "junit.xml", junit.render),
    Format("markdown", "summary.md", markdown.render),
    Format("comment", "comment.md", comment.render),
    Format("flip", "flip.md", comment.render_flip),
    Format("action", "action.txt", comment.render_action),
    Format("annotations", "annotations.txt", annotation.render),
    Format("codequality", "codequality.json", codequality.render),
    Format("metrics", "metrics.txt", metrics.render),
)
