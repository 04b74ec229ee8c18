"""Whether kdpipe's latencies are those of the runtimes' own tools, on the same files and threads.

python benchmarks/harness.py [--rounds 10] [--seconds 2] [--threads 1] [--out harness.json]

Each tool runs once per round in a fresh process, in random order; the median of a process is one
sample. Inside the clocks: kdpipe has `Session.run` from Python, with the check of the input and
the copy of the output; the bare loop `InferenceSession.run`, with the output; `benchmark_app` the
inference request alone, as OpenVINO itself counts it in C++, on one random input that is set
outside, printed to 0.01 ms; `trtexec` the copies to and from the GPU and the kernels. A call from
Python, with an input and an output of its own, takes some 20 us more than `benchmark_app` counts:
3 % of a model of 0.7 ms, and 0.1 % of one of 17 ms.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kdpipe.stages.models.blueprint import Blueprint
from kdpipe.stages.onnx_export import export_onnx
from kdpipe.stages.statistics import mean_bounds
from kdpipe.targets.base import Target
from kdpipe.targets.fingerprint import fingerprint
from kdpipe.targets.measure import Job, time_processes
from kdpipe.targets.onnxruntime import OnnxRuntime
from kdpipe.targets.openvino import OpenVino
from kdpipe.targets.tensorrt import TensorRt

MODELS = {"resnet20": (3, 32, 32), "mobilenet": (3, 96, 96)}
WARMUP_S = 0.3
TOLERANCE = 0.03
EACH_SIDE = 0.975
"""Of both bounds, so that an interval holds with 95 %."""

BARE = """
import json, sys, time
import numpy as np
import onnxruntime as ort
file, inputs, threads, seconds, warmup = sys.argv[1:]
options = ort.SessionOptions()
options.intra_op_num_threads = int(threads)
session = ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])
name = session.get_inputs()[0].name
samples = [{name: sample[None]} for sample in np.load(inputs)]
taken, started = [], time.perf_counter()
while time.perf_counter() < started + float(warmup) + float(seconds):
    for sample in samples:
        before = time.perf_counter()
        session.run(None, sample)
        after = time.perf_counter()
        if before > started + float(warmup):
            taken.append(1e3 * (after - before))
print(json.dumps(float(np.median(taken))))
"""
"""ONNX Runtime by its own API, as anyone would time it."""

BENCHMARK_APP = """
import sys
sys.modules["openvino_telemetry"] = None
from openvino.tools.benchmark.main import main
main()
"""
"""The command of that name, without the report to a web analytics service that it would send."""

Tool = Callable[[], float]
"""Runs once in a fresh process; milliseconds, the median of its calls."""


@dataclass(frozen=True)
class Pair:
    """One artifact, timed by kdpipe and by the tool of its runtime."""

    model: str
    tool: str
    kdpipe: Tool
    other: Tool


def main() -> None:
    """Measure all pairs in turns, print the table, and write the samples."""
    options = _options()
    with tempfile.TemporaryDirectory() as folder:
        pairs, absent = _pairs(Path(folder), options)
        samples = _interleaved(pairs, options.rounds)
    rows = [_row(pair, own, other) for pair, (own, other) in zip(pairs, samples, strict=True)]
    machine = fingerprint()
    print(f"{machine.get('cpu')}, {options.threads} thread(s), {options.rounds} rounds")
    columns = f"{'model':<12}{'tool':<16}{'kdpipe ms':>10}{'tool ms':>10}"
    print(f"{columns}  {'ratio (95 %)':<26}{'apart':>11}")
    for row in rows:
        ratio = f"{row['ratio']:.3f} ({row['low']:.3f} to {row['high']:.3f})"
        print(
            f"{row['model']:<12}{row['tool']:<16}{row['kdpipe_ms']:>10.4f}{row['tool_ms']:>10.4f}"
            f"  {ratio:<26}{1e3 * (row['kdpipe_ms'] - row['tool_ms']):>+8.0f} us  {row['verdict']}"
        )
    for line in absent:
        print(line)
    if options.out:
        content = {"rows": rows, "absent": absent, "machine": machine, "options": str(options)}
        options.out.write_text(json.dumps(content, indent=1))


def _pairs(folder: Path, options: argparse.Namespace) -> tuple[list[Pair], list[str]]:
    """What can be compared here, and a line for each tool that is not there."""
    threads, pairs = options.threads, []
    gpu = TensorRt(threads=threads)
    reasons = [] if shutil.which("trtexec") else ["it is not on PATH"]
    reasons += [missing.reason] if (missing := gpu.missing()) else []
    absent = [f"trtexec: not compared, {' and '.join(reasons)}"] if reasons else []
    for model in options.models:
        place = folder / model
        onnx, inputs = _export(model, place)
        runtime = _compiled(OnnxRuntime(threads=threads), onnx, inputs)
        bare = [sys.executable, "-c", BARE, str(runtime.artifact), str(inputs), str(threads)]
        bare += [str(options.seconds), str(WARMUP_S)]
        pairs.append(Pair(model, "bare ORT loop", _kdpipe(runtime, options), _printed(bare)))
        vino = _compiled(OpenVino(threads=threads), onnx, inputs)
        tool = _benchmark_app(vino.artifact, threads, options.seconds, place)
        pairs.append(Pair(model, "benchmark_app", _kdpipe(vino, options), tool))
        if not reasons:
            engine = _compiled(gpu, onnx, inputs)
            tool = _trtexec(engine.artifact, options.seconds)
            pairs.append(Pair(model, "trtexec", _kdpipe(engine, options), tool))
    return pairs, absent


def _export(model: str, place: Path) -> tuple[Path, Path]:
    """The network with seeded weights as ONNX, and 16 samples of seeded noise."""
    place.mkdir()
    torch.manual_seed(0)
    shape = MODELS[model]
    noise = np.random.default_rng(0).standard_normal((16, *shape)).astype(np.float32)
    network = Blueprint(model, {}, shape, 10).build().eval()
    export_onnx(network, torch.from_numpy(noise[:2]), place / "model.onnx")
    np.save(place / "inputs.npy", noise)
    return place / "model.onnx", place / "inputs.npy"


def _compiled(target: Target, onnx: Path, inputs: Path) -> Job:
    folder = onnx.parent / target.name
    folder.mkdir()
    return Job(target, target.compile(onnx, folder), inputs)


def _kdpipe(job: Job, options: argparse.Namespace) -> Tool:
    """As the benchmark stage times it, for as long as the others."""

    def measured() -> float:
        timed = time_processes(
            {"job": job},
            processes=1,
            iterations=100,
            seconds=options.seconds,
            warmup_seconds=WARMUP_S,
        )
        return float(np.median(timed["job"][0].latency_ms))

    return measured


def _printed(command: list[str]) -> Tool:
    """The number that a command prints."""
    return lambda: float(json.loads(_output(command)))


def _benchmark_app(artifact: Path, threads: int, seconds: int, folder: Path) -> Tool:
    """OpenVINO's own tool, told what kdpipe tells the plugin: one stream, fp32, no pinning."""
    command = [sys.executable, "-c", BENCHMARK_APP]
    command += ["-m", str(artifact / "model.xml"), "-t", str(seconds)]
    command += ["-hint", "none", "-nstreams", "1", "-nthreads", str(threads), "-api", "sync"]
    command += ["-infer_precision", "f32", "-pin", "NO"]
    command += ["-json_stats", "-report_type", "no_counters", "-report_folder", str(folder)]

    def measured() -> float:
        _output(command)
        report = json.loads((folder / "benchmark_report.json").read_text("utf-8"))
        return float(report["execution_results"]["latency (ms)"])

    return measured


def _trtexec(engine: Path, seconds: int) -> Tool:
    """TensorRT's own tool on kdpipe's engine; its latency is both copies and the kernels."""
    command = ["trtexec", f"--loadEngine={engine}", f"--duration={seconds}", "--iterations=100"]
    command += [f"--warmUp={int(1e3 * WARMUP_S)}"]

    def measured() -> float:
        found = re.search(r"Latency: .*?median = ([0-9.]+) ms", _output(command))
        assert found, "trtexec printed no median latency"
        return float(found[1])

    return measured


def _output(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{command[0]} failed:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    return done.stdout


def _interleaved(pairs: list[Pair], rounds: int) -> list[tuple[list[float], list[float]]]:
    """Medians of kdpipe and of the tool, of each pair.

    In a round the pairs take turns at random, and so do the two of a pair, one right after the
    other: what else the machine does then weighs on both.
    """
    found: list[tuple[list[float], list[float]]] = [([], []) for _ in pairs]
    shuffler = random.Random(0)
    for number in range(rounds):
        for pair in shuffler.sample(range(len(pairs)), len(pairs)):
            tools = pairs[pair].kdpipe, pairs[pair].other
            for side in shuffler.sample((0, 1), 2):
                found[pair][side].append(tools[side]())
        print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
    return found


def _row(pair: Pair, own: list[float], other: list[float]) -> dict[str, Any]:
    """The ratio kdpipe / tool of geometric means, with the t interval of its logarithm."""
    logs = np.log(own) - np.log(other)
    low, high = (math.exp(bound) for bound in mean_bounds(logs, EACH_SIDE))
    return {
        "model": pair.model,
        "tool": pair.tool,
        "kdpipe_ms": math.exp(np.log(own).mean()),
        "tool_ms": math.exp(np.log(other).mean()),
        "ratio": math.exp(logs.mean()),
        "low": low,
        "high": high,
        "verdict": _verdict(low, high),
        "samples_ms": {"kdpipe": own, "tool": other},
    }


def _verdict(low: float, high: float) -> str:
    if low > 1 - TOLERANCE and high < 1 + TOLERANCE:
        return "agree"
    return "differ" if low > 1 + TOLERANCE or high < 1 - TOLERANCE else "cannot tell"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--rounds", type=int, default=10, help="fresh processes of each tool")
    parser.add_argument("--seconds", type=int, default=2, help="timed in each of them")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="file for the samples, JSON")
    return parser.parse_args()


if __name__ == "__main__":
    main()
