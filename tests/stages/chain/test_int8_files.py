"""The int8 files that the export stage writes of a quantized student: parity, fp16 around int8."""

from __future__ import annotations

import onnx
import pytest

from kdpipe.stages.evaluate import network_forward
from kdpipe.stages.export import FLAVOURS, Export, Exported, ExportInputs
from kdpipe.stages.parity import differences
from kdpipe.targets.errors import UsageError


@pytest.fixture(scope="module")
def exported(step, chain) -> dict[bool, Exported]:
    """The files of the chain, with fp32 and with fp16 around the int8 layers."""
    reads = ExportInputs(chain.data, chain.teacher, chain.distill, chain.quantize)
    return {False: chain.export, True: step(Export, reads, samples=32, half=True)}


def test_parity_of_int8_files_is_told_in_steps(exported) -> None:
    """Steps are 1/255 of the range of the outputs; those of float files have none."""
    parities = [files.parity for files in exported.values()]
    for numbers in (parity[f"student.int8.{f}"] for parity in parities for f in FLAVOURS):
        step = numbers["output_range"] / 255
        assert numbers["mean_steps"] == pytest.approx(numbers["mean_difference"] / step)
        assert numbers["max_steps"] == pytest.approx(numbers["max_difference"] / step)
        assert numbers["mean_steps"] <= 1
    assert "mean_steps" not in exported[False].parity["student.fp32"]


def test_parity_counts_each_sample_once(trained) -> None:
    """Where there are fewer than it was asked for."""
    forward = network_forward(trained.teacher.load())

    numbers = differences(forward, forward, trained.data, samples=1000, size=64)

    assert numbers["samples"] == len(trained.data.eval)
    assert (numbers["max_difference"], numbers["agreement"]) == (0, 1)


def test_half_is_for_the_int8_file_of_tensorrt(exported) -> None:
    """Its scales are fp16, its input and output fp32; all other files are the same to the byte."""
    plain, half = exported[False], exported[True]
    changed = [
        path.name
        for path in sorted(plain.folder.glob("*.onnx"))
        if path.read_bytes() != (half.folder / path.name).read_bytes()
    ]
    model = onnx.load(half.student("int8", "trt"))
    scales = {t.data_type for t in model.graph.initializer if "scale" in t.name}

    assert changed == ["student.int8.trt.onnx"]
    assert scales == {onnx.TensorProto.FLOAT16}
    for value in (*model.graph.input, *model.graph.output):
        assert value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT


def test_half_without_int8_is_refused(step, trained) -> None:
    """There would be no file that it changes."""
    reads = ExportInputs(trained.data, trained.teacher, trained.distill, None)

    with pytest.raises(UsageError, match=r"export\.half does nothing"):
        step(Export, reads, half=True)
