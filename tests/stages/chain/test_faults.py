"""Faults planted into a real chain: each is caught by the stage that can see it, and named."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from safetensors.numpy import load_file, save_file

from kdpipe.stages.base import Silent, Work
from kdpipe.stages.compile import Compile, CompileInputs
from kdpipe.stages.export import Export, Exported, ExportInputs
from kdpipe.stages.teacher import Teacher, TeacherInputs
from kdpipe.targets.errors import DataError, StageError


def perturbed(file: Path, copy: Path, share: float) -> Path:
    """A copy of an ONNX file with one number of one convolution changed by `share` of the largest.

    It is a float weight; the int8 files are left alone.
    """
    model = onnx.load(file)
    (name,) = [n.input[1] for n in model.graph.node if n.op_type == "Conv"][:1]
    (tensor,) = [t for t in model.graph.initializer if t.name == name]
    values = numpy_helper.to_array(tensor).copy()
    values.flat[0] += share * np.abs(values).max()
    tensor.CopyFrom(numpy_helper.from_array(values, name))
    onnx.save(model, copy)
    return copy


def prove(chain, path: Path) -> dict[str, float]:
    export = Export(samples=16)
    return export._prove("student.fp32", chain.distill.load(), path, chain.data)


def test_a_wrong_onnx_file_is_caught(chain, tmp_path: Path) -> None:
    """One weight that is off by its own size: the file is named, with difference and limit."""
    wrong = perturbed(chain.export.student("fp32", "cpu"), tmp_path / "student.fp32.onnx", 1.0)

    with pytest.raises(StageError, match=r"student\.fp32\.onnx computes something else") as error:
        prove(chain, wrong)

    assert "on 16 samples; allowed 1e-03" in error.value.found
    assert "export.tolerance" in error.value.fix


def test_a_right_onnx_file_is_not(chain, tmp_path: Path) -> None:
    """The same path through the file as it was exported raises nothing."""
    right = perturbed(chain.export.student("fp32", "cpu"), tmp_path / "student.fp32.onnx", 0.0)

    assert prove(chain, right)["max_difference"] < 1e-4


def test_an_output_that_is_not_a_number_is_caught(chain, tmp_path: Path) -> None:
    """NaN compares with nothing, and passes no tolerance."""
    wrong = perturbed(chain.export.student("fp32", "cpu"), tmp_path / "nan.onnx", np.nan)

    with pytest.raises(StageError, match="difference nan"):
        prove(chain, wrong)


@pytest.mark.parametrize("id", ["onnxruntime-int8", "openvino-int8"])
def test_an_int8_file_without_int8_kernels_is_refused(chain, step, tmp_path: Path, id: str) -> None:
    """A float network under the name of an int8 file does not get through any runtime."""
    copy = Path(shutil.copytree(chain.export.folder, tmp_path / "export"))
    shutil.copyfile(copy / "student.fp32.onnx", copy / "student.int8.cpu.onnx")

    with pytest.raises(StageError, match=f"{id}: the runtime runs none of the quantized") as error:
        step(Compile, CompileInputs(Exported(copy), chain.targets[id]))

    assert error.value.found.startswith("in float: stage1.0.body.0.conv (")
    assert "precision: fp32" in error.value.fix


def test_a_damaged_onnx_file_is_refused(chain, step, tmp_path: Path) -> None:
    """Half a file is an error of the compile stage, and leaves no compiled.json."""
    copy = Path(shutil.copytree(chain.export.folder, tmp_path / "export"))
    file = copy / "student.fp32.onnx"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    work = Work(tmp_path / "out", tmp_path, Silent())
    work.out.mkdir()

    with pytest.raises(StageError, match="ONNX Runtime refuses"):
        Compile().run(CompileInputs(Exported(copy), chain.targets["onnxruntime-fp32"]), work)

    assert not (work.out / "compiled.json").exists()


def test_weights_of_another_network_are_refused(chain, step) -> None:
    """The student's weights do not fit the teacher, and are not loaded in part."""
    weights = chain.distill.folder / "weights.safetensors"

    with pytest.raises(DataError, match="do not fit the model") as error:
        step(
            Teacher,
            TeacherInputs(chain.data),
            model="resnet8",
            arguments={"width": 0.5},
            weights=weights,
        )

    assert "of another shape" in error.value.found


def test_missing_weights_are_found_before_anything_runs(tmp_path: Path) -> None:
    """`check()` names the path."""
    teacher = Teacher.model_validate({"model": "resnet8", "weights": tmp_path / "gone.pth"})

    with pytest.raises(DataError, match=r"there is no file .*gone\.pth"):
        teacher.check()


@pytest.fixture
def scattered(chain, tmp_path: Path) -> Path:
    """The teacher as an ONNX file with another output before its logits, and weights beside it."""
    model = onnx.load(chain.export.teacher)
    (logits,) = model.graph.output
    first = next(node.output[0] for node in model.graph.node if node.op_type == "Conv")
    shape = ["batch", None, None, None]
    extra = onnx.helper.make_tensor_value_info(first, onnx.TensorProto.FLOAT, shape)
    model.graph.ClearField("output")
    model.graph.output.extend([extra, logits])
    path = tmp_path / "user" / "teacher.onnx"
    path.parent.mkdir()
    onnx.save(model, path, save_as_external_data=True, location="teacher.data", size_threshold=256)
    return path


def test_a_black_box_of_several_files_and_outputs_is_exported_as_one(
    chain, step, scattered
) -> None:
    """Weights beside the file come along, and the output is the one that the user named."""
    output = onnx.load(scattered, load_external_data=False).graph.output[1].name
    box = step(
        Teacher, TeacherInputs(chain.data), model=str(scattered), arguments={"output": output}
    )

    exported = step(Export, ExportInputs(chain.data, box, None, None), samples=8)

    assert (scattered.parent / "teacher.data").stat().st_size > 10_000
    assert np.array_equal(box.outcome.prediction, chain.teacher.outcome.prediction)
    assert np.array_equal(exported.outcomes["fp32"].prediction, box.outcome.prediction)
    assert exported.parity["teacher"]["max_difference"] == 0
    assert [value.name for value in onnx.load(exported.teacher).graph.output] == [output]


def test_a_teacher_that_learned_nothing_is_refused(chain, tmp_path: Path) -> None:
    """Weights whose head is all zeros give one answer; artifacts would agree with it perfectly."""
    weights = load_file(chain.teacher.folder / "weights.safetensors")
    for name in ("head.weight", "head.bias"):
        weights[name] = np.zeros_like(weights[name])
    save_file(weights, tmp_path / "zero.safetensors")
    settings = {"model": "resnet8", "arguments": {"width": 0.5}}
    teacher = Teacher(**settings, weights=tmp_path / "zero.safetensors")

    with pytest.raises(StageError, match="one answer for every eval sample") as error:
        teacher.run(TeacherInputs(chain.data), Work(tmp_path, tmp_path, Silent()))

    assert "0 for all 100 samples" in error.value.found
    assert "data.mean" in error.value.fix
