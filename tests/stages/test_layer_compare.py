"""Layers of two files side by side: what is compared, by which numbers, and what is found."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
from torch.nn import functional as F

from kdpipe.stages.dataset import Split
from kdpipe.stages.layer_compare import compare_compiled, compare_files
from kdpipe.stages.layer_snr import BOUND, LEAST, Comparison
from kdpipe.targets.base import Target
from kdpipe.targets.device.preprocess import Preprocess
from kdpipe.targets.errors import StageError
from kdpipe.targets.onnxruntime import OnnxRuntime
from kdpipe.targets.openvino import OpenVino

Weights = dict[str, NDArray[np.float32]]


@pytest.fixture(scope="module")
def split() -> Split:
    """Ten pictures of noise, (10, 3, 8, 8)."""
    images = np.random.default_rng(0).integers(0, 256, (10, 8, 8, 3)).astype(np.uint8)
    preprocess = Preprocess(8, 8, (0.5,) * 3, (0.25,) * 3)
    ids = tuple(map(str, range(10)))
    return Split("eval", images, np.arange(10), preprocess, ids)


def outputs(weights: Weights, x: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    """What the layers give, by torch."""
    w = {name: torch.from_numpy(values) for name, values in weights.items()}
    stem = F.conv2d(torch.from_numpy(x), w["w1"], w["b1"], padding=1)
    block = F.conv2d(stem.relu(), w["w2"], padding=1)
    head = (block + stem.relu()).relu().mean((2, 3)) @ w["w3"] + w["b3"]
    return {"stem": stem.numpy(), "block": block.numpy(), "head": head.numpy()}


Save = Callable[..., Path]


@pytest.fixture
def save(tmp_path: Path, network: Callable[..., ModelProto]) -> Save:
    """save("name", weights): the network as a file."""

    def write(name: str, weights: Weights, batch: int | str = "batch") -> Path:
        path = tmp_path / f"{name}.onnx"
        onnx.save(network(weights, batch), path)
        return path

    return write


@pytest.fixture
def int8(save: Save, weights: Weights, split: Split) -> Path:
    """The network in int8, calibrated with the very samples it is judged on."""

    class Reader(CalibrationDataReader):
        left = iter([{"input": split.inputs(np.arange(10))}])

        def get_next(self) -> dict[str, NDArray[np.float32]] | None:
            return next(self.left, None)

    path = save("fp32", weights)
    out = path.with_name("int8.onnx")
    quantize_static(
        path,
        out,
        Reader(),
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    return out


def levels(comparison: Comparison) -> dict[str, float]:
    return {row.layer: row.level for row in comparison.rows}


# --- the numbers ----------------------------------------------------------------------------------


def test_rows_are_what_the_formula_says(save: Save, weights: Weights, split: Split) -> None:
    """Power over power of the error, summed over all samples, by torch; the spread by sample."""
    other = {**weights, "w2": weights["w2"] + np.float32(0.02)}
    x = split.inputs(np.arange(10))
    exact, noisy = outputs(weights, x), outputs(other, x)

    found = compare_files(save("one", weights), save("other", other), split)

    assert [row.layer for row in found.rows] == ["stem", "block", "head"]
    assert found.rows[0].snr_db is None
    for row in found.rows[1:]:
        error = np.square(noisy[row.layer] - exact[row.layer]).reshape(10, -1).sum(1)
        signal = np.square(exact[row.layer]).reshape(10, -1).sum(1)
        each = np.quantile(10 * np.log10(signal / error), [0.1, 0.9])
        expected = 10 * np.log10(signal.sum() / error.sum())
        assert row.snr_db == pytest.approx(expected, abs=0.01)
        assert (row.low_db, row.high_db) == pytest.approx(tuple(each), abs=0.01)
        assert row.power == pytest.approx(np.square(exact[row.layer]).mean(), rel=1e-4)
        assert row.samples == 10
    assert found.output is not None
    assert found.output.snr_db == pytest.approx(found.rows[-1].snr_db)


def test_the_same_file_has_no_noise(save: Save, weights: Weights, split: Split) -> None:
    """Nothing is at fault, and the words say so without a number that was not measured."""
    path = save("one", weights)
    found = compare_files(path, path, split)

    assert [row.snr_db for row in found.rows] == [None, None, None]
    assert found.first is None
    assert "no noise in 10 samples" in found.where()


def test_a_fixed_batch_is_filled_and_the_filling_not_counted(
    save: Save, weights: Weights, split: Split
) -> None:
    """Ten samples through a batch of four give the numbers of ten samples."""
    other = {**weights, "w2": weights["w2"] * np.float32(1.1)}
    free = compare_files(save("a", weights), save("b", other), split)
    fixed = compare_files(save("c", weights, 4), save("d", other, 4), split)

    assert {row.samples for row in fixed.rows} == {10}
    assert levels(fixed) == pytest.approx(levels(free), abs=1e-3)


# --- faults ---------------------------------------------------------------------------------------


def test_sound_int8_has_no_fault(int8: Path, split: Split) -> None:
    """Every layer stays above the bound, and the words name the worst one with its numbers."""
    found = compare_files(int8.with_name("fp32.onnx"), int8, split)

    assert set(levels(found)) == {"stem", "block", "head"}
    assert min(levels(found).values()) > BOUND + 10
    assert max(levels(found).values()) < 60
    assert found.first is None
    assert found.where().startswith("at no single layer (the worst is ")


@pytest.mark.parametrize(("layer", "place"), [("stem", 0), ("block", 1), ("head", 2)])
def test_a_wrong_scale_is_found_where_it_is(
    int8: Path, split: Split, tmp_path: Path, layer: str, place: int
) -> None:
    """Eight times the scale of one int8 weight: layers before it are as they were, it is first."""
    fp32, model = int8.with_name("fp32.onnx"), onnx.load(int8)
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    (node,) = [n for n in model.graph.node if n.name.startswith(layer) and n.op_type in _PRODUCTS]
    (made,) = [n for n in model.graph.node if node.input[1] in n.output]
    scale = numpy_helper.to_array(stored[made.input[1]]) * np.float32(8)
    stored[made.input[1]].CopyFrom(numpy_helper.from_array(scale, made.input[1]))
    onnx.save(model, tmp_path / "wrong.onnx")
    sound = levels(compare_files(fp32, int8, split))

    found = compare_files(fp32, tmp_path / "wrong.onnx", split)

    assert found.first is not None
    assert found.first.layer == layer
    assert found.where().startswith(f"first at layer {layer} (signal to noise ")
    before = list(sound)[:place]
    assert {name: levels(found)[name] for name in before} == {name: sound[name] for name in before}


_PRODUCTS = ("Conv", "MatMul")


def test_not_a_number_is_at_fault(save: Save, weights: Weights, split: Split) -> None:
    """A layer that gives NaN for one sample has nothing of its signal left; JSON can hold it."""
    broken = {**weights, "b1": weights["b1"].copy()}
    broken["b1"][3] = np.nan

    found = compare_files(save("one", weights), save("nan", broken), split)

    assert found.first is not None
    assert (found.first.layer, found.first.snr_db) == ("stem", LEAST)
    told = found.to_dict()
    assert json.loads(json.dumps(told, allow_nan=False)) == json.loads(json.dumps(told))
    assert "nothing of the signal is left" in told["where"]


def test_a_reference_that_is_not_finite_is_not_compared(
    save: Save, weights: Weights, split: Split
) -> None:
    """It is no fault of the file; the layer and its reason are listed."""
    broken = {**weights, "b3": np.full(5, np.inf, np.float32)}

    found = compare_files(save("inf", broken), save("one", weights), split)

    assert set(levels(found)) == {"stem", "block"}
    assert found.not_compared == {"head": "it is not finite in the reference"}
    assert found.output is None


def test_layers_of_one_file_only_do_not_break_the_others(
    save: Save, weights: Weights, split: Split
) -> None:
    """A layer that was renamed, or changed on purpose, is left out and said to be."""
    other = onnx.load(save("other", weights))
    other.graph.node[7].name = "new head"
    path = save("other", weights)
    onnx.save(other, path)

    found = compare_files(save("one", weights), path, split, changed=["block"])

    assert set(levels(found)) == {"stem"}
    assert found.not_compared == {
        "block": "changed on purpose",
        "head": "only in the reference",
        "new head": "only in the file",
    }


def test_layers_of_another_shape_are_not_compared(
    save: Save, weights: Weights, split: Split
) -> None:
    """Of a block with other channels nothing can be said; of the layers before it, all."""
    narrow = {
        **weights,
        "w1": weights["w1"][:1],
        "b1": weights["b1"][:1],
        "w2": weights["w2"][:, :1],
    }

    found = compare_files(save("one", weights), save("narrow", narrow), split)

    assert set(levels(found)) == {"block", "head"}
    assert found.not_compared == {"stem": "its output is not there, or has another shape"}


# --- compiled -------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [OnnxRuntime(precision="fp32"), OpenVino(precision="fp32")])
def test_a_sound_target_agrees_with_the_file(
    save: Save, weights: Weights, split: Split, tmp_path: Path, target: Target
) -> None:
    """In float to the last bits, also where the batch is compiled in."""
    path = save("one", weights)
    artifact = target.compile(path, tmp_path)

    found = compare_compiled(path, target, artifact, split)

    assert set(levels(found)) == {"stem", "block", "head"}
    assert min(levels(found).values()) > 100
    assert found.first is None


@pytest.mark.parametrize("target", [OnnxRuntime(precision="int8"), OpenVino(precision="int8")])
def test_int8_kernels_are_near_the_file(
    int8: Path, split: Split, tmp_path: Path, target: Target
) -> None:
    """They add up in another order, and round some values to the step beside."""
    folder = tmp_path / "artifact"
    folder.mkdir()

    found = compare_compiled(int8, target, target.compile(int8, folder), split)

    assert set(levels(found)) == {"stem", "block", "head"}
    assert min(levels(found).values()) > BOUND + 10
    assert found.first is None


class Doubling(OnnxRuntime):
    """Compiles another network: the weights of the block are twice as large."""

    def compile(self, onnx_file: Path, folder: Path) -> Path:
        model = onnx.load(onnx_file)
        (tensor,) = [t for t in model.graph.initializer if t.name == "w2"]
        tensor.CopyFrom(numpy_helper.from_array(2 * numpy_helper.to_array(tensor), "w2"))
        onnx.save(model, folder.with_suffix(".onnx"))
        return super().compile(folder.with_suffix(".onnx"), folder)


def test_a_target_that_compiles_something_else_is_found_out(
    save: Save, weights: Weights, split: Split, tmp_path: Path
) -> None:
    """The layer is named that it changed, with what was still right before it."""
    path, folder = save("one", weights), tmp_path / "artifact"
    folder.mkdir()
    target = Doubling(precision="fp32")

    found = compare_compiled(path, target, target.compile(path, folder), split)

    assert found.first is not None
    assert found.first.layer == "block"
    assert found.first.snr_db == pytest.approx(0, abs=0.01)  # the error is as large as the signal
    assert levels(found)["stem"] > 100


def test_the_artifact_that_ships_is_compared_too(
    save: Save, weights: Weights, split: Split, tmp_path: Path
) -> None:
    """Exposed layers are sound while the file that ships is another one: the output tells."""
    path, folder = save("one", weights), tmp_path / "artifact"
    folder.mkdir()
    shipped = Doubling(precision="fp32").compile(path, folder)

    found = compare_compiled(path, OnnxRuntime(precision="fp32"), shipped, split)

    assert found.first is None
    assert found.output is not None
    assert found.output.level < BOUND
    assert found.where().startswith("behind its last layer or by fusing layers")


def test_a_file_that_no_runtime_takes_is_an_error(
    save: Save, weights: Weights, split: Split
) -> None:
    """Whoever asks decides what to do about it."""
    path = save("one", weights)
    other = onnx.load(path)
    other.graph.node[1].op_type = "NoSuchOperator"
    onnx.save(other, path.with_name("other.onnx"))

    with pytest.raises(StageError, match="ONNX Runtime refuses"):
        compare_files(path, path.with_name("other.onnx"), split)
