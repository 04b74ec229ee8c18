"""Measuring in fresh processes: order, counts, failures, memory, and nothing left behind."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kdpipe.targets.errors import StageError
from kdpipe.targets.measure import Around, Job, Process, interleaved, peak_memory, time_processes
from kdpipe.targets.onnxruntime import OnnxRuntime
from kdpipe.targets.openvino import OpenVino

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")


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


@linux_only
def test_processes_run_on_the_cores_they_are_told(job: Job) -> None:
    """Kept on one core, a process says so; left alone, it may use what this one may."""
    core = max(os.sched_getaffinity(0))
    jobs = {"kept": replace(job, cores=(core,)), "free": job}

    found = time_processes(jobs, processes=1, iterations=3, seconds=0.0)

    assert found["kept"][0].cores == (core,)
    assert found["free"][0].cores == tuple(sorted(os.sched_getaffinity(0)))


@linux_only
def test_cores_that_do_not_exist_are_an_error(job: Job) -> None:
    """A process that cannot be kept where it should be does not run somewhere else."""
    with pytest.raises(StageError) as caught:
        time_processes({"a": replace(job, cores=(9999,))}, processes=1)

    assert "cannot run on the cores [9999]" in caught.value.found


def test_what_is_around_the_model_is_timed_beside_it(job: Job, tmp_path: Path) -> None:
    """Preprocessing of raw pixels and the decision get calls of their own; others get none."""
    pixels = tmp_path / "pixels.npy"
    np.save(pixels, np.zeros((5, 16, 16, 3), np.uint8))
    how = {"height": 16, "width": 16, "mean": [0.5] * 3, "std": [0.2] * 3}
    jobs = {
        "bare": job,
        "whole": replace(job, around=Around(pixels, how, "argmax over axis 1")),
    }

    found = time_processes(jobs, processes=1, iterations=7, seconds=0.0)

    (bare,), (whole,) = found["bare"], found["whole"]
    assert bare.preprocess_ms is None
    assert bare.decision_ms is None
    for times in (whole.preprocess_ms, whole.decision_ms):
        assert times is not None
        assert times.shape == (30,)
        assert (times > 0).all()
    assert whole.latency_ms.shape == (7,)


@linux_only
def test_each_process_says_what_happened_meanwhile(job: Job) -> None:
    """A measurement of 0.3 s knows of the CPU time of others."""
    (run,) = time_processes({"a": job}, processes=1, iterations=1, seconds=0.3)["a"]

    assert {"other_cpu", "stolen", "major_faults"} <= run.conditions.keys()
    assert 0 <= run.conditions["other_cpu"] <= 1


def test_a_disturbed_process_is_marked_and_kept() -> None:
    """The mark is a sentence from its conditions; its latencies stay."""
    calm = Process(np.ones(3), 1.0, 1.0, True, 0)
    hit = replace(calm, conditions={"other_cpu": 0.34})

    assert calm.disturbed == ()
    assert hit.disturbed == ("other processes took 34 % of the CPU",)
    assert hit.latency_ms is calm.latency_ms


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
