"""Scoring compiled files in a real runtime, on real digits."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from kdpipe.stages.base import Silent, Work
from kdpipe.stages.compile import Compiled
from kdpipe.stages.data import Data, DataInputs
from kdpipe.stages.dataset import Dataset
from kdpipe.stages.quality.robustness import Robustness, chosen
from kdpipe.stages.quality.scored import score
from kdpipe.stages.tasks.classification import Classification
from kdpipe.targets.onnxruntime import OnnxRuntime

TARGET = OnnxRuntime(name="onnxruntime", precision="fp32")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """90 real digits to judge on."""
    folder = tmp_path_factory.mktemp("data")
    stage = Data(source="digits", image_size=8, max_train=300, max_eval=90)
    stage.run(DataInputs(Classification()), Work(folder, folder, Silent()))
    return Dataset(folder)


def linear(path: Path, weights: np.ndarray, offset: np.ndarray) -> Path:
    """An ONNX file of one layer: images (N, 1, 8, 8) -> logits (N, 10)."""
    flatten = helper.make_node("Flatten", ["x"], ["flat"])
    gemm = helper.make_node("Gemm", ["flat", "w", "b"], ["z"])
    graph = helper.make_graph(
        [flatten, gemm],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1, 8, 8])],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, ["n", 10])],
        [
            numpy_helper.from_array(weights.astype(np.float32), "w"),
            numpy_helper.from_array(offset.astype(np.float32), "b"),
        ],
    )
    opset = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), path)
    return path


@pytest.fixture(scope="module")
def compiled(data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    """Nearest class means as the teacher, and with rounded weights as the artifact."""
    folder = tmp_path_factory.mktemp("compiled")
    x = data.train.inputs(np.arange(len(data.train))).reshape(len(data.train), -1)
    means = np.stack([x[data.train.labels == number].mean(axis=0) for number in range(10)])
    roles = {}
    for role, weights in (("teacher", means), ("artifact", np.round(means))):
        (folder / role).mkdir()
        onnx_file = linear(folder / f"{role}.onnx", weights.T, -(weights**2).sum(axis=1) / 2)
        path = TARGET.compile(onnx_file, folder / role)
        roles[role] = {"path": path.relative_to(folder).as_posix()}
    (folder / "compiled.json").write_text(json.dumps({"id": "a", "roles": roles}))
    return Compiled(folder)


def test_the_file_itself_is_scored(data: Dataset, compiled: Compiled) -> None:
    """Its predictions on every eval sample, with probabilities; nothing is corrupted unasked."""
    found = score(TARGET, compiled, data)

    with TARGET.open(compiled.path("artifact")) as session:
        (logits,) = session.run({"x": data.eval.inputs(np.arange(90))}).values()
    assert np.array_equal(found.outcome.prediction, logits.argmax(axis=1))
    assert found.outcome.mean > 0.7
    assert found.outcome.probability is not None
    assert found.corrupted == {}


def test_both_files_see_the_same_corrupted_pictures(data: Dataset, compiled: Compiled) -> None:
    """In one runtime; the clean scores do not depend on it."""
    settings = Robustness(corruptions=("gaussian_noise", "contrast"), severities=(1,), samples=50)

    found = score(TARGET, compiled, data, settings)

    assert list(found.corrupted) == ["gaussian_noise/1", "contrast/1"]
    own, teacher = found.corrupted["gaussian_noise/1"]
    clean = found.outcome.score[chosen(90, 50)]
    assert own.shape == teacher.shape == clean.shape
    assert not np.array_equal(own, teacher)
    assert abs(own.mean() - clean.mean()) < 0.2
    assert np.array_equal(score(TARGET, compiled, data).outcome.score, found.outcome.score)
