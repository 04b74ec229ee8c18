"""Adversarial logits: a discriminator cannot tell whose class probabilities it sees."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, NonNegativeFloat

from kdpipe.stages.distill.adversarial.base import Adversarial
from kdpipe.stages.distill.feature.maps import at_one_size
from kdpipe.stages.distill.method import Need, Setup, Views

if TYPE_CHECKING:
    from torch import Tensor, nn


class AdversarialLogits(Adversarial):
    """The game of `Adversarial` on class probabilities softmax(z), (B, C) or (B, C, H, W).

    Maps are brought to the smaller size of the two. Where the discriminator cannot tell the
    networks apart (D = 0) the term is ln 2 and the opponent's loss 2 ln 2. It is no distance: a
    student that permutes its teacher's answers over the samples is as good, so use it beside `kd`,
    as the paper uses it beside an L1 term. The paper's discriminator also classifies; this one
    does not. Default weight: 1, as at the 0.1 of other adversarial terms the gradient is a
    thousandth of that of cross entropy.
    """

    summary: ClassVar[str] = "class probabilities that a discriminator takes for the teacher's"
    paper: ClassVar[str] = "Xu, Hsu, Huang 2017, arXiv:1709.00513"
    needs: ClassVar[tuple[Need, ...]] = ("logits", "opponent")
    resizes: ClassVar[bool] = True

    kind: Literal["adversarial_logits"] = "adversarial_logits"
    weight: NonNegativeFloat = Field(1.0, description="factor of this term in the total loss")

    def build(self, setup: Setup) -> nn.Module:
        """The discriminator."""
        from torch import nn

        from kdpipe.stages.distill.adversarial._gan import discriminator

        shapes = {(len(shape), shape[1]) for shape in (*setup.student, *setup.teacher)}
        self.require(
            len(setup.student) == len(setup.teacher) == len(shapes) == 1
            and len(setup.student[0]) in (2, 4),
            "compares logits (B, C) or (B, C, H, W) of the same classes, one of each network",
            found=f"shapes {setup.student} of the student, {setup.teacher} of the teacher",
            fix="use a teacher of the same task, or `adversarial_features`",
        )
        state = nn.Module()
        state.opponent = discriminator(setup.student[0], self.width)
        return state

    def compared(self, student: Views, teacher: Views, state: Any) -> tuple[Tensor, Tensor]:
        """The class probabilities of both."""
        from torch.nn import functional as F

        z_s, z_t = student[0], teacher[0]
        p_s, p_t = F.softmax(z_s, dim=1), F.softmax(z_t, dim=1)
        return at_one_size(p_s, p_t) if p_s.ndim == 4 else (p_s, p_t)
