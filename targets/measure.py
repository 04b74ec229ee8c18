"""Measures artifacts in fresh processes, interleaved; worker.py is what runs in each of them.

The process is the sample. Latencies inside one process hang together (its memory layout, its
clocks), so ten processes say more than ten thousand iterations; and artifacts that are compared
take turns in random order, so that a machine that slows down slows all of them.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kdpipe.targets.base import Target
from kdpipe.targets.errors import StageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

Progress = Callable[[int, int, str], None]
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_QUOTED_LINES = 8


@dataclass(frozen=True)
class Job:
    """What to measure: an artifact of a target, on the samples of an .npy file (N, ...)."""

    target: Target
    artifact: Path
    inputs: Path


@dataclass(frozen=True)
class Process:
    """What one fresh process measured.

    `latency_ms`: (n,) milliseconds of each call in order. `load_ms`: importing the runtime and
    loading the artifact. `first_ms`: the first call. `steady`: whether the warm-up settled.
    `position`: its place in the order in which all processes ran, from 0.
    """

    latency_ms: NDArray[np.float64]
    load_ms: float
    first_ms: float
    steady: bool
    position: int


@dataclass(frozen=True)
class Memory:
    """Peak resident memory of fresh processes in bytes; the process is the sample here, too.

    `peaks`: (n,) with the artifact. `empties`: (n,) with a model that does nothing, each measured
    right after its neighbour in `peaks`. The `_bytes` are medians.
    """

    peaks: NDArray[np.float64]
    empties: NDArray[np.float64]

    @property
    def models(self) -> NDArray[np.float64]:
        """What the artifact itself takes, (n,); around 0, or below it, for tiny models."""
        each: NDArray[np.float64] = self.peaks - self.empties
        return each

    @property
    def peak_bytes(self) -> int:
        """With the artifact."""
        return int(np.median(self.peaks))

    @property
    def empty_bytes(self) -> int:
        """With a model that does nothing."""
        return int(np.median(self.empties))

    @property
    def model_bytes(self) -> int:
        """What the artifact itself takes."""
        return int(np.median(self.models))


def time_processes(
    jobs: Mapping[str, Job],
    *,
    processes: int = 10,
    iterations: int = 100,
    seconds: float = 0.5,
    warmup_seconds: float = 0.2,
    seed: int = 0,
    timeout: float = 600.0,
    on_progress: Progress = lambda done, total, note: None,
) -> dict[str, tuple[Process, ...]]:
    """Time every job in `processes` fresh processes, one at a time; {name: one Process each}.

    In each of `processes` rounds all jobs run once, in an order shuffled by `seed`. Each process
    warms up, then runs until both `iterations` calls are made and `seconds` have passed (see
    device/timing.py), one sample at a time or the batch that is compiled in. Raises StageError
    when a process fails or takes longer than `timeout` seconds.
    """
    effort = {"iterations": iterations, "seconds": seconds, "warmup_seconds": warmup_seconds}
    found: dict[str, list[Process]] = {name: [] for name in jobs}
    order = interleaved(list(jobs), processes, seed)
    for position, name in enumerate(order):
        answer = _ask(jobs[name], {"order": "time", **effort}, timeout)
        latency = np.array(answer.pop("latency_ms"), dtype=np.float64)
        found[name].append(Process(latency_ms=latency, position=position, **answer))
        on_progress(position + 1, len(order), f"{name} {np.median(latency):.3g} ms")
    return {name: tuple(runs) for name, runs in found.items()}


def interleaved(names: Sequence[str], rounds: int, seed: int) -> list[str]:
    """Every name once per round, each round in a random order of its own.

    Example: interleaved(["a", "b"], 3, 0) -> ["b", "a", "a", "b", "b", "a"]
    """
    shuffler = random.Random(seed)
    return [name for _ in range(rounds) for name in shuffler.sample(names, len(names))]


def peak_memory(job: Job, *, processes: int = 1, timeout: float = 600.0) -> Memory:
    """Peak memory of fresh processes that load the artifact and run it a little.

    The empty model is one Identity of the same input shape, compiled by the same target, so that
    Python, numpy and the runtime are in both numbers. Raises StageError as `time_processes` does.
    """
    with tempfile.TemporaryDirectory() as folder:
        empty = Job(job.target, _compile_empty(job, Path(folder)), job.inputs)
        pairs = [
            [_ask(each, {"order": "memory"}, timeout)["peak_bytes"] for each in (job, empty)]
            for _ in range(processes)
        ]
    peaks, empties = np.array(pairs, dtype=np.float64).T
    return Memory(peaks, empties)


def _compile_empty(job: Job, folder: Path) -> Path:
    from onnx import helper, save

    samples = np.load(job.inputs, mmap_mode="r")
    dtype = helper.np_dtype_to_tensor_dtype(samples.dtype)
    shape = ["batch", *samples.shape[1:]]
    with job.target.open(job.artifact) as session:
        shape[0] = session.batch or "batch"
    ends = [helper.make_tensor_value_info(name, dtype, shape) for name in ("input", "output")]
    node = helper.make_node("Identity", ["input"], ["output"])
    graph = helper.make_graph([node], "empty", ends[:1], ends[1:])
    opsets = [helper.make_opsetid("", 17)]
    save(helper.make_model(graph, opset_imports=opsets, ir_version=8), folder / "empty.onnx")
    (folder / "compiled").mkdir()
    return job.target.compile(folder / "empty.onnx", folder / "compiled")


def _ask(job: Job, order: dict[str, Any], timeout: float) -> dict[str, Any]:
    """Have a fresh process carry out `order`; its answer."""
    paths = {"artifact": str(job.artifact.resolve()), "inputs": str(job.inputs.resolve())}
    target = job.target.model_dump(mode="json")
    question = json.dumps({**order, **paths, "target": target, "parent": os.getpid()})
    threads = dict.fromkeys(_THREAD_VARIABLES, str(job.target.threads))
    worker = subprocess.Popen(
        [sys.executable, "-P", "-m", "kdpipe.targets.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, **threads},
        encoding="utf-8",
        errors="replace",
        start_new_session=True,
    )
    try:
        answer, chatter = worker.communicate(question, timeout)
    except subprocess.TimeoutExpired as error:
        raise StageError(
            f"measuring {job.target.id} took longer than {timeout:g} s", found=str(job.artifact)
        ) from error
    finally:  # also after Ctrl-C, which the worker's own session does not hear of
        _end(worker)
    if worker.returncode != 0:
        raise StageError(
            f"measuring {job.target.id} failed in its process (exit code {worker.returncode})",
            found="\n".join(chatter.strip().splitlines()[-_QUOTED_LINES:]) or "no message",
        )
    result: dict[str, Any] = json.loads(answer)
    return result


def _end(worker: subprocess.Popen[str]) -> None:
    """Kill the worker and all it started, if it still runs, and reap it."""
    if worker.poll() is None:
        os.killpg(worker.pid, signal.SIGKILL)
        worker.communicate()
