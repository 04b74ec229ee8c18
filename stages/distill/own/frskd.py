"""FRSKD: a teacher grown on the student's own maps, which refines them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from kdpipe.stages.distill.method import Batch, Method, Need, Setup, Views
from kdpipe.stages.distill.own._stages import require_stages
from kdpipe.stages.distill.own.soft import divergence

if TYPE_CHECKING:
    from torch import Tensor, nn


class FRSKD(Method):
    """`CE(z', y) + a T^2 KL(sg p' || p) + b sum_i mean (n(mean_c F_i^2) - sg n(mean_c T_i^2))^2`.

    A self-teacher (see `_frskd.py`) refines the student's maps F_i (B, c_i, h_i, w_i) to T_i of
    the same sizes, and classifies the last: z', p'. It learns from the labels, through the
    student's maps too; the student learns p' at temperature T and where the T_i look: n divides
    the flattened map of each sample by its length, the mean is over samples and positions. CE
    and KL are means over the batch. Where the two agree the last parts are 0 and the CE is left.

    The self-teacher is dropped afterwards. Defaults: T = 4, a = 2, b = 100, a network of twice
    the stages' channels: the authors' setup of ResNet-18 on CIFAR-100.
    """

    summary: ClassVar[str] = "a self-teacher refines the stages, and they follow it"
    paper: ClassVar[str] = "Ji, Shin, Hwang, Park, Moon 2021, arXiv:2103.08273"
    needs: ClassVar[tuple[Need, ...]] = ("logits", "vectors", "features", "labels", "connector")
    taught: ClassVar[bool] = False

    kind: Literal["frskd"] = "frskd"
    temperature: PositiveFloat = Field(4.0, description="softens both distributions")
    alpha: NonNegativeFloat = Field(2.0, description="a, factor of the logits' term")
    beta: NonNegativeFloat = Field(100.0, description="b, factor of the attention maps' term")
    width: PositiveInt = Field(2, description="channels of the self-teacher over the stages' own")
    taps: tuple[str, ...] = Field(("stages",), description="the maps that are refined, in order")

    def student_roles(self) -> tuple[str, ...]:
        """The stages, then the logits."""
        return (*self.taps, "logits")

    def build(self, setup: Setup) -> nn.Module:
        """The self-teacher."""
        from kdpipe.stages.distill.own._frskd import SelfTeacher

        return SelfTeacher(require_stages(self, setup), setup.classes, self.width)

    def loss(self, student: Views, teacher: Views, batch: Batch, state: Any) -> Tensor:
        """The formula of the class docstring."""
        from torch.nn import functional as F

        *maps, z = student
        refined, own = state(maps)
        total = F.cross_entropy(own, batch["target"])
        total = total + self.alpha * divergence(z, own, self.temperature)
        for f_s, f_t in zip(maps, refined, strict=True):
            gap = _attention(f_s) - _attention(f_t.detach())
            total = total + self.beta * gap.square().mean()
        return total


def _attention(f: Tensor) -> Tensor:
    """(B, c, h, w) -> (B, h w), each of length 1."""
    from torch.nn import functional as F

    return F.normalize(f.square().mean(dim=1).flatten(1), dim=1)
