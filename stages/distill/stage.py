"""The distill stage: train the student from the teacher, and its twin without, seed by seed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    model_validator,
)

from kdpipe.stages.base import Artifact, Stage, Work
from kdpipe.stages.choice import choice
from kdpipe.stages.dataset import Dataset
from kdpipe.stages.distill import METHODS
from kdpipe.stages.distill.method import Method
from kdpipe.stages.distill.response.kd import KD
from kdpipe.stages.distill.schemes import SCHEMES, Arrangement
from kdpipe.stages.distill.schemes.base import Actor, Cast
from kdpipe.stages.distill.schemes.offline import Offline
from kdpipe.stages.distill.schemes.perform import perform
from kdpipe.stages.distill.synthesis import SYNTHESES, Synthesis
from kdpipe.stages.distill.synthesis.base import Canvas
from kdpipe.stages.distill.teachers import FurtherTeacher, chain_teacher
from kdpipe.stages.distill.windows import require_terms
from kdpipe.stages.network import Network, judge, save_network
from kdpipe.stages.recipe import Recipe
from kdpipe.stages.student import Architecture
from kdpipe.stages.tasks import Task
from kdpipe.targets.errors import UsageError

if TYPE_CHECKING:
    from torch import nn

    from kdpipe.stages.models.source import Blueprint
    from kdpipe.stages.training.batches import Source

    AnyMethod = Method
    AnyScheme = Arrangement
    AnySynthesis = Synthesis
else:
    AnyMethod = choice(METHODS, "kind")
    AnyScheme = choice(SCHEMES, "kind")
    AnySynthesis = choice(SYNTHESES, "kind")


class Control(BaseModel):
    """The student's twin without distillation, so that a gain is measured and not assumed."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    seeds: PositiveInt = Field(
        1, description="pairs: as many students, each with and without distillation"
    )


CONTROL = "control"


class Distilled(Network):
    """The output of the distill stage: the student that ships, and what the pairs scored."""

    @cached_property
    def control(self) -> Network | None:
        """The control of the student that ships; None where none was trained."""
        folder = self.folder / CONTROL
        return Network(folder) if folder.is_dir() else None

    @cached_property
    def pairs(self) -> list[dict[str, float]]:
        """[{"seed", "distilled", "control"}]: the headline metric of both, seed by seed."""
        pairs: list[dict[str, float]] = json.loads((self.folder / "pairs.json").read_text("utf-8"))
        return pairs


@dataclass(frozen=True)
class DistillInputs:
    """What distillation reads."""

    data: Dataset
    teacher: Network
    student: Architecture


class Distill(Recipe, Stage):
    """Train the student to imitate the teacher, beside a control without the teacher."""

    name: ClassVar[str] = "distill"
    version: ClassVar[int] = 2  # the control's weights are kept
    packages: ClassVar[tuple[str, ...]] = ("torch", "numpy")
    Inputs: ClassVar[type] = DistillInputs
    Output: ClassVar[type[Artifact]] = Distilled

    methods: tuple[AnyMethod, ...] = Field((KD(),), description="see `kdpipe methods`")
    scheme: AnyScheme = Field(Offline(), description="who teaches whom, and in which order")
    use_teacher: bool = Field(True, description="false: only the further `teachers` teach")
    teachers: tuple[FurtherTeacher, ...] = Field((), description="further trained teachers")
    supervised: NonNegativeFloat = Field(1.0, description="weight of the loss against the labels")
    supervised_from: NonNegativeInt = Field(0, description="epoch from which the labels count")
    source: AnySynthesis | None = Field(
        None, description="who makes the images where there is no training data"
    )
    control: Control | None = Field(Control(), description="null trains no control")

    @model_validator(mode="after")
    def _has_usual_methods(self) -> Self:
        """Set here, and not where they are used: what is in the key is what is meant."""
        if "methods" not in self.model_fields_set:
            self.__dict__["methods"] = self.scheme.usual
        return self

    @model_validator(mode="after")
    def _has_a_loss(self) -> Self:
        if not self.methods and not self.supervised:
            raise ValueError("there is nothing to learn from: give `methods`, or `supervised` > 0")
        return self

    @model_validator(mode="after")
    def _made_images_have_no_labels(self) -> Self:
        if self.source is None:
            return self
        labelled = {
            "supervised": self.supervised > 0 and "supervised: 0",
            "control": self.control is not None and "control: null",
            "mixing": self.mixing is not None and "mixing: null",
            "early_stopping": self.early_stopping is not None and "early_stopping: null",
            "scheme": self.scheme.kind != "offline" and "scheme: offline",
        }
        wanted = [fix for fix in labelled.values() if fix]
        if wanted:
            raise ValueError(f"images that `source` makes have no labels: set {', '.join(wanted)}")
        return self

    def distributions(self) -> tuple[str, ...]:
        """torch, and what the models of the scheme and of the further teachers need."""
        further = [name for teacher in self.teachers for name in teacher.model.packages]
        return (*self.packages, *self.scheme.packages(), *further)

    def files(self) -> Mapping[str, Path]:
        """The files of the scheme's models, and of the further teachers."""
        further = {
            f"teachers.{number}.{name}": path
            for number, teacher in enumerate(self.teachers)
            for name, path in teacher.files().items()
        }
        return {f"scheme.{name}": path for name, path in self.scheme.files().items()} | further

    def check(self) -> None:
        """Raise DataError for weights that are not there, UsageError for what has no effect."""
        for number, teacher in enumerate(self.teachers):
            teacher.check(f"distill.teachers[{number}]")
        self.scheme.check(self.methods, self, self.supervised)
        self._check_teachers()
        labels_from = self.supervised_from if self.supervised else self.epochs
        require_terms("distill", self.methods, self.epochs, labels_from)

    def check_task(self, task: Task) -> None:
        """Raise UsageError for methods, teachers and a source that are for another kind of task."""
        for method in self.methods:
            method.under(task)
        for teacher in self.teachers:
            teacher.check_task(task)
        if task.dense and self.source:
            raise UsageError(
                f"distill.source: {self.source.kind} makes images for classifiers",
                found=f"task: {task.kind}",
                fix="remove `source` and learn from the data",
            )
        if task.dense and any(teacher.classes for teacher in self.teachers):
            raise UsageError(
                "distill.teachers: a specialist is compared on whole images of its classes",
                found=f"`classes` of a teacher, task: {task.kind}",
                fix="use teachers of all classes",
            )

    def run(self, inputs: DistillInputs, work: Work) -> None:
        """Train a pair per seed; the first distilled student is the one that ships."""
        self.check()
        seeds = range(self.seed, self.seed + (self.control.seeds if self.control else 1))
        pairs: list[dict[str, float]] = []
        for seed in seeds:
            pair: dict[str, float] = {"seed": seed}
            pair["distilled"] = self._member(inputs, work, seed, "distilled", work.out)
            if self.control:
                pair["control"] = self._member(inputs, work, seed, "control", work.out / CONTROL)
            pairs.append(pair)
            work.observer.fact("pair", **pair)
        (work.out / "pairs.json").write_text(json.dumps(pairs, indent=1))

    def _member(
        self, inputs: DistillInputs, work: Work, seed: int, role: str, folder: Path
    ) -> float:
        """Train one network and return its score; that of the first seed is kept in `folder`."""
        network, blueprint, trained = self._train(inputs, work, seed, role)
        if seed != self.seed:
            return judge(network, inputs.data).mean
        return save_network(folder, network, blueprint, inputs.data, **trained).mean

    def _train(
        self, inputs: DistillInputs, work: Work, seed: int, role: str
    ) -> tuple[nn.Module, Blueprint, dict[str, Any]]:
        """A student trained by the scheme (`distilled`) or by labels alone (`control`), and how."""
        cast = Cast(
            student=inputs.student.blueprint,
            recipe=self.model_copy(update={"seed": seed}),
            data=inputs.data,
            methods=tuple(method.under(inputs.data.task) for method in self.methods),
            weight=self.supervised,
            labels_from=self.supervised_from,
            hire=lambda: self._hire(inputs),
        )
        control = role == "control"
        phases = Offline().phases(cast.plain()) if control else self.scheme.phases(cast)
        source = self._source(inputs.data, seed)
        last, facts = perform(phases, inputs.data, work, f"{role}-{seed}", source)
        return last.learner.node.module, last.blueprint, facts

    def _source(self, data: Dataset, seed: int) -> Source | None:
        if self.source is None:
            return None
        from kdpipe.stages.training.device import Device

        device = Device.pick(self.amp)
        return self.source.source(Canvas(data.shape, data.outputs, self.batch_size, device, seed))

    def _hire(self, inputs: DistillInputs) -> dict[str, Actor]:
        """`teacher`, then `teacher2`, ..., freshly loaded."""
        own = {"teacher": chain_teacher(inputs.teacher)} if self.use_teacher else {}
        return own | {
            f"teacher{number + 2}": teacher.load(inputs.data, f"distill.teachers[{number}]")
            for number, teacher in enumerate(self.teachers)
        }

    def _check_teachers(self) -> None:
        """Every teacher that is given must have pupils, and pupils a teacher."""
        called = self.scheme.calls_teachers and any(method.taught for method in self.methods)
        if self.teachers and not called:
            raise UsageError(
                "distill.teachers: nobody learns from them",
                found=f"scheme {self.scheme.kind}, methods"
                f" {', '.join(method.kind for method in self.methods) or 'none'}",
                fix="add a method such as `kd`, or `with_teacher: true` to the scheme,"
                " or remove `teachers`",
            )
        if called and not self.use_teacher and not self.teachers:
            raise UsageError(
                "distill: no teacher is left",
                found="use_teacher: false, and no `teachers`",
                fix="give `teachers`, or remove `use_teacher`",
            )
        if self.mixing and any(teacher.classes for teacher in self.teachers):
            raise UsageError(
                "distill: a specialist cannot judge blends with classes that it does not know",
                found="`classes` of a teacher, and `mixing`",
                fix="remove one of the two",
            )
