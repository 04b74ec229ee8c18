"""Measuring in fresh processes: order, counts, failures, memory, and nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from kdpipe.targets import GROUP, target_named
from kdpipe.targets.errors import StageError
from kdpipe.targets.measure import Job, interleaved, peak_memory, time_processes
from kdpipe.targets.onnxruntime import OnnxRuntime
from kdpipe.targets.openvino import OpenVino

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")

CHATTY = """
import os
from pathlib import Path
from typing import Literal
from kdpipe.targets.base import Session
from kdpipe.targets.onnxruntime import OnnxRuntime
class Chatty(OnnxRuntime):
    name: Literal["chatty"] = "chatty"
    def open(self, artifact: Path) -> Session:
        print("loading", artifact, flush=True)
        os.write(1, b"words from the C++ side")
        return super().open(artifact)
"""

MEASURE_FOR_LONG = """
import sys
from pathlib import Path
from kdpipe.targets.measure import Job, time_processes
from kdpipe.targets.onnxruntime import OnnxRuntime
job = Job(OnnxRuntime(), Path(sys.argv[1]), Path(sys.argv[2]))
time_processes({"job": job}, processes=1, iterations=10**9)
"""


@pytest.fixture
def job(fp32: Path, inputs: Path) -> Job:
    """The tiny network in ONNX Runtime, whose artifact is the ONNX file itself."""
    return Job(OnnxRuntime(), fp32, inputs)


def workers_of(parent: int) -> list[int]:
    """Processes that `parent` started and that have not ended."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, above = stat.read_text().rpartition(")")[2].split()[:2]
        except OSError:  # ended meanwhile
            continue
        if int(above) == parent and state not in "ZX":
            found.append(int(stat.parent.name))
    return found


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_each_round_runs_every_job_once(job: Job) -> None:
    """Two jobs in three rounds: six processes, each round has both, and calls are as asked for."""
    told: list[tuple[int, int, str]] = []
    found = time_processes(
        {"a": job, "b": job},
        processes=3,
        iterations=12,
        seconds=0.0,
        warmup_seconds=0.0,
        on_progress=lambda *step: told.append(step),
    )

    assert list(found) == ["a", "b"]
    assert [len(run.latency_ms) for runs in found.values() for run in runs] == [12] * 6
    assert sorted(run.position // 2 for run in found["a"]) == [0, 1, 2]
    assert sorted(run.position for runs in found.values() for run in runs) == list(range(6))
    assert [step[:2] for step in told] == [(done, 6) for done in range(1, 7)]
    order = {run.position: name for name, runs in found.items() for run in runs}
    assert [note.split()[0] for _, _, note in told] == [order[place] for place in range(6)]


def test_rounds_are_shuffled_by_the_seed() -> None:
    """Each round holds each name once; rounds differ; the seed alone decides."""
    names = ["a", "b", "c", "d"]
    order = interleaved(names, 20, seed=5)
    rounds = [order[start : start + 4] for start in range(0, 80, 4)]

    assert all(sorted(each) == names for each in rounds)
    assert len(set(map(tuple, rounds))) > 1
    assert order == interleaved(names, 20, seed=5)
    assert order != interleaved(names, 20, seed=6)


def test_process_tells_its_cold_start(job: Job) -> None:
    """Load and first call are measured beside the latencies, all positive and finite."""
    (run,) = time_processes({"a": job}, processes=1, iterations=5, seconds=0.0)["a"]

    times = [run.load_ms, run.first_ms, *run.latency_ms]
    assert np.isfinite(times).all()
    assert min(times) > 0


def test_fixed_batch_is_measured_as_compiled(fp32: Path, inputs: Path, tmp_path: Path) -> None:
    """A target that compiles a batch of 3 in is fed 3 samples at a time."""
    target = OpenVino(batch=3)
    job = Job(target, target.compile(fp32, tmp_path), inputs)

    (run,) = time_processes({"a": job}, processes=1, iterations=9, seconds=0.0)["a"]

    assert len(run.latency_ms) == 9


def test_failure_quotes_the_process(inputs: Path, tmp_path: Path) -> None:
    """What the process said last is in the error, with its exit code."""
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"not a model")

    with pytest.raises(StageError, match="exit code 1") as caught:
        time_processes({"a": Job(OnnxRuntime(), broken, inputs)}, processes=1)

    assert "ONNX Runtime refuses broken.onnx" in caught.value.found


def test_too_few_samples_is_an_error(fp32: Path, tmp_path: Path) -> None:
    """A compiled batch that the samples cannot fill is an error, not a smaller batch."""
    target = OpenVino(batch=3)
    few = tmp_path / "few.npy"
    np.save(few, np.zeros((2, 3, 16, 16), np.float32))
    (tmp_path / "out").mkdir()
    job = Job(target, target.compile(fp32, tmp_path / "out"), few)

    with pytest.raises(StageError) as caught:
        time_processes({"a": job}, processes=1)

    assert "a batch needs 3 samples" in caught.value.found


def test_chatter_does_not_spoil_the_answer(
    fp32: Path, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A runtime that prints to stdout, from Python and below it, is measured all the same."""
    (tmp_path / "chatty_target.py").write_text(CHATTY)
    info = tmp_path / "chatty-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: chatty\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{GROUP}]\nchatty = chatty_target:Chatty\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    target = target_named("chatty").model_validate({})

    (run,) = time_processes({"a": Job(target, fp32, inputs)}, processes=1, iterations=5)["a"]

    assert len(run.latency_ms) >= 5


@linux_only
def test_timeout_ends_the_process(job: Job) -> None:
    """A process that takes too long is an error, and is gone."""
    with pytest.raises(StageError, match=r"longer than 0\.5 s"):
        time_processes({"a": job}, processes=1, iterations=10**9, timeout=0.5)

    assert workers_of(os.getpid()) == []


@linux_only
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_process_outlives_its_parent(job: Job, how: signal.Signals) -> None:
    """However the parent ends, the process that measures ends as well."""
    parent = subprocess.Popen(
        [sys.executable, "-c", MEASURE_FOR_LONG, job.artifact, job.inputs],
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 20
    while not (workers := workers_of(parent.pid)) and time.monotonic() < deadline:
        time.sleep(0.05)
    parent.send_signal(how)
    parent.wait(10)
    while any(map(alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)

    assert workers
    assert not any(map(alive, workers))


@pytest.mark.parametrize("target", [OnnxRuntime(), OpenVino()], ids=lambda target: target.name)
def test_process_does_not_import_torch(
    target: OnnxRuntime | OpenVino, fp32: Path, inputs: Path, tmp_path: Path
) -> None:
    """The process that measures loads one runtime, and neither torch, onnx nor scipy."""
    order = {
        "order": "memory",
        "parent": os.getpid(),
        "target": target.model_dump(mode="json"),
        "artifact": str(target.compile(fp32, tmp_path)),
        "inputs": str(inputs),
    }

    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "kdpipe.targets.worker"],
        input=json.dumps(order),
        capture_output=True,
        text=True,
        check=True,
    )

    modules = (line.rpartition("|")[2].strip() for line in done.stderr.splitlines())
    imported = {module.partition(".")[0] for module in modules}
    assert target.name in imported
    assert not {"torch", "onnx", "scipy"} & imported


def test_memory_is_that_of_the_model(job: Job, wide: Path, inputs: Path) -> None:
    """34 MB of weights show in the peak, next to which the tiny network takes nearly nothing."""
    tiny = peak_memory(job)
    large = peak_memory(Job(OnnxRuntime(), wide, inputs))

    assert large.model_bytes > 30e6
    assert tiny.model_bytes < 15e6
    assert tiny.empty_bytes > 10e6


def test_memory_of_a_fixed_batch(fp32: Path, inputs: Path, tmp_path: Path) -> None:
    """The empty model is compiled by the same target, for the same batch."""
    target = OpenVino(batch=3)
    memory = peak_memory(Job(target, target.compile(fp32, tmp_path), inputs))

    assert memory.peak_bytes > memory.empty_bytes > 0


def test_memory_is_measured_anew_in_each_process(job: Job) -> None:
    """Peaks come in pairs, with and without the artifact; numbers shown are their medians."""
    memory = peak_memory(job, processes=3)

    assert memory.peaks.shape == memory.empties.shape == (3,)
    assert len(set(memory.peaks)) > 1  # copies of one measurement would be equal
    assert memory.models == pytest.approx(memory.peaks - memory.empties)
    assert memory.model_bytes == int(np.median(memory.models))
    assert memory.peak_bytes == int(np.median(memory.peaks))
