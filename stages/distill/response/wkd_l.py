"""WKD-L: what it costs to move the student's probabilities to the teacher's, class by class."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from kdpipe.stages.distill.method import Batch, Method, Need, Setup, Views
from kdpipe.stages.distill.response.labelled import of_label, require_class_scores

if TYPE_CHECKING:
    from torch import Tensor, nn


class WKDL(Method):
    """`-p_t[y] ln p_s[y] + gamma W(q_s, q_t)`, mean over the batch.

    p is the softmax of logits (B, C) at temperature 1, q that of logits / T over the C - 1 classes
    beside the label y. W is the transport cost `sum_ij P[i, j] c[i, j]`, where P is what a fixed
    number of Sinkhorn steps, from the student's side last, make of the entropic optimal plan;
    `c[i, j] = 1 - exp(-kappa (1 - cos(w_i, w_j)))`, and w are the rows of the teacher's
    classifier: confusing similar classes costs little.

    At teacher == student W is small and not zero, as the entropy spreads the plan; the first term
    also asks for p_s[y] -> 1. The steps need memory and time of C^2 and not of B C^2, and work on
    logarithms: no 1e-8 in the divisions. Few steps with a small epsilon understate W.
    Defaults: the authors' for CIFAR-100 (WRN-40-2 to ShuffleNetV1): T 6, gamma 200, epsilon 0.05,
    10 steps, kappa 1; there c comes from the CKA of features of the train split, and gamma falls
    to 0 from epoch 150 to 240.
    """

    summary: ClassVar[str] = "transport between class probabilities, cheap among similar classes"
    paper: ClassVar[str] = "Lv, Yang, Li 2024, arXiv:2412.08139"
    needs: ClassVar[tuple[Need, ...]] = ("logits", "vectors", "labels", "head")

    kind: Literal["wkd_l"] = "wkd_l"
    temperature: PositiveFloat = Field(6.0, description="softens the classes beside the label")
    gamma: NonNegativeFloat = Field(200.0, description="factor of the transport cost")
    kappa: PositiveFloat = Field(1.0, description="how fast the cost grows with the distance")
    epsilon: float = Field(0.05, ge=0.025, description="weight of the plan's entropy")
    steps: PositiveInt = Field(10, description="Sinkhorn steps")

    def teacher_roles(self) -> tuple[str, ...]:
        """The logits, and the weights that make them."""
        return (*super().teacher_roles(), "head:weight")

    def build(self, setup: Setup) -> nn.Module | None:
        """Nothing to build. Raises UsageError unless there are two classes beside the label."""
        require_class_scores(self, setup.student[0], at_least=3)
        logits, weight = setup.teacher
        self.require(
            weight[0] == logits[1] == setup.student[0][1],
            "needs a row of the teacher's classifier for each class",
            f"{weight[0]} rows, and outputs of shape {logits}",
            "give the path of the last layer as the teacher's `logits`, or use `nkd`",
        )
        return None

    def loss(self, student: Views, teacher: Views, batch: Batch, state: Any) -> Tensor:
        """The formula of the class docstring."""
        from torch.nn import functional as F

        z_s, (z_t, weight), y = student[0], teacher, batch["target"]
        target = -of_label(z_t.softmax(dim=1), y) * of_label(F.log_softmax(z_s, dim=1), y)
        is_label = F.one_hot(y, z_s.shape[1]).bool()
        log_q_s, log_q_t = (
            F.log_softmax((z / self.temperature).masked_fill(is_label, -float("inf")), dim=1)
            for z in (z_s, z_t)
        )
        w = F.normalize(weight, dim=1, eps=1e-8)
        cost = 1 - (-self.kappa * (1 - w @ w.T).clamp_min(0)).exp()
        moved = transport(log_q_s, log_q_t, cost, self.epsilon, self.steps)
        return (target + self.gamma * moved).mean()


def transport(log_a: Tensor, log_b: Tensor, cost: Tensor, epsilon: float, steps: int) -> Tensor:
    """`sum P c` of each row's plan from a to b: (N, C), (N, C), symmetric (C, C) -> (N,).

    Sinkhorn's scalings of `K = exp(-c / epsilon)` (Cuturi 2013, arXiv:1306.0895): v takes b as
    the column sums, then u takes a as the row sums. Both are kept as logarithms, but for the last
    mean: a cost of 0 has no logarithm. A class with probability 0 (-inf) takes no part.
    """
    import torch

    K = (-cost / epsilon).exp()
    log_u = torch.zeros_like(log_a).masked_fill(log_a.isneginf(), -float("inf"))
    for _ in range(steps):
        log_v = log_b - _log_matmul(log_u, K)
        log_u = log_a - _log_matmul(log_v, K)
    v = _scaled(log_v)
    mean_cost = (v @ (K * cost)) / (v @ K)
    return (log_a.exp() * mean_cost).sum(dim=1)


def _log_matmul(log_x: Tensor, matrix: Tensor) -> Tensor:
    """`ln(exp(log_x) @ matrix)` for a non-negative matrix."""
    return (_scaled(log_x) @ matrix).log() + log_x.detach().amax(dim=1, keepdim=True)


def _scaled(log_x: Tensor) -> Tensor:
    """exp(log_x), each row divided by its largest entry."""
    return (log_x - log_x.detach().amax(dim=1, keepdim=True)).exp()
