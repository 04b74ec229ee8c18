"""Loads of several sizes: which are measured, in which order, and what they count."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kdpipe.targets.errors import StageError
from kdpipe.targets.onnxruntime import OnnxRuntime
from kdpipe.targets.openvino import OpenVino
from kdpipe.targets.process import Job
from kdpipe.targets.sweep import Load, Point, points, sweep_processes

BRIEF = {"iterations": 4, "seconds": 0.0, "warmup_seconds": 0.0}


@pytest.mark.parametrize(
    ("batches", "concurrency", "fixed", "expected", "refused"),
    [
        ([1, 8], [1, 2], None, [(1, 1), (8, 1), (1, 2)], []),
        ([8, 4], [2], None, [(8, 1), (4, 1), (4, 2)], []),
        ([1, 8], [1, 4], 1, [(1, 1), (1, 4)], [8]),
        ([1, 8], [2], 3, [(3, 2)], [1, 8]),
        ([], [1, 2], None, [(1, 1), (1, 2)], []),
    ],
)
def test_every_load_is_measured_once_and_refusals_have_reasons(
    batches: list[int],
    concurrency: list[int],
    fixed: int | None,
    expected: list[tuple[int, int]],
    refused: list[int],
) -> None:
    """A compiled batch takes no other one, and callers use it."""
    at, why = points(batches, concurrency, fixed)

    assert [(point.batch, point.concurrency) for point in at] == expected
    assert list(why) == refused
    assert all(f"batch of {fixed}" in reason for reason in why.values())


def test_each_load_runs_in_processes_of_its_own(fp32: Path, inputs: Path) -> None:
    """Two rounds of three loads in turns; throughput is samples over seconds."""
    told: list[str] = []
    at, _ = points([1, 5], [1, 2], None)

    found = sweep_processes(
        Job(OnnxRuntime(), fp32, inputs),
        at,
        processes=2,
        **BRIEF,
        on_progress=lambda done, total, note: told.append(note),
    )

    assert list(found) == list(at)
    loads = [load for each in found.values() for load in each]
    assert sorted(load.position for load in loads) == list(range(6))
    assert sorted({load.position // 3 for load in found[Point(5, 1)]}) == [0, 1]
    assert len(told) == 6
    for load in found[Point(5, 1)]:
        assert load.latency_ms.shape == (4,)
        assert load.throughput == pytest.approx(5 * 4 / load.seconds)
        assert load.seconds * 1e3 >= load.latency_ms.sum() * 0.999
    for load in found[Point(1, 2)]:
        assert 4 <= len(load.latency_ms) <= 8


def test_callers_of_a_compiled_batch(fp32: Path, inputs: Path, tmp_path: Path) -> None:
    """Two sessions of an artifact for three samples, fed three at a time."""
    target = OpenVino(batch=3)
    job = Job(target, target.compile(fp32, tmp_path), inputs)

    ((load,),) = sweep_processes(job, [Point(3, 2)], processes=1, **BRIEF).values()

    assert load.throughput == pytest.approx(3 * len(load.latency_ms) / load.seconds)


def test_more_than_there_is_cannot_be_a_batch(fp32: Path, inputs: Path) -> None:
    """24 samples make no batch of 25."""
    with pytest.raises(StageError) as caught:
        sweep_processes(Job(OnnxRuntime(), fp32, inputs), [Point(25, 1)], processes=1, **BRIEF)

    assert "a batch needs 25 samples" in caught.value.found


def test_a_disturbed_load_is_marked() -> None:
    """Its conditions become sentences; it counts all the same."""
    load = Load(Point(1, 1), np.ones(2), 1.0, True, 0, {"stolen": 0.1})

    assert load.disturbed == ("the hypervisor gave 10 % of the CPU to others",)
    assert load.throughput == 2
