"""`kdpipe inspect`: what a file is and what of it runs, read from real files by real runtimes."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

from kdpipe.pipeline.cli import app
from kdpipe.pipeline.inspect import inspect
from kdpipe.pipeline.inspect_lines import render
from kdpipe.targets.digest import digest, sha256_file
from kdpipe.targets.errors import DataError, KdpipeError, UsageError
from kdpipe.targets.openvino import OpenVino


def product(path: Path, data: str | None = None) -> Path:
    """A model of one matrix product (n, 8) x (8, 4), its weights in the file `data` if given."""
    weights = np.random.default_rng(0).standard_normal((8, 4)).astype(np.float32)
    tensor = numpy_helper.from_array(weights, "w")
    if data is not None:
        entry = tensor.external_data.add()
        entry.key, entry.value = "location", data
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        (path.parent / data).write_bytes(weights.tobytes())
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 8])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])
    node = helper.make_node("MatMul", ["x", "w"], ["y"], "dense")
    graph = helper.make_graph([node], "g", [x], [y], [tensor])
    opsets = [helper.make_opsetid("", 17)]
    path.parent.mkdir(exist_ok=True)
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8, producer_name="by hand")
    path.write_bytes(model.SerializeToString())
    return path


def text(found: dict[str, Any]) -> str:
    """What people read."""
    return "\n".join(render(found))


def test_an_onnx_file(tmp_path: Path) -> None:
    """Ends with shapes and types, versions, digest and the audit of the runtime."""
    path = product(tmp_path / "m.onnx")
    found = inspect(str(path))

    assert found["file"] == {
        "path": str(path), "size_bytes": path.stat().st_size, "sha256": sha256_file(path),
    }  # fmt: skip
    assert found["format"] == {
        "format": "ONNX", "ir_version": 8, "opsets": {"ai.onnx": 17}, "producer": "by hand",
        "nodes": 1,
    }  # fmt: skip
    assert found["inputs"] == [{"name": "x", "dtype": "float32", "shape": [None, 8]}]
    assert found["outputs"] == [{"name": "y", "dtype": "float32", "shape": [None, 4]}]
    (layer,) = found["audit"]["layers"]
    assert (layer["precision"], layer["macs"]) == ("fp32", 32)
    assert found["run"] is None
    assert "input     x float32 (any, 8)" in text(found)
    assert "executes  100.0% in fp32 (1 layers); shares of MACs" in text(found)
    json.dumps(found, allow_nan=False)


def test_an_openvino_file(tmp_path: Path) -> None:
    """The XML of the user's with its weights beside it: the same audit as of what kdpipe makes."""
    (tmp_path / "out").mkdir()
    compiled = OpenVino(batch=None).compile(product(tmp_path / "m.onnx"), tmp_path / "out")
    for name in ("model.xml", "model.bin"):
        (compiled / name).rename(tmp_path / name)
    found = inspect(str(tmp_path / "model.xml"))

    assert found["format"]["format"] == "OpenVINO IR"
    assert [Path(part["path"]).name for part in found["beside"]] == ["model.bin"]
    assert found["inputs"][0]["shape"] == [None, 8]
    assert found["audit"]["layers"][0]["precision"] == "fp32"
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "m.onnx", "model.bin", "model.xml", "out",
    ]  # fmt: skip


def test_weights_beside_an_onnx_file(tmp_path: Path) -> None:
    """Data in its own folder is listed with its digest, and read."""
    found = inspect(str(product(tmp_path / "m.onnx", "w.bin")))

    assert found["beside"][0]["sha256"] == sha256_file(tmp_path / "w.bin")
    assert found["runtime"]["error"] is None


@pytest.mark.parametrize("location", ["../w.bin", "sub/../../w.bin"])
def test_data_outside_the_folder_is_refused(tmp_path: Path, location: str) -> None:
    """No runtime gets to see such a file."""
    (tmp_path / "in/sub").mkdir(parents=True)
    path = product(tmp_path / "in/m.onnx", location)

    with pytest.raises(DataError, match="outside its folder"):
        inspect(str(path))


def test_a_pickle_is_never_opened(tmp_path: Path) -> None:
    """Whatever its name says; what it would run is not run."""
    canary = tmp_path / "canary"

    class Bomb:
        def __reduce__(self) -> Any:
            return Path.touch, (canary,)

    for name in ("m.pth", "m.pkl", "m.onnx", "m.xml"):
        (tmp_path / name).write_bytes(pickle.dumps(Bomb()))
        with pytest.raises(KdpipeError):
            inspect(str(tmp_path / name))
    assert not canary.exists()


@pytest.mark.parametrize("content", ["", "<html/>", "<net/>", "not xml"])
def test_what_is_no_openvino_model(tmp_path: Path, content: str) -> None:
    """Is said before the runtime tries."""
    (tmp_path / "m.xml").write_text(content)

    with pytest.raises(DataError, match=r"m\.xml is no"):
        inspect(str(tmp_path / "m.xml"))


def test_an_artifact_of_a_run(workshop: Any, measured: Any) -> None:
    """Where it comes from: config, digests of data and teacher, keys of stages, and the machine."""
    workshop.files["onnxruntime-fp32"] = product(workshop.root / "m.onnx")
    rundir = workshop.run("a", measured("onnxruntime-fp32"))
    found = inspect(f"{rundir.folder}:onnxruntime-fp32")
    run = found["run"]

    assert found["artifact"] == "onnxruntime-fp32"
    assert run["config"] == str(workshop.config)
    assert run["unchanged"]
    assert run["measured_sha256"] == found["file"]["sha256"]
    assert run["inputs"]["teacher"] == "7" * 64
    assert run["files"] == {"data.source.file": "d" * 64}
    assert list(run["stages"]) == [
        "benchmark[onnxruntime-fp32]", "data", "teacher", "compile[onnxruntime-fp32]",
    ]  # fmt: skip
    assert all(key.startswith(step.split("[")[0]) for step, key in run["stages"].items())
    assert run["machine"]["cpu"] == "toy"
    assert "measured  this very file" in text(found)
    path = rundir.folder / "artifacts/onnxruntime-fp32/m.onnx"
    assert inspect(str(path)) == found


def test_an_artifact_that_changed(workshop: Any, measured: Any) -> None:
    """It is inspected as it is now, and the change is told."""
    workshop.files["onnxruntime-fp32"] = product(workshop.root / "m.onnx")
    rundir = workshop.run("a", measured("onnxruntime-fp32"))
    copy = rundir.folder / "artifacts/onnxruntime-fp32/m.onnx"
    model = onnx.load(copy)
    model.producer_name = "somebody else"
    onnx.save(model, copy)
    found = inspect(f"{rundir.folder}:onnxruntime-fp32")

    assert not found["run"]["unchanged"]
    assert found["file"]["sha256"] == digest(copy) != found["run"]["measured_sha256"]
    assert "CHANGED   onnxruntime-fp32: the file is not the one that was measured" in text(found)


def test_what_is_wrong_is_told_as_far_as_it_is_known(workshop: Any, measured: Any) -> None:
    """No diagnosis of a file that is not slower beyond doubt; advice is no failure."""
    workshop.files["onnxruntime-fp32"] = product(workshop.root / "m.onnx")
    advice = {"metric": "size_bytes", "max": 10, "required": False}
    rundir = workshop.run("a", measured("onnxruntime-fp32"), rules=[advice])
    shown = []
    for high in (1.2, 0.9):
        results = rundir.read_results()
        twin = {"ratio": 0.8, "low": 0.7, "high": high, "processes": 10}
        results["artifacts"][0] |= {"diagnosis": "int8 does not pay here", "speedup_fp32": twin}
        rundir.write_results(results)
        shown.append(text(inspect(str(rundir.folder))))

    assert ["diagnosis int8 does not pay" in each for each in shown] == [False, True]
    assert "advisory  size 4,000 bytes (exact) breaks the limit" in shown[0]
    assert "FAIL " not in shown[0]


def test_a_runtime_that_is_not_here(workshop: Any, measured: Any) -> None:
    """What only the runtime knows is null with the reason; the rest is told."""
    found = inspect(f"{workshop.run('a', measured('tensorrt-fp32')).folder}:tensorrt-fp32")

    if found["runtime"]["error"] is None:
        pytest.skip("TensorRT is installed here")
    assert (found["inputs"], found["outputs"], found["audit"]) == (None, None, None)
    assert "cannot open it here: " in text(found)
    assert found["run"]["unchanged"]


def test_a_file_that_its_runtime_refuses(workshop: Any, measured: Any) -> None:
    """Is told, as what is damaged is what one inspects."""
    found = inspect(f"{workshop.run('a', measured('openvino-fp32')).folder}:openvino-fp32")

    assert "is no OpenVINO artifact" in found["runtime"]["error"]


def test_one_thing_at_a_time(workshop: Any, measured: Any) -> None:
    """A run of several artifacts asks which one, with what to type."""
    rundir = workshop.run("a", measured("openvino-fp32"), measured("openvino-bf16"))

    with pytest.raises(UsageError, match="has 2 artifacts") as caught:
        inspect(str(rundir.folder))
    assert f"{rundir.folder}:openvino-bf16" in caught.value.fix
    with pytest.raises(UsageError, match="there is no file"):
        inspect(str(workshop.root / "gone.onnx"))


def test_the_command(tmp_path: Path) -> None:
    """One JSON object with --json; exit 2 for what is no model."""
    path = str(product(tmp_path / "m.onnx"))
    as_json = CliRunner().invoke(app, ["inspect", path, "--json"])
    wrong = CliRunner().invoke(app, ["inspect", __file__])

    assert json.loads(as_json.stdout)["schema"] == "kdpipe.inspect/1"
    assert wrong.exit_code == 2
    assert "give one of these: .onnx, .xml" in wrong.stderr
