"""What the benchmark stage leaves beside scores and latencies: A/A, conditions, around, sweep."""

from __future__ import annotations

import json
import os
import shutil
from typing import Any

import numpy as np
import onnx
import pytest

from kdpipe.stages.base import Work
from kdpipe.stages.benchmark import Benchmark, BenchmarkInputs, Measured
from kdpipe.stages.compile import Compile, Compiled, CompileInputs
from kdpipe.stages.statistics.latency import noise_floor
from kdpipe.targets.base import Target
from kdpipe.targets.errors import UsageError
from kdpipe.targets.openvino import OpenVino

QUICK = {"iterations": 4, "seconds": 0, "warmup_seconds": 0, "memory_processes": 1, "samples": 8}
ID = "onnxruntime-int8"
SWEEP = {"batches": [1, 3], "concurrency": [1, 2], "processes": 2}


class Listener:
    """Keeps what a stage says."""

    def __init__(self) -> None:
        self.facts: dict[str, dict[str, Any]] = {}
        self.warnings: list[str] = []

    def progress(self, done: int, total: int, note: str = "") -> None:
        """Not kept."""

    def fact(self, text: str, **values: Any) -> None:
        """Kept by name."""
        self.facts[text] = values

    def warn(self, text: str) -> None:
        """Kept."""
        self.warnings.append(text)


@pytest.fixture(scope="module")
def measure(chain, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """measure(id, **settings): (what the stage left, what it said)."""

    def run(
        id: str, compiled: Compiled | None = None, target: Target | None = None, **settings: Any
    ) -> tuple[Measured, Listener]:
        root, listener = tmp_path_factory.mktemp("benchmark"), Listener()
        work = Work(root / "out", root / "scratch", listener)
        work.out.mkdir()
        work.scratch.mkdir()
        inputs = BenchmarkInputs(
            chain.data,
            chain.teacher,
            chain.distill,
            chain.quantize,
            chain.export,
            compiled or chain.compiled[id],
            target or chain.targets[id],
        )
        Benchmark.model_validate({**QUICK, **settings}).run(inputs, work)
        return Measured(work.out), listener

    return run


@pytest.fixture(scope="module")
def swept(measure) -> tuple[Measured, Listener]:
    """Three processes of each role, kept on one core, and a small sweep."""
    core = min(os.sched_getaffinity(0))
    return measure(ID, processes=3, cores=[core], sweep=SWEEP)


def test_the_artifact_is_timed_twice(swept) -> None:
    """`again` has processes of its own, and the floor is that of the stored samples."""
    measured, said = swept
    latency = measured.evidence.latency

    assert sorted(latency) == ["again", "artifact", "fp32", "teacher"]
    found = noise_floor(latency["artifact"].processes, latency["again"].processes, 0.95)
    assert measured.meta["noise_floor"]["floor"] == pytest.approx(found.floor)
    assert said.facts["noise floor"] == {"value": pytest.approx(found.floor), "n": 3}


def test_every_start_is_evidence(swept) -> None:
    """Loading and the first call of each process are stored; what is shown is their median."""
    measured, _ = swept

    for role, start in measured.evidence.start.items():
        shown = measured.meta["start"][role]
        for name, each in start.items():
            assert each.shape == (3,)
            assert shown[name] == pytest.approx(np.median(each))
        assert shown["processes"] == 3


def test_what_is_around_the_model_is_timed_apart(swept) -> None:
    """Preprocessing and decision have their own raw samples, of which medians are shown."""
    measured, _ = swept
    around = measured.meta["around"]

    with np.load(measured.folder / "around.npz") as raw:
        for name in ("preprocess_ms", "decision_ms"):
            each = [raw[f"{name}/{n}"] for n in range(3)]
            assert around[name]["median"] == pytest.approx(np.median([np.median(x) for x in each]))
            assert around[name]["calls"] == sum(map(len, each))
            assert around[name]["low"] <= around[name]["median"] <= around[name]["high"]


def test_the_machine_says_how_it_ran(swept) -> None:
    """Evidence carries versions, threads and cores; conditions say what is always so here."""
    measured, _ = swept
    core = min(os.sched_getaffinity(0))

    for machine in (measured.evidence.machine, measured.meta["machine"]):
        assert (machine["threads"], machine["pinned"]) == (1, [core])
        assert machine["onnxruntime"]
    conditions = measured.meta["conditions"]
    assert conditions["facts"].keys() <= {
        *("cpu_s", "other_cpu", "stolen", "throttled", "throttled_s", "hot_cores"),
        *("swapped_pages", "on_battery"),
    }
    assert sorted(conditions["disturbed"]) == ["again", "artifact", "fp32", "teacher"]


def test_outliers_are_counted_and_kept(swept) -> None:
    """Every iteration that was counted is among the stored samples."""
    measured, _ = swept

    for role, found in measured.meta["outliers"].items():
        assert found["of"] == measured.evidence.latency[role].pooled.size
        assert 0 <= found["iterations"] <= found["of"]


def test_the_sweep_says_what_it_rests_on(swept) -> None:
    """Throughput is samples over seconds of the raw file, per process; each load has two."""
    measured, _ = swept
    found = measured.meta["sweep"]

    loads = [(point["batch"], point["concurrency"]) for point in found["points"]]
    assert loads == [(1, 1), (3, 1), (1, 2)]
    assert found["refused"] == []
    with np.load(measured.folder / "sweep.npz") as raw:
        for point in found["points"]:
            name = f"batch_{point['batch']}/concurrency_{point['concurrency']}"
            calls = np.array([raw[f"{name}/latency_ms/{n}"].size for n in range(2)])
            rates = point["batch"] * calls / raw[f"{name}/seconds"]
            assert point["samples_per_s"]["mean"] == pytest.approx(np.exp(np.log(rates).mean()))
            assert (point["calls"], point["processes"]) == (calls.sum(), 2)


def test_few_processes_are_warned_of(swept) -> None:
    """Below ten, the stage says that intervals are wide."""
    _, said = swept

    assert any("3 processes for each model" in warning for warning in said.warnings)


def test_a_compiled_batch_is_not_swept(measure) -> None:
    """OpenVINO compiled for one sample: other batches are left out, with the reason, and said."""
    measured, said = measure("openvino-int8", processes=2, noise_floor=False, sweep=SWEEP)
    found = measured.meta["sweep"]

    assert [(p["batch"], p["concurrency"]) for p in found["points"]] == [(1, 1), (1, 2)]
    assert found["refused"] == [
        {"batch": 3, "reason": "the batch of 1 is compiled into the artifact"}
    ]
    assert any("leaves out batch 3" in warning for warning in said.warnings)
    assert "again" not in measured.evidence.latency
    assert measured.meta["noise_floor"] is None


def test_a_teacher_of_another_batch_is_compared_with_nothing(chain, measure, tmp_path) -> None:
    """Two samples a call of the teacher, one of the artifact: neither times, memory nor energy."""
    compiled = tmp_path / "compiled"
    shutil.copytree(chain.compiled[ID].folder, compiled)
    meta = json.loads((compiled / "compiled.json").read_text())
    meta["roles"]["teacher"]["batch"] = 2
    file = compiled / meta["roles"]["teacher"]["path"]
    model = onnx.load(file)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 2
    onnx.save(model, file)
    (compiled / "compiled.json").write_text(json.dumps(meta))

    measured, said = measure(ID, compiled=Compiled(compiled), processes=2)

    evidence = measured.evidence
    assert sorted(evidence.latency) == ["again", "artifact", "fp32"]
    assert sorted(evidence.memory) == ["artifact", "peak"]
    assert "teacher" not in measured.meta["energy"]
    assert "teacher_memory_bytes" not in evidence.values
    (warning,) = [text for text in said.warnings if "2 samples a call" in text]
    assert "the teacher takes 2 samples a call and the artifact 1" in warning


def test_a_compiled_batch_gets_the_samples_it_takes(chain, step, measure) -> None:
    """OpenVINO compiled for 12 samples, with 8 to cycle over: calls are whole batches."""
    target = OpenVino(precision="int8", batch=12)
    compiled = step(Compile, CompileInputs(chain.export, target))

    measured, _ = measure(ID, compiled=compiled, target=target, processes=2, noise_floor=False)

    assert sorted(measured.evidence.latency) == ["artifact", "fp32", "teacher"]
    assert measured.meta["around"]["preprocess_ms"]["processes"] == 2


def test_processes_that_do_not_settle_are_told(measure) -> None:
    """A warm-up too short for a second window settles nothing; one that was not asked for is no
    failure."""
    measured, said = measure(ID, processes=2, noise_floor=False, warmup_seconds=1e-7)

    assert measured.meta["start"]["artifact"]["steady_processes"] == 0
    assert any("6 of 6 processes did not settle" in warning for warning in said.warnings)


def test_cores_that_are_not_there_are_refused_before_anything_runs() -> None:
    """The error names those that this process may use."""
    with pytest.raises(UsageError, match="cannot be kept on 9999") as caught:
        Benchmark(cores=[min(os.sched_getaffinity(0)), 9999]).check()

    assert str(min(os.sched_getaffinity(0))) in caught.value.found


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"processes": 1}, "greater than or equal to 2"),
        ({"cores": []}, "at least 1 item"),
        ({"cores": [0, 0]}, "named twice"),
        ({"sweep": {"batches": [1, 1]}}, "twice"),
        ({"sweep": {"batches": [], "concurrency": []}}, "nothing to sweep"),
    ],
)
def test_settings_that_say_nothing_are_refused(settings: dict[str, Any], said: str) -> None:
    """One process has no spread, no core runs nothing, and a load is measured once."""
    with pytest.raises(ValueError, match=said):
        Benchmark.model_validate(settings)
