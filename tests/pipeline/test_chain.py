"""The chain of toy stages: steps are ids, what each reads, and the order in which they can run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import pytest
from pydantic import BaseModel

from kdpipe.pipeline.chain import Step, input_types, steps
from kdpipe.stages.base import Artifact, Stage
from kdpipe.targets.base import Audit, Missing, Session, Target
from kdpipe.targets.errors import ConfigError, StageError


class Words(Artifact):
    """A folder with words."""


class Style(BaseModel):
    """A setting that stages share."""

    loud: bool = True


class Toy(Target):
    """A target that compiles nothing."""

    name: Literal["toy"] = "toy"

    def missing(self) -> Missing | None:
        return None

    def compile(self, onnx: Path, folder: Path) -> Path:
        raise StageError("a toy compiles nothing")

    def open(self, artifact: Path) -> Session:
        raise StageError("a toy runs nothing")

    def audit(self, artifact: Path) -> Audit:
        return Audit()


@dataclass(frozen=True)
class FirstInputs:
    """Only a setting."""

    task: Style


class First(Stage):
    """Reads nothing."""

    name: ClassVar[str] = "first"
    Inputs: ClassVar[type] = FirstInputs
    Output: ClassVar[type[Artifact]] = Words


@dataclass(frozen=True)
class MiddleInputs:
    """What comes before."""

    first: Words


class Middle(Stage):
    """May be left out."""

    name: ClassVar[str] = "middle"
    Inputs: ClassVar[type] = MiddleInputs
    Output: ClassVar[type[Artifact]] = Words


@dataclass(frozen=True)
class BuildInputs:
    """One of them may be missing."""

    first: Words
    middle: Words | None
    target: Target


class Build(Stage):
    """Runs per target."""

    name: ClassVar[str] = "build"
    Inputs: ClassVar[type] = BuildInputs
    Output: ClassVar[type[Artifact]] = Words


@dataclass(frozen=True)
class CheckInputs:
    """The output for the same target, and one that all share."""

    first: Words
    build: Words
    target: Target


class Check(Stage):
    """Runs per target, after another one that does."""

    name: ClassVar[str] = "check"
    Inputs: ClassVar[type] = CheckInputs
    Output: ClassVar[type[Artifact]] = Words


SETTINGS = {"task": Style()}
TARGETS = [Toy(precision="fp32"), Toy(precision="int8")]


def chain(*stages: Stage) -> list[Step]:
    """The steps of some stages for two targets."""
    return steps(stages, SETTINGS, TARGETS)


def test_steps_per_target() -> None:
    """A stage with a `target` input runs once per target and reads within that target."""
    found = {step.id: dict(step.reads) for step in chain(First(), Middle(), Build(), Check())}

    assert found == {
        "first": {},
        "middle": {"first": "first"},
        "build[toy-fp32]": {"first": "first", "middle": "middle"},
        "build[toy-int8]": {"first": "first", "middle": "middle"},
        "check[toy-fp32]": {"first": "first", "build": "build[toy-fp32]"},
        "check[toy-int8]": {"first": "first", "build": "build[toy-int8]"},
    }
    assert list(found)[:2] == ["first", "middle"]


def test_target_of_a_step() -> None:
    """A step knows the target that it works for."""
    found = {step.id: step.target for step in chain(First(), Build())}

    assert found == {
        "first": None,
        "build[toy-fp32]": TARGETS[0],
        "build[toy-int8]": TARGETS[1],
    }


def test_skipped_stage() -> None:
    """A stage that is left out is not read, and is None where an input may be."""
    build = chain(First(), Build())[1]

    inputs = build.inputs({"first": Path("f")})

    assert build.reads == {"first": "first"}
    assert inputs == BuildInputs(first=Words(Path("f")), middle=None, target=TARGETS[0])


def test_settings_reach_the_inputs() -> None:
    """A value of the config is handed to the stages that name it."""
    (first,) = chain(First())

    assert first.settings == SETTINGS
    assert first.inputs({}) == FirstInputs(task=Style())


def test_stage_that_cannot_do_without() -> None:
    """Skipping what another stage needs is an error that says what to type."""
    with pytest.raises(ConfigError) as caught:
        chain(Middle())

    assert caught.value.what == "stage 'middle' needs stage 'first', which is null"
    assert caught.value.fix == "remove `first: null`, or set `middle: null` too"
    assert caught.value.exit_code == 2


def test_input_types() -> None:
    """The class of each input, and whether it may be None."""
    assert input_types(Build) == {
        "first": (Words, False),
        "middle": (Words, True),
        "target": (Target, False),
    }
