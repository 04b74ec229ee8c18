"""SRRL: the teacher's own classifier must read the student's embedding as it reads its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, NonNegativeFloat

from kdpipe.stages.distill.feature.embeddings import embedding_widths
from kdpipe.stages.distill.method import Batch, Method, Need, Setup, Views

if TYPE_CHECKING:
    from torch import Tensor, nn


class SRRL(Method):
    """`alpha mean (r(e_s) - e_t)^2 + beta mean (W_t r(e_s) + b_t - z_t)^2`, over all elements.

    e_s (B, D_s) and e_t (B, D_t) are what enters the classifiers, W_t (C, D_t) and b_t the
    teacher's, which stay as they are; z_t (B, C) are its logits. The regressor r is a linear
    layer, BatchNorm and ReLU, as the teacher's embedding is an average of ReLU outputs; a teacher
    whose embedding has negative numbers needs `relu: false`. Zero when r(e_s) = e_t.

    Defaults: alpha = beta = 1, as in the authors' configurations.
    """

    summary: ClassVar[str] = "match the embedding, and its logits by the teacher's classifier"
    paper: ClassVar[str] = "Yang, Martinez, Bulat, Tzimiropoulos 2021, ICLR, openreview ZzwDy_wiWv"
    needs: ClassVar[tuple[Need, ...]] = ("embedding", "logits", "vectors", "head", "connector")

    kind: Literal["srrl"] = "srrl"
    taps: tuple[str, ...] = Field(("embedding",), description="what enters the classifier")
    alpha: NonNegativeFloat = Field(1.0, description="weight of matching the embedding")
    beta: NonNegativeFloat = Field(1.0, description="weight of matching the logits made of it")
    relu: bool = Field(True, description="end the regressor with a ReLU, as the embedding does")

    def teacher_roles(self) -> tuple[str, ...]:
        """The embedding, the logits and the classifier that makes one of the other."""
        return (*super().teacher_roles(), "logits", "head:weight", "head:bias")

    def build(self, setup: Setup) -> nn.Module:
        """The regressor."""
        from torch import nn

        d_s, d_t = embedding_widths(self, setup, others=3)
        _, logits, head, _ = setup.teacher
        self.require(
            head[1] == d_t and len(logits) == 2,
            "needs a teacher whose embedding enters its linear classifier",
            found=f"an embedding of {d_t}, a classifier of shape {head}, logits {logits}",
            fix="teacher_taps: [embedding], what enters the last linear layer",
        )
        layers = nn.Linear(d_s, d_t, bias=False), nn.BatchNorm1d(d_t)
        return nn.Sequential(*layers, nn.ReLU()) if self.relu else nn.Sequential(*layers)

    def loss(self, student: Views, teacher: Views, batch: Batch, state: Any) -> Tensor:
        """The formula of the class docstring."""
        from torch.nn import functional as F

        e_t, z_t, weight, bias = teacher
        e_s = state(student[0].flatten(1))
        feature = F.mse_loss(e_s, e_t.flatten(1))
        return self.alpha * feature + self.beta * F.mse_loss(F.linear(e_s, weight, bias), z_t)
