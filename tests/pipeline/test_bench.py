"""`kdpipe bench` on real files: models are compared only where calls do equal work."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from typer.testing import CliRunner

from kdpipe.pipeline import loads
from kdpipe.pipeline.bench import bench
from kdpipe.pipeline.bench_lines import render
from kdpipe.pipeline.cli import app
from kdpipe.targets.digest import digest
from kdpipe.targets.errors import DataError, UsageError
from kdpipe.targets.measure import Job
from kdpipe.targets.onnxruntime import OnnxRuntime
from kdpipe.targets.openvino import OpenVino

EFFORT: dict[str, Any] = {
    "inputs": None,
    "processes": 2,
    "iterations": 1,
    "seconds": 0.0,
    "threads": 1,
    "noise_floor": False,
}


def relu(path: Path, batch: int | str) -> Path:
    """A model of one operator, for calls of `batch` samples of 4 numbers."""
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, 4]) for name in ("x", "y")
    ]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", ends[:1], ends[1:])
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return path


def test_speedup_of_equal_work_only(tmp_path: Path) -> None:
    """A call of one sample is compared with no call of two; a reason stands in its place."""
    models = {"model": relu(tmp_path / "a.onnx", 2), "against": relu(tmp_path / "b.onnx", "n")}
    measured = bench(models, "onnxruntime", **EFFORT)

    assert "speedup" not in measured
    assert measured["reason"] == "model takes 2 samples a call and against 1"
    assert f"no speedup: {measured['reason']}" in list(render(measured))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Two free models in turns, the noise floor, two batches and two callers."""
    folder = tmp_path_factory.mktemp("whole")
    models = {"model": relu(folder / "a.onnx", "n"), "against": relu(folder / "b.onnx", "n")}
    load = {"batches": [1, 40], "concurrency": [2], "noise_floor": True}
    return bench(models, "onnxruntime", **EFFORT | load)


def test_every_number_has_its_spread_and_n(whole: dict[str, Any]) -> None:
    """Each line with a number in ms or bytes also has bounds, or says why there are none."""
    lines = list(render(whole))

    backed = [line for line in lines if " ms " in line or "memory" in line]
    assert len(backed) == 2 * 8 + 3
    for line in backed:
        assert " to " in line or "too few for bounds" in line
    assert lines[-1] == "bounds are one-sided, 95 %"
    for line in (line for line in lines if line.startswith("  mean")):
        assert "2 processes" in line
        assert "iterations of 1 sample" in line


def test_the_noise_floor_is_the_model_against_itself(whole: dict[str, Any]) -> None:
    """It reaches as far as the bounds of that ratio, and a ratio within it is a tie."""
    floor = whole["noise_floor"]

    assert floor["processes"] == 2
    assert floor["fraction"] == pytest.approx(max(floor["high"], 1 / floor["low"]) - 1)
    factor = max(whole["speedup"]["ratio"], 1 / whole["speedup"]["ratio"])
    (line,) = (line for line in render(whole) if line.startswith("model is "))
    assert " as fast as against (" in line
    assert ("a tie" in line) == (factor - 1 <= floor["fraction"])
    unknown = "\n".join(render({**whole, "noise_floor": {**floor, "fraction": None}}))
    assert "a tie" not in unknown
    assert "the noise floor is not known" in unknown


def test_load(whole: dict[str, Any]) -> None:
    """Batches and callers each get a row of samples per second, with n and bounds."""
    rows = whole["sweep"]

    assert [(row["batch"], row["concurrency"]) for row in rows] == [(1, 1), (40, 1), (1, 2)]
    assert all(row["samples_per_second"]["median"] > 0 for row in rows)
    assert all(row["processes"] == 2 and row["calls"] >= 2 for row in rows)
    text = "\n".join(render(whole))
    assert "batch 40, 1 at once: " in text
    assert " samples/s (" in text


def test_a_fixed_batch_says_why_there_is_no_other(tmp_path: Path) -> None:
    """A row without numbers, and with the reason."""
    np.save(tmp_path / "x.npy", np.zeros((40, 4), np.float32))
    job = Job(OnnxRuntime(), relu(tmp_path / "a.onnx", 1), tmp_path / "x.npy")
    rows = loads.sweep(job, [40], [], processes=2, iterations=1, seconds=0.0)

    reason = "the batch of 1 is compiled into the artifact"
    assert rows == [{"batch": 40, "reason": reason}]
    assert list(loads.render(rows)) == [f"batch 40: not measured, {reason}"]


def test_openvinos_own_file(tmp_path: Path) -> None:
    """Its `.xml` needs no --target; it is the file that OpenVINO's own compiling leaves."""
    (tmp_path / "out").mkdir()
    out = OpenVino().compile(relu(tmp_path / "a.onnx", "n"), tmp_path / "out")
    for name in ("model.xml", "model.bin"):
        shutil.copy(out / name, tmp_path / name)
    measured = bench({"model": tmp_path / "model.xml"}, None, **EFFORT)

    assert measured["target"] == "openvino"
    assert measured["models"]["model"]["sha256"] == digest(out)


@pytest.mark.parametrize(
    ("model", "target", "said"),
    [
        ("a.onnx", "tvm", "the targets are onnxruntime, openvino, tensorrt"),
        ("a.onnx", None, "--target, one of: onnxruntime, openvino"),
        ("gone.onnx", "onnxruntime", "there is no file gone.onnx"),
        ("a.txt", None, "give one of these: .onnx, .xml"),
        (".", None, "is no run and no artifact of one"),
    ],
)
def test_refusals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, target: str | None, said: str
) -> None:
    """What cannot be measured is refused with what to type."""
    monkeypatch.chdir(tmp_path)
    relu(tmp_path / "a.onnx", 1)
    (tmp_path / "a.txt").touch()

    with pytest.raises(UsageError) as caught:
        bench({"model": model}, target, **EFFORT)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.zeros((8, 5), np.float32), r"does not fit the input 'x'"),
        (np.zeros((8, 4)), r"does not fit the input 'x'"),
        (np.zeros(4, np.float32), r"does not fit the input 'x'"),
        (np.zeros((2, 4), np.float32), "has 2 samples, and a call takes 3"),
        (np.full((8, 4), np.nan, np.float32), "not finite"),
        (np.array([{}]), r"is no \.npy file of plain numbers"),
    ],
    ids=["shape", "type", "no batch", "too few", "NaN", "pickle"],
)
def test_inputs_that_the_model_cannot_take(
    array: np.ndarray, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are wrong data (exit 2), told before any process starts, and never unpickled."""
    monkeypatch.setattr("kdpipe.pipeline.bench.time_processes", None)
    np.save(tmp_path / "x.npy", array, allow_pickle=True)
    models = {"model": relu(tmp_path / "a.onnx", "n")}

    with pytest.raises(DataError, match=said):
        bench(models, "onnxruntime", **EFFORT | {"inputs": tmp_path / "x.npy", "batches": [3]})


def test_data_outside_the_folder_is_not_read(tmp_path: Path) -> None:
    """A model that points there is refused before any runtime sees it."""
    path = relu(tmp_path / "a.onnx", 1)
    model = onnx.load(path)
    tensor = model.graph.initializer.add()
    tensor.name, tensor.data_type, tensor.data_location = (
        "w",
        TensorProto.FLOAT,
        TensorProto.EXTERNAL,
    )
    tensor.dims.append(1)
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "../../etc/passwd"
    path.write_bytes(model.SerializeToString())

    with pytest.raises(DataError, match="outside its folder"):
        bench({"model": path}, "onnxruntime", **EFFORT)


def test_the_command(tmp_path: Path) -> None:
    """--json is one object with the machine and what disturbed it."""
    path = str(relu(tmp_path / "a.onnx", 1))
    arguments = ["bench", path, "--target=onnxruntime", "--processes=2", "--iterations=1"]
    arguments += ["--seconds=0"]
    answer = CliRunner().invoke(app, [*arguments, "--no-noise-floor", "--json"])
    found = json.loads(answer.stdout)

    assert answer.exit_code == 0
    assert found["noise_floor"] is None
    assert found["machine"]["cores"] >= 1
    assert isinstance(found["disturbances"], list)
