"""Settings mean something: each one is in the key of its stage, and none is ignored in silence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from kdpipe.pipeline.chain import Step
from kdpipe.pipeline.config import Config
from kdpipe.pipeline.plan import Planner
from kdpipe.pipeline.store import Entry, Store, key_of
from kdpipe.stages.benchmark import Benchmark
from kdpipe.stages.quantize.stage import Quantize
from kdpipe.stages.recipe import Recipe
from kdpipe.stages.student import Student
from kdpipe.stages.teacher import Teacher
from kdpipe.targets.errors import ConfigError

CONFIG = """\
data: {source: digits, image_size: 16}
teacher: {model: resnet20, train: {epochs: 2}}
targets: [onnxruntime, {name: openvino, precision: fp32}]
"""


def step_of(folder: Path, name: str, *assignments: str) -> Step:
    """One step of the config, with settings changed."""
    path = folder / "config.yaml"
    path.write_text(CONFIG)
    (step,) = [step for step in Config.read(path, assignments).steps() if step.id == name]
    return step


def key(folder: Path, name: str, *assignments: str, digest: str = "d") -> str:
    """The key of a step whose inputs all have `digest`."""
    step = step_of(folder, name, *assignments)
    record = Planner(Store(folder), {}).record(
        step, {source: Entry("k", folder, digest, {}) for source in step.reads.values()}
    )
    return key_of(step.id, record)


@pytest.mark.parametrize(
    ("step", "assignment"),
    [
        ("data", "data.image_size=8"),
        ("data", "data.eval_fraction=0.5"),
        ("data", "data.split_seed=1"),
        ("data", "data.calibration=64"),
        ("data", "data.augment.shift=1"),
        ("data", "data.mean=[0.5]"),
        ("teacher", "teacher.model=resnet14"),
        ("teacher", "teacher.arguments={width: 0.5}"),
        ("teacher", "teacher.train.epochs=3"),
        ("teacher", "teacher.train.amp=fp32"),
        ("teacher", "teacher.train.seed=1"),
        ("student", "student={model: resnet8}"),
        ("distill", "distill.methods=[{kind: kd, temperature: 2}]"),
        ("distill", "distill.supervised=0.5"),
        ("distill", "distill.control.seeds=2"),
        ("quantize", "quantize.mode=ptq"),
        ("quantize", "quantize.learning_rate=0.001"),
        ("export", "export.samples=8"),
        ("compile[onnxruntime-int8]", "targets.0={name: onnxruntime, ahead_of_time: true}"),
        ("compile[openvino-fp32]", "targets.1={name: openvino, precision: fp32, batch: 2}"),
        ("benchmark[onnxruntime-int8]", "targets.0={name: onnxruntime, threads: 2}"),
        ("benchmark[onnxruntime-int8]", "benchmark.processes=3"),
    ],
)
def test_every_setting_is_in_the_key(tmp_path: Path, step: str, assignment: str) -> None:
    """Changing what a stage is told changes its key: nothing stale is reused."""
    assert key(tmp_path, step, assignment) != key(tmp_path, step)


@pytest.mark.parametrize("step", ["teacher", "distill", "export", "benchmark[onnxruntime-int8]"])
def test_every_input_is_in_the_key(tmp_path: Path, step: str) -> None:
    """Another output of a stage that is read is another key."""
    assert key(tmp_path, step, digest="e") != key(tmp_path, step)


def test_required_is_not_in_the_key(tmp_path: Path) -> None:
    """Whether a target is required decides an exit code and no measurement."""
    optional = "targets.0={name: onnxruntime, required: false}"
    step = "benchmark[onnxruntime-int8]"

    assert key(tmp_path, step, optional) == key(tmp_path, step)


def test_the_model_brings_its_packages_into_the_key() -> None:
    """timm builds other networks in other versions; the zoo depends on torch alone."""
    timm = Teacher.model_validate({"model": "timm:resnet18"})
    own = Student.model_validate({"model": "resnet8"})

    assert "timm" in timm.distributions()
    assert own.distributions() == ()


def test_a_student_that_nothing_trains_is_refused(tmp_path: Path) -> None:
    """`distill: null` alone would ship the teacher under the student's name."""
    with pytest.raises(ConfigError, match="no stage of this chain uses 'student'"):
        step_of(tmp_path, "export", "distill=null")
    assert step_of(tmp_path, "export", "distill=null", "student=null").reads["teacher"] == "teacher"


@pytest.mark.parametrize(
    ("kind", "values", "words"),
    [
        (Quantize, {"mode": "ptq", "epochs": 3}, "does nothing under mode ptq"),
        (Recipe, {"epochs": 5, "warmup_epochs": 6}, "must not exceed the 5"),
        (Benchmark, {"samples": 1000}, "less than or equal to 256"),
    ],
    ids=["ptq trains nothing", "a peak never reached", "more samples than are cycled"],
)
def test_a_setting_without_effect_is_refused(kind: Any, values: dict[str, Any], words: str) -> None:
    """What would be ignored or cut is an error instead."""
    with pytest.raises(ValidationError, match=words):
        kind.model_validate(values)
