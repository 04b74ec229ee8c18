"""`kdpipe ci`, and what `kdpipe run` and `kdpipe gate` leave in the run's folder `ci/`."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TextIO

from kdpipe.pipeline.ci import annotation
from kdpipe.pipeline.ci.context import Context, state_in
from kdpipe.pipeline.ci.findings import Results, State, state
from kdpipe.pipeline.ci.formats import FORMATS
from kdpipe.pipeline.rundir import SCHEMA, RunDir
from kdpipe.targets.errors import UsageError

FOLDER = "ci"


def publish(rundir: RunDir, results: Results, context: Context | None = None) -> list[Path]:
    """Write every format, each file whole or not at all; returns their paths.

    Without a `context`, that of this process.
    """
    context = context or Context.of(results, os.environ)
    written = []
    for format in FORMATS:
        path = rundir.folder / FOLDER / format.file
        rundir.write(path, format.render(results, context))
        written.append(path)
    return written


def announce(results: Results, environment: Mapping[str, str], stream: TextIO) -> None:
    """Print annotations where a GitHub runner reads them, and nothing anywhere else."""
    if environment.get("GITHUB_ACTIONS") == "true":
        stream.write(annotation.render(results, Context.of(results, environment)))


def ci(
    folder: Path,
    environment: Mapping[str, str],
    *,
    format: str | None = None,
    out: Path | None = None,
    previous: Path | None = None,
    id: str = "",
    commit: str = "",
    report: str = "",
) -> str:
    """What `kdpipe ci` prints: one format of a finished run, or the paths of all that it wrote.

    `previous`: the comment or the `results.json` of the run before; an empty file
    means that there was none. `out`: write there instead of printing.

    Raises UsageError when there is no finished run in `folder`, for a format that does not exist,
    for a `previous` that is neither, and when files cannot be written.
    """
    chosen = next((known for known in FORMATS if known.name == format), None)
    if format is not None and chosen is None:
        names = ", ".join(known.name for known in FORMATS)
        raise UsageError(f"there is no format '{format}'", found=names)
    if out is not None and chosen is None:
        raise UsageError(
            "--out needs a --format", fix=f"without one, all files go to {folder / FOLDER}"
        )
    rundir = RunDir(folder)
    results = rundir.read_results()
    before = previous_state(previous) if previous else None
    context = Context.of(results, environment, id=id, previous=before, commit=commit, report=report)
    if chosen and out is None:
        return chosen.render(results, context)
    try:
        if chosen and out:
            rundir.write(out, chosen.render(results, context))
            return ""
        return "".join(f"{path}\n" for path in publish(rundir, results, context))
    except OSError as error:
        raise UsageError(f"{out or folder / FOLDER} cannot be written", found=str(error)) from None


def previous_state(path: Path) -> State | None:
    """How the run before ended, by its comment or its `results.json`."""
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read", found=str(error)) from None
    if not text.strip():
        return None
    found = _in_results(text) if text.lstrip().startswith("{") else state_in(text)
    if found is None:
        raise UsageError(
            f"{path} is neither a comment of kdpipe nor a results.json",
            fix="give the body of the comment, or no --previous where there is none",
        )
    return found


def _in_results(text: str) -> State | None:
    try:
        results = json.loads(text)
        return state(results) if results["schema"] == SCHEMA else None
    except (ValueError, KeyError, TypeError):
        return None
