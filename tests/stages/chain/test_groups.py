"""Groups from the data to the results: what belongs together is kept and counted together."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from kdpipe.stages import results
from kdpipe.stages.benchmark import Benchmark, BenchmarkInputs
from kdpipe.stages.dataset import Dataset

GROUPS = np.repeat(np.arange(4), 25)


@pytest.fixture
def grouped(chain, tmp_path: Path) -> Dataset:
    """The data of the chain, with its 100 eval samples in 4 clips of 25."""
    folder = Path(shutil.copytree(chain.data.folder, tmp_path / "grouped"))
    np.save(folder / "eval.groups.npy", GROUPS)
    return Dataset(folder)


def test_without_groups_evidence_has_none(chain) -> None:
    """Digits know of no writers: every sample is on its own."""
    assert all(measured.evidence.groups is None for measured in chain.measured.values())


def test_groups_and_every_weighed_process_are_evidence(chain, step, grouped: Dataset) -> None:
    """Groups of the eval split, and one number per process, of which the median is shown."""
    id = "onnxruntime-int8"
    inputs = BenchmarkInputs(
        grouped,
        chain.teacher,
        chain.distill,
        chain.quantize,
        chain.export,
        chain.compiled[id],
        chain.targets[id],
    )
    effort = {"processes": 2, "iterations": 1, "seconds": 0, "warmup_seconds": 0}

    evidence = step(Benchmark, inputs, **effort, memory_processes=2).evidence

    assert np.array_equal(evidence.groups, GROUPS)
    assert sorted(evidence.memory) == ["artifact", "peak", "teacher"]
    assert all(processes.shape == (2,) for processes in evidence.memory.values())
    median = np.median(evidence.memory["artifact"])
    assert evidence.values["memory_bytes"] == pytest.approx(median, abs=1)


def test_every_bound_of_the_results_is_by_groups(chain, grouped: Dataset) -> None:
    """Networks and hops get the wider bounds; numbers and samples stay what they are."""
    alone = results.collect(chain.outputs)
    found = results.collect(chain.outputs | {"data": grouped})

    assert (alone["data"]["groups"], found["data"]["groups"]) == (None, 4)
    for one, other in [
        (alone["teacher"], found["teacher"]),
        *zip(alone["waterfall"], found["waterfall"], strict=True),
    ]:
        assert (one["accuracy"], one["samples"]) == (other["accuracy"], other["samples"])
    assert found["teacher"]["low"] < alone["teacher"]["low"]
    assert found["waterfall"][1]["drop"]["high"] > alone["waterfall"][1]["drop"]["high"]
