"""CS-KD: answer alike for two samples of one class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, PositiveFloat

from kdpipe.stages.distill.method import Batch, Method, Need, Setup, Views
from kdpipe.stages.distill.own.soft import divergence
from kdpipe.stages.views import Partner, View

if TYPE_CHECKING:
    from torch import Tensor, nn


class CSKD(Method):
    """`T^2 KL(sg softmax(z' / T) || softmax(z / T))`: classes summed, mean over the batch.

    z are the logits (B, C) of a sample, z' those of its partner, another sample of the same class,
    that the student gives in the same step; z' gets no gradient (sg). It costs a second forward
    pass of the student. Zero when all samples of a class get one answer, right or wrong: the
    labels come from the supervised loss. Defaults: T = 4 and weight 1, those of the authors'
    code; the paper picks T from {1, 4} and the weight from {1, 2, 3, 4}.
    """

    summary: ClassVar[str] = "match the student's own answer for another sample of the class"
    paper: ClassVar[str] = "Yun, Park, Lee, Shin 2020, arXiv:2003.13964"
    needs: ClassVar[tuple[Need, ...]] = ("logits", "vectors", "labels", "views")
    taught: ClassVar[bool] = False
    views: ClassVar[Mapping[str, View]] = {"partner": Partner()}

    kind: Literal["cs_kd"] = "cs_kd"
    temperature: PositiveFloat = Field(4.0, description="softens both distributions")

    def student_roles(self) -> tuple[str, ...]:
        """The logits of the samples, then those of their partners."""
        return (*self.taps, *(f"partner/{tap}" for tap in self.taps))

    def build(self, setup: Setup) -> nn.Module | None:
        """Nothing to learn; one answer for each sample is compared."""
        found = f"{len(setup.student) // 2} taps with shapes {setup.student}"
        single = len(setup.student) == 2 and all(len(shape) == 2 for shape in setup.student)
        self.require(single, "compares the logits (B, C) of samples", found, "taps: [logits]")
        return None

    def loss(self, student: Views, teacher: Views, batch: Batch, state: Any) -> Tensor:
        """The formula of the class docstring."""
        z, partner = student
        return divergence(z, partner, self.temperature)
