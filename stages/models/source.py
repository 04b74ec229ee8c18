"""The `model:` and `arguments:` of a config; `blueprint.py` is what becomes of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from kdpipe.stages.models import FAMILIES, family_of
from kdpipe.stages.models.blueprint import Blueprint as Blueprint
from kdpipe.stages.models.blueprint import check_arguments, content_digest
from kdpipe.stages.models.family import Argument
from kdpipe.stages.models.reference import ModelReference
from kdpipe.stages.tasks import Task
from kdpipe.targets.errors import UsageError


class ModelSettings(BaseModel):
    """The fields by which teacher and student name a model."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    model: ModelReference
    arguments: dict[str, Argument] = Field({}, description="what the model is called with")

    @field_validator("arguments")
    @classmethod
    def _known(cls, given: dict[str, Argument], info: ValidationInfo) -> dict[str, Argument]:
        reference = info.data.get("model")
        if reference is None:  # its own problem is reported already
            return given
        try:
            check_arguments(reference, given)
        except UsageError as error:
            raise ValueError(str(error)) from error
        return given

    def files(self) -> Mapping[str, Path]:
        """The user's files behind the model: {"model.file": path, "model.data.0": path}."""
        return {f"model.{name}": path for name, path in self.model.files.items()}

    def check_task(self, task: Task) -> None:
        """Raise UsageError for a network of the zoo that is for another kind of task.

        What other networks give is seen when they are built.
        """
        if self.model.kind != "zoo" or family_of(self.model.name).dense == task.dense:
            return
        fitting = [name for f in FAMILIES if f.dense == task.dense for name in f.names()]
        gives = "an image" if task.dense else "every pixel"
        raise UsageError(
            f"model '{self.model}' gives logits for {gives}, which is not what {task.kind} needs",
            found=f"task: {task.kind}, model: {self.model}",
            fix=f"use one of {', '.join(fitting)}, a model of your own, or another task",
        )

    def blueprint(self, shape: tuple[int, int, int], classes: int) -> Blueprint:
        """The model for inputs of `shape` (C, H, W) and `classes` outputs."""
        sha256 = content_digest(self.model)
        arguments = check_arguments(self.model, self.arguments)
        return Blueprint(str(self.model), arguments, shape, classes, sha256)
