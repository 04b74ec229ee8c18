"""An int8 file that its runtime cannot fuse is refused, with culprits and a remedy that works."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, ClassVar

import pytest

from kdpipe.pipeline.conclusion import conclude
from kdpipe.stages.benchmark import Benchmark, BenchmarkInputs
from kdpipe.stages.compile import Compile, CompileInputs
from kdpipe.stages.distill.stage import Distill, DistillInputs
from kdpipe.stages.export import Export, ExportInputs
from kdpipe.stages.gate.judge import judge
from kdpipe.stages.gate.rules import Rule
from kdpipe.stages.quantize.stage import Quantize, QuantizeInputs
from kdpipe.stages.student import Student, StudentInputs
from kdpipe.targets.errors import StageError
from kdpipe.targets.onnxruntime import OnnxRuntime
from kdpipe.targets.openvino import OpenVino

SMOOTH = """
from torch import nn


def smooth(classes: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, 2, 1), nn.SiLU(), nn.Conv2d(8, 16, 3, 1, 1), nn.SiLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, classes),
    )
"""
SHARE = Rule.model_validate({"metric": "int8_fraction", "min": 0.5})
TARGET = OnnxRuntime(precision="int8")


class Signed(OnnxRuntime):
    """ONNX Runtime that is given the file made for TensorRT: int8 with zero point 0."""

    flavour: ClassVar[str] = "trt"


QUICK = {"processes": 2, "memory_processes": 1, "iterations": 2, "seconds": 0, "warmup_seconds": 0}


@pytest.fixture(scope="module")
def ship(chain, step, recipe, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """ship(substitute): (what the gate says of the student in int8, the student)."""
    file: Path = tmp_path_factory.mktemp("model") / "net.py"
    file.write_text(SMOOTH)

    def run(substitute: dict[str, str]) -> Any:
        data, teacher = chain.data, chain.teacher
        student = step(
            Student, StudentInputs(data, teacher), model=f"{file}:smooth", substitute=substitute
        )
        settings = {**recipe, "epochs": 1, "control": None}
        distill = step(Distill, DistillInputs(data, teacher, student), **settings)
        quantize = step(Quantize, QuantizeInputs(data, teacher, distill), mode="ptq")
        export = step(Export, ExportInputs(data, teacher, distill, quantize), samples=8)
        compiled = step(Compile, CompileInputs(export, TARGET))
        benchmark = BenchmarkInputs(data, teacher, distill, quantize, export, compiled, TARGET)
        return judge([SHARE], [step(Benchmark, benchmark, **QUICK).evidence]), distill

    return run


def test_a_silu_student_fails_and_its_remedy_passes(ship) -> None:
    """The reason, which is the last line too, names the layers, their shares and what to type;
    doing so gives a student, rebuilt from the store with its ReLUs, that runs in int8."""
    verdicts, _ = ship({})
    end = conclude([verdict.to_dict() for verdict in verdicts], {}, rules=1)

    assert end.exit_code == 3
    for said in (
        "in float: 2 (93.9 % of the MACs, before silu), 0 (5.9 % of the MACs, before silu)",
        "onnxruntime does not fuse silu: use `student.substitute: {silu: relu}` and distil again",
        "`quantize.before_activations: true`",
        "the target openvino",
    ):
        assert said in end.line

    verdicts, distilled = ship({"silu": "relu"})

    assert [(verdict.verdict, verdict.measured) for verdict in verdicts] == [("PASS", 1.0)]
    kinds = [type(module).__name__ for module in distilled.load()]
    assert kinds.count("ReLU") == 2
    assert "SiLU" not in kinds
    assert distilled.blueprint.substitute == {"silu": "relu"}


def test_a_signed_file_on_onnxruntime_fails(chain, step) -> None:
    """It fuses no ReLU into signed int8: a gate that fails and says what was not fused."""
    target = Signed(precision="int8")
    compiled = step(Compile, CompileInputs(chain.export, target))
    benchmark = BenchmarkInputs(
        chain.data, chain.teacher, chain.distill, chain.quantize, chain.export, compiled, target
    )
    evidence = step(Benchmark, benchmark, **QUICK).evidence

    end = conclude([v.to_dict() for v in judge([SHARE], [evidence])], {}, rules=1)

    assert end.exit_code == 3
    assert "stage3.0.body.1.conv (" in end.line or "stage1.0.body.0.conv (" in end.line
    assert "roundings left that no int8 kernel took" in end.line
    assert "try another target (openvino" in end.line


def test_no_layer_in_int8_is_an_error_before_anything_is_measured(chain, step) -> None:
    """An fp32 file in the place of the int8 one: the same culprits and a remedy, as an error."""
    folder = chain.export.folder.with_name("float")
    shutil.copytree(chain.export.folder, folder)
    shutil.copyfile(folder / "student.fp32.onnx", folder / "student.int8.cpu.onnx")

    with pytest.raises(StageError, match="none of the quantized layers in int8") as caught:
        step(Compile, CompileInputs(type(chain.export)(folder), TARGET))

    assert "in float: stage" in caught.value.found
    assert "precision: fp32" in caught.value.fix


def test_bf16_is_made_of_the_fp32_file_beside_an_fp32_baseline(chain, step) -> None:
    """`openvino-bf16` is an artifact of its own; its twin and the teacher stay in fp32."""
    target = OpenVino(precision="bf16")
    if missing := target.missing():
        pytest.skip(missing.reason)

    compiled = step(Compile, CompileInputs(chain.export, target))

    used = {
        role: {layer["precision"] for layer in known["layers"]}
        for role, known in compiled.roles.items()
    }
    assert compiled.id == "openvino-bf16"
    assert used == {"artifact": {"bf16"}, "fp32": {"fp32"}, "teacher": {"fp32"}}
