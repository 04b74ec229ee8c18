"""What the methods on dense logits (B, C, H, W) and on maps of labels share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field

from kdpipe.stages.distill.method import Method, Setup

if TYPE_CHECKING:
    from kdpipe.stages.tasks import Task

Resize = Literal["student", "teacher"]
"""Whose size the other one's logits are brought to, bilinearly."""


def require_same_classes(method: Method, setup: Setup) -> None:
    """Raise UsageError unless the last maps, the logits, are of the same number of classes."""
    ours, theirs = setup.student[-1][1], setup.teacher[-1][1]
    method.require(
        ours == theirs,
        "compares the same classes",
        found=f"{ours} classes of the student, {theirs} of the teacher",
        fix="use a teacher of the same task, or a method on features such as `skd_pairwise`",
    )


class Masked(Method):
    """A method in which pixels without a label do not count."""

    ignore_index: int | None = Field(
        255, description="label of pixels that do not count, the task's in a config"
    )

    def under(self, task: Task) -> Self:
        """With the task's `ignore_index`; raises UsageError where another one is set here."""
        fitted = super().under(task)
        if "ignore_index" not in self.model_fields_set:
            return fitted.model_copy(update={"ignore_index": task.ignored})
        self.require(
            self.ignore_index == task.ignored,
            "leaves out other pixels than the task does",
            found=f"ignore_index: {self.ignore_index} here, {task.ignored} of the task",
            fix="remove `ignore_index` from the method, or set it under `task`",
        )
        return fitted
