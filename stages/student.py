"""The student stage: which network is to ship; it decides the architecture and trains nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from kdpipe.stages.base import Artifact, Stage, Work
from kdpipe.stages.dataset import Dataset
from kdpipe.stages.models.family import Argument
from kdpipe.stages.models.reference import ModelReference
from kdpipe.stages.models.source import Blueprint, ModelSettings
from kdpipe.stages.models.substitute import check
from kdpipe.stages.network import Network, require_outputs
from kdpipe.stages.tasks import Task
from kdpipe.targets.errors import UsageError


class Shrink(BaseModel):
    """A smaller sibling of the teacher: shares of its blocks and of its channels that remain."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    depth: float = Field(1.0, gt=0, le=1, description="share of the blocks of each stage")
    width: float = Field(1.0, gt=0, le=1, description="share of the channels")


class Architecture(Artifact):
    """The output of the student stage."""

    @cached_property
    def blueprint(self) -> Blueprint:
        """How to build the student."""
        return Blueprint.load(self.folder)


@dataclass(frozen=True)
class StudentInputs:
    """What choosing a student reads."""

    data: Dataset
    teacher: Network


class Student(Stage):
    """The network that ships: a named model, or the teacher made smaller."""

    name: ClassVar[str] = "student"
    Inputs: ClassVar[type] = StudentInputs
    Output: ClassVar[type[Artifact]] = Architecture

    model: ModelReference | None = Field(None, description="as for the teacher")
    arguments: dict[str, Argument] = Field({}, description="what the model is called with")
    shrink: Shrink | None = Field(None, description="instead of `model`; default 0.5 and 0.5")
    substitute: dict[str, str] = Field(
        {},
        description="activations to replace before training, e.g. {silu: relu}: ReLU and ReLU6 are"
        " the ones that every runtime fuses into int8 kernels",
    )

    @field_validator("substitute")
    @classmethod
    def _known(cls, wanted: dict[str, str]) -> dict[str, str]:
        check(wanted)
        return wanted

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if self.model and self.shrink:
            raise ValueError("give either `model` or `shrink`, not both")
        if self.arguments and not self.model:
            raise ValueError("`arguments` belong to a `model`")
        if self.model and not self.model.trainable:
            raise ValueError("an ONNX file cannot be trained, so it can only be a teacher")
        if self.model:
            self._settings()
        return self

    def distributions(self) -> tuple[str, ...]:
        """What the model itself needs."""
        return self.model.packages if self.model else ()

    def files(self) -> Mapping[str, Path]:
        """The model's own files, if any."""
        return self._settings().files() if self.model else {}

    def check_task(self, task: Task) -> None:
        """As the teacher's model."""
        if self.model:
            self._settings().check_task(task)

    def run(self, inputs: StudentInputs, work: Work) -> None:
        """Write the student's blueprint."""
        if self.model:
            blueprint = self._settings().blueprint(inputs.data.shape, inputs.data.outputs)
        else:
            shrink = self.shrink or Shrink(depth=0.5, width=0.5)
            blueprint = inputs.teacher.blueprint.shrink(shrink.depth, shrink.width)
        if self.substitute:
            blueprint = replace(blueprint, substitute=self.substitute)
        if blueprint.builds_same(inputs.teacher.blueprint):
            raise UsageError(
                "the student is the teacher itself",
                found=blueprint.model,
                fix="choose a smaller student, or set `student: null` and `distill: null`",
            )
        require_outputs(blueprint.build(pretrained=False), blueprint, inputs.data)
        blueprint.save(work.out)
        # Another version of timm may build another network: then training must not be reused.
        versions = {package: version(package) for package in self.distributions()}
        (work.out / "versions.json").write_text(json.dumps(versions))

    def _settings(self) -> ModelSettings:
        assert self.model
        return ModelSettings(model=self.model, arguments=self.arguments)
