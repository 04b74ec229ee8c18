"""What the methods that grow branches on the student share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from kdpipe.stages.distill.method import Batch, Method, Need, Setup, Views

if TYPE_CHECKING:
    from torch import nn

    from kdpipe.stages.distill.branches._branch import Branches


class BranchedMethod(Method):
    """A method whose peers are copies of the student's last stage, dropped after the training.

    The student itself, which ships, is one of the group. What lies between its last stage and its
    head besides pooling (the neck of a MobileNet) the branches do without. Labels teach the
    branches from the start; what peers teach each other ramps up, which the field `warmup_epochs`,
    a factor of the whole term, would not do.
    """

    needs: ClassVar[tuple[Need, ...]] = ("logits", "vectors", "features", "labels", "connector")
    taught: ClassVar[bool] = False
    copies: ClassVar[bool] = True

    temperature: PositiveFloat = Field(3.0, description="softens all distributions")
    branches: PositiveInt = Field(2, description="branches besides the student itself")
    ramp_epochs: NonNegativeInt | None = Field(
        None, description="epochs until peers teach in full; 4/15 of the training by default"
    )
    taps: tuple[str, ...] = Field(("last",), description="the stage that is branched")

    def student_roles(self) -> tuple[str, ...]:
        """What enters the last stage, what leaves it, and the logits."""
        return (*(f"{tap}:in" for tap in self.taps), *self.taps, "logits")

    def build(self, setup: Setup) -> nn.Module:
        """The branches; a method adds what it joins them by."""
        return self.grow(setup)

    def grow(self, setup: Setup) -> Branches:
        """The branches, for this student."""
        from kdpipe.stages.distill.branches._branch import Branches
        from kdpipe.stages.distill.taps import stages_of

        shapes = setup.student
        self.require(
            len(shapes) == 3 and [len(shape) for shape in shapes] == [4, 4, 2],
            "copies one stage of a classifier, from a map to a map",
            found=f"taps {', '.join(self.student_roles())} with shapes {shapes}",
            fix="give the module path of the last stage under `taps`",
        )
        role = stages_of(setup.taps)[-1] if self.taps == ("last",) else self.taps[0]
        stage = setup.network.get_submodule(setup.taps.get(role, role))
        epochs = 4 / 15 * setup.epochs if self.ramp_epochs is None else self.ramp_epochs
        ramp_samples = float(epochs * setup.samples)
        return Branches(stage, self.branches, shapes[1][1], setup.classes, ramp_samples)

    def update(self, student: Views, teachers: tuple[Views, ...], batch: Batch, state: Any) -> None:
        """Advance the clock of the ramp."""
        state.seen += len(student[0])
