"""The command about CI: `kdpipe ci`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from kdpipe.pipeline.shell import Debug, errors


def ci(
    run_dir: Annotated[Path, typer.Argument(help="The folder of a finished run.")],
    format: Annotated[
        str | None,
        typer.Option(
            help="Print junit, markdown, comment, flip, action, annotations, codequality or "
            "metrics; by default, all are written to RUN_DIR/ci."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write there instead of printing.")
    ] = None,
    previous: Annotated[
        Path | None,
        typer.Option(help="The comment, or results.json, of the run before; may be empty."),
    ] = None,
    id: Annotated[
        str, typer.Option(help="Of the comment; by default the name of the config.")
    ] = "",
    commit: Annotated[str, typer.Option(help="Shown in the comment.")] = "",
    report: Annotated[str, typer.Option(help="Address of a report, linked in the comment.")] = "",
    debug: Debug = False,
) -> None:
    """Write what CI platforms read of a finished run; posts nothing, judges nothing."""
    with errors(debug, as_json=False):
        from kdpipe.pipeline.ci.command import ci as render

        text = render(
            run_dir,
            os.environ,
            format=format,
            out=out,
            previous=previous,
            id=id,
            commit=commit,
            report=report,
        )
        print(text, end="")
