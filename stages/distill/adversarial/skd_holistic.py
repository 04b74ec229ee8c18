"""SKD, holistic: a critic scores whole class maps together with their image."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, NonNegativeFloat, PositiveInt

from kdpipe.stages.distill.dense.logits import require_same_classes
from kdpipe.stages.distill.feature.maps import at_one_size, require_maps
from kdpipe.stages.distill.method import Batch, Method, Need, Setup, Views

if TYPE_CHECKING:
    from torch import Tensor, nn


class SKDHolistic(Method):
    """`-mean D(x, p_s)`: the student's class maps p = softmax(z) (B, C, H, W) please a critic D.

    The critic sees p beside the image x, brought to the size of p; both networks' p have the
    smaller size of the two. It minimises `mean D(x, p_s) - mean D(x, p_t) + penalty * mean_B
    (||grad_p D(x, p)|| - 1)^2` with p drawn uniformly, for each sample, between p_s and p_t:
    WGAN-GP (Gulrajani et al. 2017, arXiv:1704.00028). Means are over the batch and patches, the
    gradient is that of a sample's mean score.

    The term has no known minimum and may be negative; where both networks agree, nothing but the
    penalty is left of the critic's loss. The gradient of a length at 0, which makes other codes of
    this loss give NaN, is finite here: the length is sqrt(sum of squares + 1e-12). The critic has
    the paper's five convolutions and two self-attentions, and no spectral norm, as the penalty
    does its work. Default weight 0.1 and penalty 10: Liu et al.'s code.
    """

    summary: ClassVar[str] = "class maps that a critic, who sees the image, cannot tell apart"
    paper: ClassVar[str] = "Liu et al. 2019, arXiv:1903.04197"
    needs: ClassVar[tuple[Need, ...]] = ("logits", "dense", "opponent")
    resizes: ClassVar[bool] = True

    kind: Literal["skd_holistic"] = "skd_holistic"
    weight: NonNegativeFloat = Field(0.1, description="factor of this term in the total loss")
    penalty: NonNegativeFloat = Field(10.0, description="factor of the gradient penalty")
    width: PositiveInt = Field(64, description="channels of the critic's first layer")

    def student_roles(self) -> tuple[str, ...]:
        """The logits, and the image as the student gets it."""
        return *self.taps, ":in"

    def build(self, setup: Setup) -> nn.Module:
        """The critic."""
        from torch import nn

        from kdpipe.stages.distill.adversarial._gan import critic

        logits = replace(setup, student=setup.student[:-1])
        require_maps(self, logits, most=1)
        require_same_classes(self, logits)
        image, classes = setup.student[-1], setup.student[0][1]
        state = nn.Module()
        state.opponent = critic(image[1] + classes, self.width)
        return state

    def loss(self, student: Views, teacher: Views, batch: Batch, state: Any) -> Tensor:
        """The student's side of the game."""
        image, p_s, _ = self._compared(student, teacher)
        return -self._scores(state, image, p_s).mean()

    def opponent_loss(self, student: Views, teacher: Views, batch: Batch, state: Any) -> Tensor:
        """The critic's side."""
        import torch

        from kdpipe.stages.distill.adversarial._gan import squared_slopes

        image, p_s, p_t = self._compared(student, teacher)
        apart = self._scores(state, image, p_s).mean() - self._scores(state, image, p_t).mean()
        share = torch.rand(len(p_s), 1, 1, 1, dtype=p_s.dtype, device=p_s.device)
        between = torch.lerp(p_s, p_t, share)
        slopes = squared_slopes(lambda p: self._scores(state, image, p), between)
        return apart + self.penalty * ((slopes + 1e-12).sqrt() - 1).square().mean()

    def _compared(self, student: Views, teacher: Views) -> tuple[Tensor, Tensor, Tensor]:
        """The image and both networks' class maps, all of one size."""
        from torch.nn import functional as F

        from kdpipe.stages.distill.dense._maps import matched

        z_s, image = student
        p_s, p_t = at_one_size(F.softmax(z_s, dim=1), F.softmax(teacher[0], dim=1))
        return matched(p_s, image, "student")[1], p_s, p_t

    @staticmethod
    def _scores(state: Any, image: Tensor, p: Tensor) -> Tensor:
        import torch

        from kdpipe.stages.distill.adversarial._gan import scores

        return scores(state.opponent, torch.cat([image, p], dim=1))
