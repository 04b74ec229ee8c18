"""One contract over all stages: frozen settings, typed inputs, and no heavy import."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

import pytest
from pydantic import BaseModel, ValidationError

from kdpipe.stages import STAGES
from kdpipe.stages.base import Artifact, Stage
from kdpipe.stages.choice import Chosen
from kdpipe.stages.data import Data
from kdpipe.stages.distill.stage import Distill
from kdpipe.stages.quantize.stage import Quantize
from kdpipe.stages.tasks import Task
from kdpipe.stages.teacher import Teacher
from kdpipe.targets.base import Target

REQUIRED: dict[str, dict[str, Any]] = {
    "data": {"source": "digits"},
    "teacher": {"model": "resnet20"},
}
"""Settings without which a stage means nothing; all others have defaults."""
SETTINGS: dict[str, type] = {"task": Task, "target": Target}
"""Inputs that come from the config and not from a stage."""

every_stage = pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)


def made(stage: type[Stage]) -> Stage:
    return stage.model_validate(REQUIRED.get(stage.name, {}))


def unwrapped(hint: Any) -> tuple[type, bool]:
    """The class of an annotation, and whether it may be None."""
    if get_origin(hint) in (Union, types.UnionType):
        (kind,) = (arg for arg in get_args(hint) if arg is not type(None))
        return kind, True
    return hint, False


def settings_within(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """A settings class and all that its fields may hold."""
    yield model
    for field in model.model_fields.values():
        pending: list[Any] = [field.annotation, *field.metadata]
        while pending:
            kind = pending.pop()
            pending += kind.types if isinstance(kind, Chosen) else get_args(kind)
            if isinstance(kind, type) and issubclass(kind, BaseModel) and kind is not BaseModel:
                yield from settings_within(kind)


def test_names_are_those_of_the_chain():
    """Stages stand in running order; their names are the keys of the YAML."""
    names = [stage.name for stage in STAGES]

    assert names == [
        "data", "teacher", "student", "distill", "quantize", "export", "compile", "benchmark",
    ]  # fmt: skip


@every_stage
def test_settings_are_frozen_and_closed(stage: type[Stage]):
    """No field can be assigned, and a key that the stage does not know is an error."""
    settings = made(stage)
    given = REQUIRED.get(stage.name, {})

    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        stage.model_validate({**given, "no_such_key": 1})
    for field in stage.model_fields:
        with pytest.raises(ValidationError, match="frozen"):
            setattr(settings, field, getattr(settings, field))


@every_stage
def test_settings_are_documented(stage: type[Stage]):
    """The stage, all settings inside it, and all fields of the schema that editors show."""
    for settings in settings_within(stage):
        assert vars(settings).get("__doc__"), settings
        for name, field in settings.model_json_schema().get("properties", {}).items():
            told = field.get("description") or name == "kind"  # the word that chose the settings
            assert told, f"{settings.__name__}.{name} has no description"


@every_stage
def test_nested_settings_are_frozen_and_closed(stage: type[Stage]):
    """What holds for a stage holds for all the settings in it, whose values join its key."""
    for settings in settings_within(stage):
        assert settings.model_config.get("frozen") is True, settings
        assert settings.model_config.get("extra") == "forbid", settings


@every_stage
def test_inputs_name_earlier_stages(stage: type[Stage]):
    """A frozen dataclass; each field has the type of that stage's output, or of the setting."""
    earlier = {other.name: other.Output for other in STAGES[: STAGES.index(stage)]}
    hints = get_type_hints(stage.Inputs)

    assert dataclasses.is_dataclass(stage.Inputs)
    assert stage.Inputs.__dataclass_params__.frozen  # type: ignore[attr-defined]
    for field in dataclasses.fields(stage.Inputs):
        kind, optional = unwrapped(hints[field.name])
        if field.name in SETTINGS:
            assert kind is SETTINGS[field.name]
            assert not optional
        else:
            assert issubclass(earlier[field.name], kind)
            assert issubclass(kind, Artifact)


@every_stage
def test_outputs_are_artifacts_read_from_a_folder(stage: type[Stage], tmp_path: Path):
    """Making one reads nothing; two of one folder are equal."""
    output = stage.Output(tmp_path / "not there yet")

    assert isinstance(output, Artifact)
    assert output == stage.Output(tmp_path / "not there yet")


@every_stage
def test_settings_survive_json(stage: type[Stage]):
    """What goes into a stage's key reads back as the same settings."""
    settings = made(stage)

    stored = settings.model_dump(mode="json")

    assert stage.model_validate(stored) == settings
    assert stage.model_validate_json(settings.model_dump_json()) == settings


@every_stage
def test_a_stage_says_what_its_key_depends_on(stage: type[Stage]):
    """Version, packages and files are there to be hashed; by default no file is read."""
    settings = made(stage)

    assert stage.version >= 1
    assert all(isinstance(package, str) for package in stage.packages)
    assert not settings.files()
    assert not settings.skipped
    settings.check()


def test_only_quantize_asks_for_a_precision():
    """int8 artifacts come of quantization, and of none when its mode is none."""
    asked = {stage.name: made(stage).precision() for stage in STAGES}

    assert asked.pop("quantize") == "int8"
    assert not any(asked.values())
    assert Quantize(mode="none").skipped
    assert Quantize(mode="none").precision() is None


@pytest.mark.parametrize(
    ("stage", "settings", "problem"),
    [
        (Teacher, {"model": "resnet20", "weights": "a.pth", "train": {}}, "not both"),
        (Distill, {"methods": [], "supervised": 0}, "nothing to learn from"),
        (Distill, {"methods": ["no_such_method"]}, "kind"),
        (Distill, {"batch_size": 1}, "greater than or equal to 2"),
        (Quantize, {"mode": "int4"}, "'none', 'ptq', 'qat' or 'qad'"),
        (Data, {"source": "digits", "eval_fraction": 1.0}, "less than 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(
    stage: type[Stage], settings: dict[str, Any], problem: str
):
    """They fail when the config is read, not when the stage runs."""
    with pytest.raises(ValidationError, match=problem):
        stage.model_validate(settings)


def test_listing_the_stages_imports_nothing_heavy():
    """`kdpipe --help` and `plan` start without any of the SDKs that take seconds to import."""
    heavy = ["torch", "onnx", "onnxscript", "onnxruntime", "openvino", "sklearn", "scipy"]
    code = (
        "import sys, kdpipe.stages as s\n"
        "[stage.model_json_schema() for stage in s.STAGES]\n"
        f"print([name for name in {heavy} if name in sys.modules])"
    )

    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert found.stdout.strip() == "[]"
