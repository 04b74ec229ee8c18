"""SSKD: match what the networks say of turned images, and which image they take them for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat

from kdpipe.stages.distill.method import Batch, Method, Need, Setup, Views
from kdpipe.stages.distill.relation._geometry import unit
from kdpipe.stages.distill.response.kd import kd
from kdpipe.stages.views import Rotated, View

if TYPE_CHECKING:
    from torch import Tensor, nn


class SSKD(Method):
    """`logits * T^2 KL(p_t || p_s) + similarity * T'^2 KL(a_t || a_s)`, means over kept rows.

    The 3B images of the batch turned by 90, 180 and 270 degrees give `p = softmax(z / T)`, and
    `a = softmax_j(cos(h(e_turned), h(e_j)) / T')` over the B upright images j of the batch; h is a
    perceptron of one hidden layer on the embedding e. KL is summed over classes, or over j.

    Rows on which the teacher is right, about the class or about which image was turned, are all
    kept; of its mistakes only the share `keep_logits` or `keep_similarity`, those first where the
    right answer ranks highest. The teacher's h learns for `prepare_epochs` before the training, to
    tell which image was turned (cross-entropy over the cosines); the student's h learns along.

    Zero when both networks and both h agree. Defaults are those of the paper's code: factors 2.7
    and 10, T 4 and 0.5, shares 1 and 0.75, 60 epochs. There KD on the upright images goes along,
    at weight 0.9 with 0.1 for the labels: add `{kind: kd, weight: 0.9}` and `supervised: 0.1`.
    """

    summary: ClassVar[str] = "match logits of turned images, and which image they resemble"
    paper: ClassVar[str] = "Xu, Liu, Li, Loy 2020, arXiv:2006.07114"
    needs: ClassVar[tuple[Need, ...]] = (
        "logits", "vectors", "embedding", "labels", "views", "connector", "preparation",
    )  # fmt: skip
    views: ClassVar[Mapping[str, View]] = {"rotated": Rotated()}

    kind: Literal["sskd"] = "sskd"
    taps: tuple[str, ...] = Field(("embedding", "logits"), description="embedding and logits")
    logits: NonNegativeFloat = Field(2.7, description="factor of the logits of turned images")
    similarity: NonNegativeFloat = Field(10.0, description="factor of the similarities")
    temperature: PositiveFloat = Field(4.0, description="T, softens the logits")
    similarity_temperature: PositiveFloat = Field(0.5, description="T', divides the cosines")
    keep_logits: float = Field(1.0, ge=0, le=1, description="share of wrong logits that is kept")
    keep_similarity: float = Field(0.75, ge=0, le=1, description="share of wrong similarities")
    prepare_epochs: NonNegativeInt = Field(60, description="epochs in which the teacher's h learns")

    @property
    def prepares(self) -> int:
        """Epochs before the training in which the teacher's h learns."""
        return self.prepare_epochs

    def student_roles(self) -> tuple[str, ...]:
        """Both taps on the upright images, then both on the turned ones."""
        return (*self.taps, *(f"rotated/{tap}" for tap in self.taps))

    def teacher_roles(self) -> tuple[str, ...]:
        """The same of the teacher."""
        taps = self.teacher_taps or self.taps
        return (*taps, *(f"rotated/{tap}" for tap in taps))

    def build(self, setup: Setup) -> nn.Module:
        """The perceptron of each network; the teacher's is `prepared`."""
        from torch import nn

        found = f"{len(setup.student) // 2} and {len(setup.teacher) // 2} taps"
        two = len(setup.student) == len(setup.teacher) == 4
        fix = "give the embedding and the logits, in this order, in `taps`"
        self.require(two, "reads two taps of each network", found, fix)
        flat = len(setup.student[1]) == len(setup.teacher[1]) == 2
        found = f"logits {setup.student[1]} and {setup.teacher[1]}"
        self.require(flat, "classifies whole images", found, "use a method for dense outputs")
        state = nn.Module()
        for name, shapes in (("head", setup.student), ("prepared", setup.teacher)):
            width = math.prod(shapes[0][1:])
            layers = nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width)
            state.add_module(name, nn.Sequential(*layers))
        return state

    def loss(self, student: Views, teacher: Views, batch: Batch, state: Any) -> Tensor:
        """The formula of the class docstring."""
        z_s, z_t = student[3], teacher[3]
        turned = self.logits * _kept_kl(
            z_s, z_t, batch["target"].repeat(3), self.temperature, self.keep_logits
        )
        cos_s = _similarities(state.head, student)
        cos_t = _similarities(state.prepared, teacher)
        alike = _kept_kl(
            cos_s, cos_t, _origins(cos_t), self.similarity_temperature, self.keep_similarity
        )
        return turned + self.similarity * alike

    def prepare_loss(self, student: Views, teacher: Views, batch: Batch, state: Any) -> Tensor:
        """Cross-entropy of the teacher's cosines against which image was turned."""
        from torch.nn import functional as F

        cosines = _similarities(state.prepared, teacher)
        return F.cross_entropy(cosines, _origins(cosines))


def _similarities(head: nn.Module, views: Views) -> Tensor:
    """Cosines (3B, B) of turned and upright images."""
    upright, turned = (unit(head(views[n].flatten(1))) for n in (0, 2))
    return turned @ upright.T


def _origins(cosines: Tensor) -> Tensor:
    """Which upright image each row of (3B, B) was: the turn is the slow axis."""
    import torch

    return torch.arange(cosines.shape[1], device=cosines.device).repeat(3)


def _kept_kl(s: Tensor, t: Tensor, truth: Tensor, temperature: float, share: float) -> Tensor:
    """`T^2 KL`, the mean over the rows that are kept: (rows, choices), truth (rows,)."""
    kept = _kept(t, truth, share)
    return (kd(s, t, temperature) * kept).sum() / kept.sum().clamp(min=1)


def _kept(t: Tensor, truth: Tensor, share: float) -> Tensor:
    """Rows where `truth` scores highest, and the given share of the others, best ranks first."""
    rank = (t > t.gather(1, truth[:, None])).sum(dim=1)
    wrong = (rank > 0).sum()
    place = rank.argsort(stable=True).argsort()
    return place < len(rank) - wrong + (share * wrong).floor()
