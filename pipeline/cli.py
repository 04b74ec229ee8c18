"""The command line: parses, calls, prints, turns errors into exit codes; no logic lives here."""

from __future__ import annotations

import json
import shutil
import signal
import sys
import textwrap
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

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
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on stdout, nothing else.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show a traceback when something fails.")]
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
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        conclusion, results = launch.run((listener(sys.stderr, progress),))
        if debug:
            _show_traces(launch.rundir.journal)
        _finish(conclusion, results, launch.rundir.folder, as_json)


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
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Judge a finished run again from its stored samples; measures nothing."""
    with _errors(debug, as_json):
        from kdpipe.pipeline.rejudge import rejudge

        conclusion, results = rejudge(run_dir)
        _finish(conclusion, results, run_dir, as_json)


@app.command()
def bench(
    model: Annotated[Path, typer.Argument(help="An ONNX file.")],
    target: Annotated[str, typer.Option(help="Where to run it; see `kdpipe targets`.")],
    against: Annotated[
        Path | None, typer.Option(help="Another ONNX file, measured in turns with the first.")
    ] = None,
    inputs: Annotated[
        Path | None, typer.Option(help="Samples (N, ...) as .npy; by default seeded noise.")
    ] = None,
    processes: Annotated[int, typer.Option(min=2, help="Fresh processes per model.")] = 10,
    iterations: Annotated[int, typer.Option(min=1, help="Timed runs per process, at least.")] = 100,
    threads: Annotated[int, typer.Option(min=1, help="Threads of the runtime.")] = 1,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Measure latency, memory and size of any ONNX file, in fresh processes."""
    with _errors(debug, as_json):
        from kdpipe.pipeline.bench import bench as measure
        from kdpipe.pipeline.bench import render

        models = {"model": model} | ({"against": against} if against else {})
        measured = measure(
            models,
            target,
            inputs=inputs,
            processes=processes,
            iterations=iterations,
            threads=threads,
        )
        _json(measured) if as_json else _say("\n".join(render(measured)))


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


@contextmanager
def _errors(debug: bool, as_json: bool) -> Iterator[None]:
    """Print an error as a person wants it, on stderr, and exit with its code."""
    from kdpipe.pipeline.conclusion import INTERRUPTED, STAGE_FAILED, Conclusion
    from kdpipe.targets.errors import KdpipeError

    try:
        yield
    except (KdpipeError, OSError) as error:
        if debug:
            traceback.print_exc()
        print(f"error: {error}".replace("error: error: ", "error: ", 1), file=sys.stderr)
        known = error if isinstance(error, KdpipeError) else None
        what = known.what if known else str(error)
        code = known.exit_code if known else STAGE_FAILED
        raise _ended(Conclusion("FAILED", code, what), as_json) from None
    except KeyboardInterrupt:
        print(
            "\ninterrupted: what is finished is kept; run the same again to resume", file=sys.stderr
        )
        kept = "interrupted; what is finished is kept"
        raise _ended(Conclusion("FAILED", INTERRUPTED, kept), as_json) from None


def _ended(conclusion: Conclusion, as_json: bool) -> typer.Exit:
    """The last line on stdout of a command that could not do its work, and the exit to raise."""
    code, reason = conclusion.exit_code, conclusion.reason
    _say(json.dumps({"error": reason, "exit_code": code}) if as_json else conclusion.line)
    return typer.Exit(code)


def _finish(conclusion: Conclusion, results: dict[str, Any], folder: Path, as_json: bool) -> None:
    """Print the summary and the last line, and exit with the conclusion's code."""
    from kdpipe.pipeline.summary import render

    if as_json:
        _json(results or {"verdict": conclusion.word, "reason": conclusion.reason})
        raise typer.Exit(conclusion.exit_code)
    if results:
        _say("")
        width = shutil.get_terminal_size().columns
        for line in render(results, width, table=sys.stdout.isatty()):
            _say(line)
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


def _say(text: str) -> None:
    print(text)


def _json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))


def main() -> None:
    """The `kdpipe` command."""
    app()
