"""The command line: parses, calls, prints, turns errors into exit codes; no logic lives here."""

from __future__ import annotations

import functools
import os
import shutil
import signal
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from kdpipe.pipeline.cli_ci import ci
from kdpipe.pipeline.cli_measure import bench, compare, inspect
from kdpipe.pipeline.shell import AsJson, Debug, say_lines
from kdpipe.pipeline.shell import errors as _errors
from kdpipe.pipeline.shell import say as _say
from kdpipe.pipeline.shell import say_json as _json

if TYPE_CHECKING:
    from kdpipe.pipeline.conclusion import Conclusion
    from kdpipe.pipeline.launch import Launch

app = typer.Typer(
    name="kdpipe",
    help="Distil, quantize, export, compile, measure and gate a model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    epilog="Exit codes: 0 ok; 1 a stage failed; 2 usage or config; 3 gate failed; "
    "4 a required target is unavailable; 5 not enough evidence; 130 interrupted, resumable.",
)

ConfigFile = Annotated[Path, typer.Argument(help="The YAML file.")]
Assignments = Annotated[
    list[str],
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key, e.g. distill.epochs=3."),
]
StoreDir = Annotated[Path, typer.Option("--store", help="Where outputs of stages are kept.")]
RunFolder = Annotated[
    Path | None, typer.Option("--run-dir", help="Where results go; by default STORE/runs/NAME.")
]
From = Annotated[
    str | None,
    typer.Option("--from", metavar="STAGE", help="Do this stage and all after it again."),
]
To = Annotated[str | None, typer.Option("--to", metavar="STAGE", help="Stop after this stage.")]
Only = Annotated[
    str | None, typer.Option("--only", metavar="STAGE", help="Do this stage again, and no other.")
]
BaselineFile = Annotated[
    Path | None,
    typer.Option(
        "--baseline",
        metavar="FILE",
        help="Compare with this file; by default kdpipe.lock.yaml beside the config, if any.",
    ),
]
DEFAULT_STORE = Path(".kdpipe")


@app.command()
def run(
    config: ConfigFile,
    assignments: Assignments = [],  # noqa: B006 (typer copies it)
    store: StoreDir = DEFAULT_STORE,
    run_dir: RunFolder = None,
    start: From = None,
    stop: To = None,
    only: Only = None,
    baseline: BaselineFile = None,
    progress: Annotated[
        Literal["auto", "bar", "lines", "none"], typer.Option(help="How to show what is going on.")
    ] = "auto",
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Run the chain, measure every artifact, and judge it. Stored stages are reused."""
    with _errors(debug, as_json):
        from kdpipe.pipeline.console import listener

        launch = _launch(config, assignments, store, run_dir, start, stop, only)
        launch = replace(launch, baseline=baseline)
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        conclusion, results = launch.run((listener(sys.stderr, progress),))
        if debug:
            _show_traces(launch.rundir.journal)
        _finish(conclusion, results, launch.rundir.folder, as_json, baseline)


@app.command()
def plan(
    config: ConfigFile,
    assignments: Assignments = [],  # noqa: B006
    store: StoreDir = DEFAULT_STORE,
    run_dir: RunFolder = None,
    start: From = None,
    stop: To = None,
    only: Only = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Show what a run would do and why, without running anything."""
    with _errors(debug, as_json):
        launch = _launch(config, assignments, store, run_dir, start, stop, only)
        launch.config.check()
        steps = [
            {"step": p.step.id, "status": p.status, "why": p.why, "key": p.key}
            for p in launch.plan()
        ]
        if as_json:
            return _json({"steps": steps})
        for step in steps:
            _say(f"{step['status']:<8} {step['step']:<28} {step['why']}")
        waiting = sum(step["status"] == "run" for step in steps)
        _say(f"\n{waiting} of {len(steps)} steps will run")
    return None


@app.command()
def gate(
    run_dir: Annotated[Path, typer.Argument(help="The folder of a finished run.")],
    policy: Annotated[
        Path | None,
        typer.Option(help="Judge by the rules in this YAML file, and not by those of the run."),
    ] = None,
    baseline: BaselineFile = None,
    update_baseline: Annotated[
        bool,
        typer.Option("--update-baseline", help="Compare later runs with this one, if it passes."),
    ] = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Judge a finished run again from its stored samples; measures nothing."""
    with _errors(debug, as_json):
        from kdpipe.pipeline.baseline import renew
        from kdpipe.pipeline.policy import Policy
        from kdpipe.pipeline.rejudge import rejudge

        rules = Policy.read(policy) if policy else None
        if update_baseline:
            tell = functools.partial(print, file=sys.stderr if as_json else sys.stdout)
            conclusion, results = renew(run_dir, rules, baseline, tell)
        else:
            conclusion, results = rejudge(run_dir, rules, baseline)
        _finish(conclusion, results, run_dir, as_json, baseline)


app.command()(bench)
app.command()(compare)
app.command()(inspect)
app.command()(ci)


@app.command()
def doctor(
    config: Annotated[
        Path | None, typer.Argument(help="Also check that this config can run here.")
    ] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Say what this machine has, what is missing, and what to type to get it."""
    with _errors(debug, as_json):
        from kdpipe.pipeline.doctor import diagnose, render

        report = diagnose(config)
        _json(report) if as_json else _say("\n".join(render(report)))
        raise typer.Exit(report["exit_code"])


@app.command()
def schema(debug: Debug = False) -> None:
    """Print the JSON schema of the config, for editors."""
    with _errors(debug, as_json=True):
        from kdpipe.pipeline.published import published

        print(published(), end="")


@app.command()
def targets(as_json: AsJson = False, debug: Debug = False) -> None:
    """List the targets, and whether they can run here."""
    with _errors(debug, as_json):
        from kdpipe.pipeline.catalogue import target_rows

        _rows(target_rows(), as_json)


@app.command()
def methods(
    as_json: AsJson = False,
    as_markdown: Annotated[
        bool, typer.Option("--markdown", help="Print docs/methods.md, with every setting.")
    ] = False,
    debug: Debug = False,
) -> None:
    """List the distillation methods."""
    with _errors(debug, as_json):
        from kdpipe.stages.distill.handbook import markdown, rows

        if as_json:
            _json(rows())
        elif as_markdown:
            _say(markdown())
        else:
            keys = ("kind", "summary", "needs", "paper")
            _rows([{key: row[key] for key in keys} for row in rows()], as_json)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        _say(f"kdpipe {version('kdpipe')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Distil, quantize, export, compile, measure and gate a model."""


def _launch(
    config: Path,
    assignments: list[str],
    store: Path,
    run_dir: Path | None,
    start: str | None,
    stop: str | None,
    only: str | None,
) -> Launch:
    from kdpipe.pipeline.config import Config
    from kdpipe.pipeline.launch import Launch, Selection, default_run_dir
    from kdpipe.pipeline.rundir import RunDir
    from kdpipe.pipeline.store import Store
    from kdpipe.targets.errors import UsageError

    if only and (start or stop):
        raise UsageError("--only goes alone", fix="leave out --from and --to")
    folder = run_dir or default_run_dir(config, store)
    read = Config.read(config, assignments)
    return Launch(read, Store(store), RunDir(folder), Selection(start, stop, only))


def _finish(
    conclusion: Conclusion,
    results: dict[str, Any],
    folder: Path,
    as_json: bool,
    baseline: Path | None,
) -> None:
    """Print the summary and the last line, and exit with the conclusion's code."""
    from kdpipe.pipeline.baseline import notes
    from kdpipe.pipeline.ci.command import announce
    from kdpipe.pipeline.judgement import verdict_fields
    from kdpipe.pipeline.summary import render

    if results:
        announce(results, os.environ, sys.stderr)
    if as_json:
        _json(results or verdict_fields(conclusion))
        raise typer.Exit(conclusion.exit_code)
    if results:
        _say("")
        width = shutil.get_terminal_size().columns
        for line in render(results, width, table=sys.stdout.isatty()):
            _say(line)
        say_lines(notes(results, baseline), 9)
        _say(f"\nresults  {folder / 'results.json'}\nfiles    {folder / 'artifacts'}")
    _say(conclusion.line)
    raise typer.Exit(conclusion.exit_code)


def _show_traces(journal: Path) -> None:
    from kdpipe.pipeline.journal import read

    events = list(read(journal))
    last = max(i for i, event in enumerate(events) if event["event"] == "run")
    for event in events[last:]:
        if event["event"] == "failed":
            print(event["traceback"], file=sys.stderr)


def _rows(rows: list[dict[str, Any]], as_json: bool) -> None:
    """A list of things: JSON, or one aligned line each with its name first.

    On a terminal that is too narrow for that, what follows the first two columns is indented below.
    """
    if as_json:
        return _json(rows)
    cells = [
        {k: ", ".join(v) if isinstance(v, list) else str(v) for k, v in row.items()} for row in rows
    ]
    widths = {key: max(len(row[key]) for row in cells) for key in cells[0]}
    columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else sys.maxsize
    fits = sum(widths.values()) + 2 * (len(widths) - 1) <= columns
    for row in cells:
        padded = [value.ljust(widths[key]) for key, value in row.items()]
        if fits:
            _say("  ".join(padded).rstrip())
            continue
        _say("  ".join(padded[:2]).rstrip())
        below = textwrap.fill("; ".join(v.strip() for v in padded[2:]), max(20, columns - 4))
        _say(textwrap.indent(below, "    "))
    return None


def main() -> None:
    """The `kdpipe` command."""
    try:
        app()
    finally:
        _let_go()


def _let_go() -> None:
    """Flush what is printed now: of a reader that has left, Python would complain at exit."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
