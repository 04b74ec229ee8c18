"""What a distillation method is: its settings, its formula, and what it needs from the nodes.

A method is its own YAML entry under `distill.methods`. It holds no tensors: what it learns or
remembers (connectors, banks) is built once as a module and handed back to it on every call.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    model_validator,
)

from kdpipe.targets.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from kdpipe.stages.models.blueprint import Blueprint
    from kdpipe.stages.tasks import Task
    from kdpipe.stages.views import View

Views = tuple["Tensor", ...]
"""One tensor per tap, in the order of the method's taps."""
Shapes = tuple[tuple[int, ...], ...]
"""The shape of each view, batch included, found by a dry run."""
Batch = Mapping[str, "Tensor"]
"""What the loader yields: `input` (B, C, H, W), `target` (B, ...), `index` (B,), and views."""
Need = Literal[
    "logits", "vectors", "dense", "features", "embedding", "head", "labels", "index", "views",
    "connector", "memory", "opponent", "preparation", "several teachers",
]  # fmt: skip
"""What a method asks of a run, for people who choose one.

`vectors`: logits (B, C), one vector and one label per image; `dense`: maps (B, C, H, W) of them. A
method that says neither takes both, each position of a map being a sample.
"""

_LOGITS = {"vectors": "(B, C), one vector per image", "dense": "(B, C, H, W), maps of pixels"}


@dataclass(frozen=True)
class Setup:
    """What a method is built for: shapes found by a dry run, and the size of the training.

    `teachers` holds the shapes of each teacher's views: one entry for most methods, none for those
    that need no teacher, all of them for a `joint` method. `samples` is the length of the train
    split (indices are below it), `epochs` of the training, `steps` of each epoch, `classes` the
    width of the student's logits. `network` is the student itself and `taps` its {role: module
    path}, for methods that copy a part of it.
    """

    student: Shapes
    teachers: tuple[Shapes, ...]
    classes: int
    samples: int
    epochs: int
    network: nn.Module
    taps: Mapping[str, str] = field(default_factory=dict)
    steps: int = 1

    @property
    def teacher(self) -> Shapes:
        """The shapes of the first teacher's views, () where there is none."""
        return self.teachers[0] if self.teachers else ()


class Method(BaseModel, ABC):
    """One distillation objective. Subclasses add `kind`, their settings and `loss`.

    Taps are roles of a network (`stage1`, ..., `embedding`, `logits`), module paths, `stages` for
    every stage (the last k of both networks where one has fewer), or `last` for the last stage.
    `role:in` is a module's input, `role:pre` what enters its last activation, `head:weight` and
    `head:bias` the parameters of the classifier, and `view/role` a role on another view of the
    sample.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    summary: ClassVar[str]
    paper: ClassVar[str]
    needs: ClassVar[tuple[Need, ...]] = ("logits",)
    taught: ClassVar[bool] = True
    """Whether there is a teacher; self-distillation learns from the student alone."""
    joint: ClassVar[bool] = False
    """Whether `joint_loss` takes all teachers at once; others are called for each teacher."""
    blends: ClassVar[bool] = False
    """Whether it knows what to do with the blended labels of mixup."""
    copies: ClassVar[bool] = False
    """Whether it copies modules of the student, which a captured network no longer has."""
    resizes: ClassVar[bool] = False
    """Whether it brings maps of logits of two sizes to one; others need them alike."""
    views: ClassVar[Mapping[str, View]] = {}
    """Further entries of the batch that the loader makes for this method, by name."""

    kind: str
    weight: NonNegativeFloat = Field(1.0, description="factor of this term in the total loss")
    warmup_epochs: NonNegativeInt = Field(0, description="epochs over which the weight ramps up")
    start: NonNegativeInt = Field(0, description="epoch from which the term counts")
    stop: PositiveInt | None = Field(None, description="epoch from which it counts no longer")
    taps: tuple[str, ...] = Field(("logits",), description="what is compared; see the docs")
    teacher_taps: tuple[str, ...] | None = Field(
        None, description="what is compared in the teacher, where that differs"
    )

    @model_validator(mode="after")
    def _window_is_not_empty(self) -> Self:
        if self.stop is not None and self.stop <= self.start:
            raise ValueError(f"`stop` must come after `start`, which is {self.start}")
        return self

    @property
    def prepares(self) -> int:
        """Epochs before the training in which `state.prepared` learns by `prepare_loss`."""
        return 0

    def student_roles(self) -> tuple[str, ...]:
        """The student's taps; a method overrides this to see more than it compares."""
        return self.taps

    def teacher_roles(self) -> tuple[str, ...]:
        """The teacher's taps, in the order in which `loss` gets their views."""
        return self.teacher_taps or self.taps

    def under(self, task: Task) -> Self:
        """This method as it reads the labels of `task`.

        Raises UsageError where its needs or settings and the task contradict each other.
        """
        needed = "dense" if task.dense else "vectors"
        other = "vectors" if task.dense else "dense"
        self.require(
            other not in self.needs,
            f"is for logits {_LOGITS[other]}",
            found=f"task: {task.kind}, whose logits are {_LOGITS[needed]}",
            fix=f"use a method that does not need '{other}', see `kdpipe methods`",
        )
        return self

    def build(self, setup: Setup) -> nn.Module | None:
        """Connectors and memories for these shapes; None when there are none.

        Two names are reserved: `opponent`, a submodule that learns by `opponent_loss` alone, with
        an optimizer of its own, and `prepared`, one that learns before the training, by
        `prepare_loss`, and is frozen in it. Raises UsageError, with what to type, when the method
        cannot work here.
        """
        return None

    @abstractmethod
    def loss(self, student: Views, teacher: Views, batch: Batch, state: Any) -> Tensor:
        """The term, a scalar. Pure: memories change in `update`, never here.

        Views arrive in fp32 (or fp64), outside autocast; those of the teacher carry no gradient.
        """

    def joint_loss(
        self, student: Views, teachers: tuple[Views, ...], batch: Batch, state: Any
    ) -> Tensor:
        """The term against all teachers at once; only `joint` methods are asked."""
        raise NotImplementedError

    def update(self, student: Views, teachers: tuple[Views, ...], batch: Batch, state: Any) -> None:
        """Refresh memories after the backward pass; by default there are none."""

    def opponent_loss(self, student: Views, teacher: Views, batch: Batch, state: Any) -> Tensor:
        """What `state.opponent` minimises, after the student's step; no view has a gradient."""
        raise NotImplementedError

    def prepare_loss(self, student: Views, teacher: Views, batch: Batch, state: Any) -> Tensor:
        """What `state.prepared` minimises before the training; no view has a gradient."""
        raise NotImplementedError

    def reshape(self, student: Blueprint, teacher: Blueprint) -> Blueprint:
        """The student that this method trains, where the method changes what ships."""
        return student

    def begin(self, student: nn.Module, teacher: nn.Module) -> None:
        """Called once before training with the fresh student and its teacher."""

    def scale(self, epoch: float) -> float:
        """The weight at `epoch` (fractional, from 0): a linear ramp over `warmup_epochs`."""
        if epoch < self.start or (self.stop is not None and epoch >= self.stop):
            return 0.0
        if self.warmup_epochs == 0:
            return self.weight
        return self.weight * min((epoch - self.start) / self.warmup_epochs, 1.0)

    def require(self, holds: bool, what: str, found: str, fix: str) -> None:
        """Raise UsageError about this method unless `holds`, for use in `build`."""
        if not holds:
            raise UsageError(f"method '{self.kind}' {what}", found=found, fix=fix)
