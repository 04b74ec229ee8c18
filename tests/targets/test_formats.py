"""Model files that no one compiled: taken as they are, byte for byte, or refused with a reason."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from kdpipe.targets.digest import digest
from kdpipe.targets.errors import DataError, KdpipeError, UsageError
from kdpipe.targets.formats import adopt, facts, merged
from kdpipe.targets.openvino import OpenVino


def product(path: Path) -> Path:
    """A model of one matrix product (n, 8) x (8, 4)."""
    weights = np.random.default_rng(0).standard_normal((8, 4)).astype(np.float32)
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 8])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])
    node = helper.make_node("MatMul", ["x", "w"], ["y"], "dense")
    graph = helper.make_graph([node], "g", [x], [y], [numpy_helper.from_array(weights, "w")])
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return path


@pytest.fixture
def compiled(tmp_path: Path) -> Path:
    """The folder that OpenVINO's target compiles that model into."""
    (tmp_path / "compiled").mkdir()
    return OpenVino().compile(product(tmp_path / "m.onnx"), tmp_path / "compiled")


def test_openvinos_files_become_the_artifact_that_compiling_leaves(
    tmp_path: Path, compiled: Path
) -> None:
    """The same bytes, settings included, so that it is measured the same way."""
    (tmp_path / "adopted").mkdir()
    target, artifact = adopt(compiled / "model.xml", tmp_path / "adopted")

    assert digest(artifact) == digest(compiled)
    assert (target.name, target.precision) == ("openvino", None)
    with target.open(artifact) as session:
        answer = session.run({"x": np.ones((1, 8), np.float32)})
    assert answer["y"].shape == (1, 4)


def test_an_onnx_file_is_opened_where_it_is(tmp_path: Path) -> None:
    """Nothing is copied, and the threads are those asked for."""
    path = product(tmp_path / "m.onnx")
    (tmp_path / "empty").mkdir()
    target, artifact = adopt(path, tmp_path / "empty", threads=3)

    assert artifact == path
    assert (target.name, target.threads) == ("onnxruntime", 3)
    assert not any((tmp_path / "empty").iterdir())


def test_tensors_in_another_file_are_merged(tmp_path: Path) -> None:
    """One file computes the same."""
    path = product(tmp_path / "m.onnx")
    onnx.save_model(
        onnx.load(path), tmp_path / "apart.onnx", save_as_external_data=True,
        location="apart.bin", size_threshold=0,
    )  # fmt: skip
    (tmp_path / "out").mkdir()
    whole = merged(tmp_path / "apart.onnx", tmp_path / "out")
    (tmp_path / "apart.bin").unlink()

    feeds = {"x": np.ones((2, 8), np.float32)}
    answers = []
    for file in (path, whole):
        target, artifact = adopt(file, tmp_path)
        with target.open(artifact) as session:
            answers.append(session.run(feeds)["y"])
    np.testing.assert_array_equal(*answers)


def test_facts(tmp_path: Path, compiled: Path) -> None:
    """Of a file, and of a folder that holds one; of anything else nothing."""
    assert facts(tmp_path / "m.onnx")["opsets"] == {"ai.onnx": 17}
    assert facts(compiled) == facts(compiled / "model.xml")
    assert facts(compiled)["format"] == "OpenVINO IR"
    assert facts(compiled / "model.json") == {}


def test_a_link_is_refused(tmp_path: Path, compiled: Path) -> None:
    """Its content could change between looking and running."""
    (tmp_path / "m.xml").write_bytes((compiled / "model.xml").read_bytes())
    (tmp_path / "m.bin").symlink_to(compiled / "model.bin")

    with pytest.raises(DataError, match="symbolic link"):
        adopt(tmp_path / "m.xml", tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("m.tflite", b"TFL3", UsageError),
        ("m", b"", UsageError),
        ("m.xml", b"", DataError),
        ("m.xml", b"<net/>", DataError),
        ("m.xml", b'<net version="11"/>', DataError),
    ],
)
def test_what_is_no_model(
    tmp_path: Path, name: str, content: bytes, kind: type[KdpipeError]
) -> None:
    """Each is refused before or by its runtime, never with a traceback."""
    (tmp_path / name).write_bytes(content)
    (tmp_path / "out").mkdir()

    with pytest.raises(kind):
        adopt(tmp_path / name, tmp_path / "out")
