"""CA-MKD: trust each teacher on each sample by how right it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, NonNegativeFloat

from kdpipe.stages.distill.ensemble.joint import JointMethod, divergences, stacked
from kdpipe.stages.distill.method import Batch, Need, Setup, Views

if TYPE_CHECKING:
    from torch import Tensor, nn


class CAMKD(JointMethod):
    """`mean_i sum_k w_ki T^2 KL(p_ki || p_si) + beta mean_i sum_k v_ki mean (r_k(F_s) - F_k)^2`.

    `w_k = (1 - softmax_k(CE_k)) / (K - 1)` per sample, CE_k being the cross-entropy of teacher k:
    who is right counts more. The weights of a sample sum to 1; one teacher has weight 1.

    The second term is there with a feature under `taps`, e.g. `taps: [logits, last]`: the map, or
    the vector, that enters the classifier. r_k is a 1x1 convolution (linear for vectors) and
    BatchNorm; the larger map is pooled to the smaller. v is as w, with the cross-entropy of
    `H_k(r_k(F_s))`, H_k being the teacher's own head, without gradient: how well its
    classifier reads the student. The mean of squares is over channels and positions.

    Zero when all logits (and features) agree. Defaults: T = 4, weight 1, beta = 50 of the paper.
    The authors' code divides both sums by K once more, lets gradient flow through v, and in
    their comparison with plain hints wraps losses in a new tensor, which learns nothing.
    """

    summary: ClassVar[str] = "match teachers, weighted per sample by their cross-entropy"
    paper: ClassVar[str] = "Zhang, Chen, Wang 2022, arXiv:2201.00007"
    needs: ClassVar[tuple[Need, ...]] = ("logits", "vectors", "labels", "several teachers")

    kind: Literal["ca_mkd"] = "ca_mkd"
    feature_weight: NonNegativeFloat = Field(50.0, description="beta, factor of the feature term")

    def student_roles(self) -> tuple[str, ...]:
        """The logits, then the feature if there is one."""
        return ("logits", *_features(self.taps))

    def teacher_roles(self) -> tuple[str, ...]:
        """The logits, then the feature and the classifier that reads it."""
        features = _features(self.teacher_taps or self.taps)
        return ("logits", *features, "head:weight", "head:bias") if features else ("logits",)

    def build(self, setup: Setup) -> nn.Module | None:
        """For each teacher one regressor from the student's feature to its own."""
        super().build(setup)
        theirs = [len(teacher) - 3 for teacher in setup.teachers if len(teacher) > 1]
        ours = len(setup.student) - 1
        self.require(
            ours <= 1 and all(count == ours for count in theirs),
            "compares one feature of each network at most",
            found=f"{ours} of the student, {theirs or [0]} of the teachers",
            fix="give `taps: [logits, last]`",
        )
        if not ours:
            return None
        from torch import nn

        return nn.ModuleList(self._regressor(setup.student[1], t) for t in setup.teachers)

    def _regressor(self, ours: tuple[int, ...], teacher: tuple[tuple[int, ...], ...]) -> nn.Module:
        from torch import nn

        theirs, head = teacher[1], teacher[2]
        self.require(
            len(ours) == len(theirs) and len(ours) in (2, 4) and theirs[1] == head[1],
            "compares the features that enter the classifiers",
            found=f"student {ours}, teacher {theirs}, its classifier {head}",
            fix="give `taps: [logits, last]` or `taps: [logits, embedding]`",
        )
        if len(ours) == 2:
            return nn.Sequential(
                nn.Linear(ours[1], theirs[1], bias=False), nn.BatchNorm1d(theirs[1])
            )
        size = min(ours[2], theirs[2]), min(ours[3], theirs[3])
        return nn.Sequential(
            nn.AdaptiveAvgPool2d(size),
            nn.Conv2d(ours[1], theirs[1], 1, bias=False),
            nn.BatchNorm2d(theirs[1]),
        )

    def joint_loss(
        self, student: Views, teachers: tuple[Views, ...], batch: Batch, state: Any
    ) -> Tensor:
        """The formula of the class docstring."""
        z_t, labels = stacked(teachers), batch["target"]
        kl = divergences(student[0], z_t, self.temperature)
        loss = (confidence(z_t, labels) * kl).sum(dim=0).mean()
        if state is None:
            return loss
        return loss + self.feature_weight * _feature_term(student[1], teachers, labels, state)


def _features(taps: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(tap for tap in taps if tap != "logits")


def confidence(z: Tensor, labels: Tensor) -> Tensor:
    """Weights (K, B, ...) of K predictions (K, B, C, ...), by their cross-entropy."""
    import torch
    from torch.nn import functional as F

    ce = torch.stack([F.cross_entropy(one, labels, reduction="none") for one in z])
    if len(z) == 1:
        return torch.ones_like(ce)
    return (1 - F.softmax(ce, dim=0)) / (len(z) - 1)


def _feature_term(f_s: Tensor, teachers: tuple[Views, ...], labels: Tensor, state: Any) -> Tensor:
    """The second term of the class docstring, without beta."""
    import torch
    from torch.nn import functional as F

    read, errors = [], []
    for regress, (_, f_t, weight, bias) in zip(state, teachers, strict=True):
        found = regress(f_s)
        target = f_t if f_t.ndim == 2 else F.adaptive_avg_pool2d(f_t, found.shape[2:])
        errors.append((found - target).square().flatten(1).mean(dim=1))
        pooled = found if found.ndim == 2 else found.mean((2, 3))
        read.append(F.linear(pooled, weight, bias).detach())
    v = confidence(torch.stack(read), labels)
    return (v * torch.stack(errors)).sum(dim=0).mean()
