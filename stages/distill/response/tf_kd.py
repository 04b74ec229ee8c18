"""Tf-KD: no teacher but one made up from the label, which is nearly always right."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat

from kdpipe.stages.distill.method import Batch, Method, Need, Setup, Views
from kdpipe.stages.distill.response.labelled import require_class_scores

if TYPE_CHECKING:
    from torch import Tensor, nn


class TFKD(Method):
    """`KL(u_T || p_s)`: summed over classes, mean over the batch; p_s is the plain softmax.

    The virtual teacher u gives the label `probability` and shares the rest among the C - 1 other
    classes; `u_T = u^(1 / T) / sum u^(1 / T)`, and T = 1 leaves it as it is. There is no T^2, the
    student being unsoftened. Zero when p_s is u_T. `normalise: reference` is the authors' code:
    there u_T is the softmax of u / T, as if u were logits, and the mean is over classes too, which
    makes the term C times smaller (that is why they multiply it by up to 100). Defaults:
    probability 0.99, T 20, and weight 0.1, what their alpha 0.1 and multiplier 100 come to for
    the 100 classes of CIFAR-100; beside it they give the supervised loss weight 0.9.
    """

    summary: ClassVar[str] = "match a made-up teacher that is nearly sure of the label"
    paper: ClassVar[str] = "Yuan et al. 2020, arXiv:1909.11723"
    needs: ClassVar[tuple[Need, ...]] = ("logits", "vectors", "labels")
    taught: ClassVar[bool] = False

    kind: Literal["tf_kd"] = "tf_kd"
    weight: NonNegativeFloat = Field(0.1, description="factor of this term in the total loss")
    probability: float = Field(0.99, gt=0, lt=1, description="what the virtual teacher gives y")
    temperature: PositiveFloat = Field(20.0, description="softens the virtual teacher")
    normalise: Literal["paper", "reference"] = Field(
        "paper", description="the formula, or the softening and the mean of the authors' code"
    )

    def build(self, setup: Setup) -> nn.Module | None:
        """Nothing to build. Raises UsageError where there are no two classes to tell apart."""
        require_class_scores(self, setup.student[0])
        return None

    def loss(self, student: Views, teacher: Views, batch: Batch, state: Any) -> Tensor:
        """The formula of the class docstring."""
        from torch.nn import functional as F

        z_s = student[0]
        log_u = self._virtual(z_s, batch["target"])
        log_p_s = F.log_softmax(z_s, dim=1)
        kl = F.kl_div(log_p_s, log_u, reduction="none", log_target=True)
        return kl.mean() if self.normalise == "reference" else kl.sum(dim=1).mean()

    def _virtual(self, z: Tensor, labels: Tensor) -> Tensor:
        """ln u_T for each label, shaped and typed like the logits z (B, C)."""
        import torch

        right, wrong = self.probability, (1 - self.probability) / (z.shape[1] - 1)
        if self.normalise == "paper":
            right, wrong = math.log(right), math.log(wrong)
        scores = torch.full_like(z, wrong).scatter(1, labels[:, None], right)
        return (scores / self.temperature).log_softmax(dim=1)
