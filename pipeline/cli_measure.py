"""The commands about single models and finished runs: `bench`, `compare` and `inspect`."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Annotated

import typer

from kdpipe.pipeline.shell import AsJson, Debug, errors, say_json, say_lines

Model = Annotated[
    str,
    typer.Argument(help="An ONNX file, OpenVINO's .xml, or an artifact of a run: RUN:ARTIFACT."),
]


def bench(
    model: Model,
    target: Annotated[
        str | None, typer.Option(help="Where to run an ONNX file; see `kdpipe targets`.")
    ] = None,
    against: Annotated[
        str | None, typer.Option(help="Another model, measured in turns with the first.")
    ] = None,
    inputs: Annotated[
        Path | None, typer.Option(help="Samples (N, ...) as .npy; by default seeded noise.")
    ] = None,
    processes: Annotated[int, typer.Option(min=2, help="Fresh processes per model.")] = 20,
    iterations: Annotated[int, typer.Option(min=1, help="Timed runs per process, at least.")] = 100,
    seconds: Annotated[
        float, typer.Option(min=0, help="Timed duration per process, at least.")
    ] = 0.5,
    threads: Annotated[int, typer.Option(min=1, help="Threads of the runtime.")] = 1,
    noise_floor: Annotated[
        bool, typer.Option(help="Measure the model a second time, to see what noise alone does.")
    ] = True,
    batch: Annotated[
        list[int], typer.Option(min=1, help="Also throughput at this batch; may be repeated.")
    ] = [],  # noqa: B006 (typer copies it)
    concurrency: Annotated[
        list[int], typer.Option(min=1, help="Also throughput of so many callers; repeatable.")
    ] = [],  # noqa: B006
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Measure latency, memory and size of any model, in fresh processes."""
    with errors(debug, as_json):
        from kdpipe.pipeline.bench import bench as measure
        from kdpipe.pipeline.bench_lines import render

        measured = measure(
            {"model": model} | ({"against": against} if against else {}),
            target,
            inputs=inputs,
            processes=processes,
            iterations=iterations,
            seconds=seconds,
            threads=threads,
            noise_floor=noise_floor,
            batches=batch,
            concurrency=concurrency,
        )
        say_json(measured) if as_json else say_lines(render(measured), 7)


def compare(
    a: Annotated[str, typer.Argument(help="The folder of a run, or RUN:ARTIFACT.")],
    b: Annotated[str, typer.Argument(help="Another one, which is compared with the first.")],
    artifact: Annotated[
        str | None, typer.Option(help="Compare this artifact alone, e.g. openvino-int8.")
    ] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Compare two runs or artifacts from their stored samples; measures nothing, judges nothing."""
    with errors(debug, as_json):
        from kdpipe.pipeline.compare import compare as side_by_side
        from kdpipe.pipeline.compare import render

        found = side_by_side(a, b, artifact)
        width = shutil.get_terminal_size().columns
        lines = render(found, width, table=sys.stdout.isatty())
        say_json(found) if as_json else say_lines(lines, 4)


def inspect(model: Model, as_json: AsJson = False, debug: Debug = False) -> None:
    """Show what a model file is, what of it runs in which precision, and where it comes from."""
    with errors(debug, as_json):
        from kdpipe.pipeline.inspect import inspect as look
        from kdpipe.pipeline.inspect_lines import render

        found = look(model)
        say_json(found) if as_json else say_lines(render(found), 10)
