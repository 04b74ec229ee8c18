"""A tiny chain on real digits, run stage by stage without the pipeline; all tests here share it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from kdpipe.stages.base import Silent, Stage, Work
from kdpipe.stages.benchmark import Benchmark, BenchmarkInputs, Measured
from kdpipe.stages.compile import Compile, Compiled, CompileInputs
from kdpipe.stages.data import Data, DataInputs
from kdpipe.stages.dataset import Dataset
from kdpipe.stages.distill.stage import Distill, Distilled, DistillInputs
from kdpipe.stages.export import Export, Exported, ExportInputs
from kdpipe.stages.network import Network
from kdpipe.stages.quantize.stage import Quantize, Quantized, QuantizeInputs
from kdpipe.stages.student import Architecture, Student, StudentInputs
from kdpipe.stages.tasks.classification import Classification
from kdpipe.stages.teacher import Teacher, TeacherInputs
from kdpipe.targets.base import Target
from kdpipe.targets.onnxruntime import OnnxRuntime
from kdpipe.targets.openvino import OpenVino

torch.set_num_threads(1)

DATA = {"source": "digits", "image_size": 16, "max_train": 200, "max_eval": 100, "calibration": 64}
RECIPE = {"epochs": 3, "batch_size": 16, "learning_rate": 0.05, "warmup_epochs": 0, "amp": "fp32"}
TEACHER = {"model": "resnet8", "arguments": {"width": 0.5}}
METHODS = [{"kind": "kd", "temperature": 4.0}]
TARGETS: tuple[Target, ...] = (
    OnnxRuntime(precision="int8"),
    OnnxRuntime(precision="fp32"),
    OpenVino(precision="int8"),
)


@dataclass(frozen=True)
class Chain:
    """What each stage left. Tests share it, and must leave it as it is."""

    data: Dataset
    teacher: Network
    student: Architecture
    distill: Distilled
    ptq: Quantized
    quantize: Quantized
    export: Exported
    targets: dict[str, Target]
    compiled: dict[str, Compiled]
    measured: dict[str, Measured]

    @property
    def outputs(self) -> dict[str, Any]:
        """The outputs by step id, as a finished run has them."""
        steps = {
            name: getattr(self, name)
            for name in ("data", "teacher", "student", "distill", "quantize", "export")
        }
        compiled = {f"compile[{id}]": output for id, output in self.compiled.items()}
        return steps | compiled | {f"benchmark[{id}]": m for id, m in self.measured.items()}


@pytest.fixture(scope="session")
def recipe() -> dict[str, Any]:
    """How the students of the chain were trained."""
    return RECIPE


Step = Callable[..., Any]


@pytest.fixture(scope="session")
def step(tmp_path_factory: pytest.TempPathFactory) -> Step:
    """step(Teacher, TeacherInputs(data), model="resnet8"): the output of one stage, freshly run."""

    def run(stage: type[Stage], inputs: Any, **settings: Any) -> Any:
        root: Path = tmp_path_factory.mktemp(stage.name)
        work = Work(root / "out", root / "scratch", Silent())
        work.out.mkdir()
        work.scratch.mkdir()
        stage.model_validate(settings).run(inputs, work)
        return stage.Output(work.out)

    return run


@dataclass(frozen=True)
class Trained:
    """The chain up to the distilled student."""

    data: Dataset
    teacher: Network
    student: Architecture
    distill: Distilled


@pytest.fixture(scope="session")
def trained(step: Step) -> Trained:
    """The stages before quantization, once."""
    data = step(Data, DataInputs(Classification()), **DATA)
    teacher = step(Teacher, TeacherInputs(data), **TEACHER, train={**RECIPE, "epochs": 8})
    student = step(Student, StudentInputs(data, teacher), shrink={"width": 0.5})
    distill = step(
        Distill,
        DistillInputs(data, teacher, student),
        **RECIPE,
        methods=METHODS,
        control={"seeds": 2},
    )
    return Trained(data, teacher, student, distill)


@pytest.fixture(scope="session")
def chain(step: Step, trained: Trained) -> Chain:
    """Every stage once; `measured` of the int8 artifacts."""
    data, teacher, student = trained.data, trained.teacher, trained.student
    distill = trained.distill
    quantizing = QuantizeInputs(data, teacher, distill)
    ptq = step(Quantize, quantizing, mode="ptq")
    quantize = step(Quantize, quantizing, mode="qat", epochs=1, batch_size=32, amp="fp32")
    export = step(Export, ExportInputs(data, teacher, distill, quantize), samples=32)
    targets = {target.id: target for target in TARGETS}
    compiled = {id: step(Compile, CompileInputs(export, target)) for id, target in targets.items()}
    measured = {
        id: step(
            Benchmark,
            BenchmarkInputs(data, teacher, distill, quantize, export, compiled[id], targets[id]),
            processes=2,
            iterations=5,
            seconds=0,
            warmup_seconds=0,
        )
        for id in ("onnxruntime-int8", "openvino-int8")
    }
    return Chain(
        data, teacher, student, distill, ptq, quantize, export, targets, compiled, measured
    )
