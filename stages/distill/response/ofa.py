"""OFA-KD: every stage of the student answers for itself, and is told what the teacher answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, PositiveFloat

from kdpipe.stages.distill.method import Batch, Method, Need, Setup, Views
from kdpipe.stages.distill.response.labelled import require_class_scores

if TYPE_CHECKING:
    from torch import Tensor, nn


class OFA(Method):
    """Over the final logits and a branch per stage, the sum of `-sum_c t[c] ln p_s[c]`, mean_B.

    The adaptive target is `t[c] = (p_t[c] + 1[c = y])^eps - 1[c = y]`; p is the softmax of
    logits / T, without T^2. With eps 1 the target is p_t; a larger one raises the label where the
    teacher is sure of it and shrinks the other classes, so that t sums to more or less than 1 and
    the gradient at teacher == student is zero for eps 1 only, where the value is the entropy of
    p_t for each head. This is the form of the authors' code, beside a supervised loss of weight
    1. A branch is global average pooling (of maps, or of tokens) and a linear classifier; the
    paper has a few layers of the student's kind before it. Only the student's features are seen,
    so the architectures may differ altogether. Defaults: T 1 and weights 1 as published, eps 1.5
    as for ResNet-18 on ImageNet (1 on CIFAR-100).
    """

    summary: ClassVar[str] = "the teacher's answer, sharpened at the label, for every stage"
    paper: ClassVar[str] = "Hao et al. 2023, arXiv:2310.19444"
    needs: ClassVar[tuple[Need, ...]] = ("logits", "vectors", "features", "labels", "connector")

    kind: Literal["ofa"] = "ofa"
    taps: tuple[str, ...] = Field(("stages",), description="the student's features with a branch")
    teacher_taps: tuple[str, ...] | None = Field(
        ("logits",), description="what all branches are compared with"
    )
    temperature: PositiveFloat = Field(1.0, description="softens both distributions")
    eps: float = Field(1.5, ge=1, description="how much the label is enhanced; 1: not at all")

    def student_roles(self) -> tuple[str, ...]:
        """The logits, and the features with a branch."""
        return ("logits", *self.taps)

    def build(self, setup: Setup) -> nn.Module | None:
        """A linear classifier for each feature, in the order of the taps."""
        from torch import nn

        logits, *features = setup.student
        require_class_scores(self, logits)
        self.require(
            setup.teacher[0][1:] == logits[1:],
            "compares answers about the same classes",
            f"outputs of shape {logits} of the student and {setup.teacher[0]} of the teacher",
            "leave `teacher_taps` as it is: `logits`",
        )
        return nn.ModuleList(nn.Linear(_channels(shape), logits[1]) for shape in features)

    def loss(self, student: Views, teacher: Views, batch: Batch, state: Any) -> Tensor:
        """The formula of the class docstring."""
        import torch

        z_s, *features = student
        heads = [z_s, *(branch(_pooled(x)) for branch, x in zip(state, features, strict=True))]
        targets = teacher[0], batch["target"]
        terms = [ofa(z, *targets, self.temperature, self.eps) for z in heads]
        return torch.stack(terms).sum(dim=0).mean()


def ofa(z_s: Tensor, z_t: Tensor, labels: Tensor, temperature: float, eps: float) -> Tensor:
    """The cross-entropy of every row with its adaptive target: logits (N, C) -> (N,)."""
    from torch.nn import functional as F

    label = F.one_hot(labels, z_t.shape[1])
    target = ((z_t / temperature).softmax(dim=1) + label) ** eps - label
    return -(target * F.log_softmax(z_s / temperature, dim=1)).sum(dim=1)


def _channels(shape: tuple[int, ...]) -> int:
    """The channels of a map (B, c, ...), of tokens (B, n, c) or of a vector (B, c)."""
    return shape[2] if len(shape) == 3 else shape[1]


def _pooled(x: Tensor) -> Tensor:
    """A map, tokens or a vector -> (B, c)."""
    return x.mean(dim=1) if x.ndim == 3 else x.flatten(2).mean(dim=2) if x.ndim > 3 else x
