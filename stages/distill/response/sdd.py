"""SDD: the logits of every part of the image, at several scales, each learned for itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from kdpipe.stages.distill.method import Batch, Method, Need, Setup, Views
from kdpipe.stages.distill.response.dkd import dkd
from kdpipe.stages.distill.response.kd import kd
from kdpipe.stages.distill.response.labelled import require_class_scores
from kdpipe.stages.distill.response.nkd import nkd

if TYPE_CHECKING:
    from torch import Tensor, nn

_BESIDES = ("logits", "head:weight", "head:bias")


class SDD(Method):
    """`mean over cells of w L(z_s, z_t, y)`, L being `kd`, `dkd` or `nkd` of one cell.

    The last feature map (B, c, H, W) is pooled to m x m cells for every m in `scales` that fits
    both networks' maps, and the classifier applied to each cell: its logits. The mean is over all
    cells of all scales and all samples (21 B at most), as in the authors' code. A cell whose top
    class in the teacher is not that of the teacher's logits tells of something else in the image:
    its w is `complementary`, else 1. That is the paper's rule; the code asks instead whether one
    of the two is right and the other wrong. With scales [1] it is L itself, for networks whose
    logits are a linear head on global average pooling, which the method takes for granted.

    At teacher == student zero for `kd` and `dkd`, for `nkd` its own value. Defaults as published
    for CIFAR-100: DKD with T 4, alpha 1, beta 8, weight 1, `complementary` 2; there the term ramps
    up, set `warmup_epochs` to 20. `kd` goes with weight 0.9 beside a supervised loss of 0.1.
    """

    summary: ClassVar[str] = "`kd`, `dkd` or `nkd` on the logits of image parts, at several scales"
    paper: ClassVar[str] = "Wei, Luo, Luo 2024, arXiv:2403.13512"
    needs: ClassVar[tuple[Need, ...]] = ("logits", "vectors", "features", "head", "labels")

    kind: Literal["sdd"] = "sdd"
    taps: tuple[str, ...] = Field(("last",), description="the map that the classifier reads")
    base: Literal["kd", "dkd", "nkd"] = Field("dkd", description="the loss of one cell")
    scales: tuple[PositiveInt, ...] = Field((1, 2, 4), min_length=1, description="cells per side")
    complementary: NonNegativeFloat = Field(2.0, description="weight of cells that disagree")
    temperature: PositiveFloat = Field(4.0, description="temperature of the loss of a cell")
    alpha: NonNegativeFloat = Field(1.0, description="`alpha` of `dkd`")
    beta: NonNegativeFloat = Field(8.0, description="`beta` of `dkd`")
    gamma: NonNegativeFloat = Field(1.5, description="`gamma` of `nkd`")

    def student_roles(self) -> tuple[str, ...]:
        """The map, the logits, and what makes them of it."""
        return (*super().student_roles(), *_BESIDES)

    def teacher_roles(self) -> tuple[str, ...]:
        """The map, the logits, and what makes them of it."""
        return (*super().teacher_roles(), *_BESIDES)

    def build(self, setup: Setup) -> nn.Module | None:
        """Nothing to build. Raises UsageError unless the classifier fits the map."""
        least = {"kd": 1, "nkd": 2, "dkd": 3}[self.base]
        require_class_scores(self, setup.student[-3], at_least=least)
        for shapes in (setup.student, setup.teacher):
            *maps, logits, head, _ = shapes
            self.require(
                len(maps) == 1 and len(maps[0]) == 4 and (logits[1], maps[0][1]) == head,
                "applies the classifier to every cell of one feature map",
                f"features {', '.join(map(str, maps))}, a classifier {head}, logits {logits}",
                "tap the map that is pooled for the classifier, e.g. `taps: [features]`",
            )
        self.require(
            bool(self._scales(setup.student[0], setup.teacher[0])),
            "needs a scale that fits the feature maps",
            f"`scales` {self.scales}, maps of {setup.student[0][2:]} and {setup.teacher[0][2:]}",
            "include 1 in `scales`",
        )
        return None

    def loss(self, student: Views, teacher: Views, batch: Batch, state: Any) -> Tensor:
        """The formula of the class docstring."""
        scales = self._scales(tuple(student[0].shape), tuple(teacher[0].shape))
        z_s, z_t = _cells(student, scales), _cells(teacher, scales)
        disagrees = z_t.argmax(dim=2) != teacher[1].argmax(dim=1, keepdim=True)
        w = 1 + (self.complementary - 1) * disagrees
        labels = batch["target"].repeat_interleave(z_t.shape[1])
        return (w.flatten() * self._base(z_s.flatten(0, 1), z_t.flatten(0, 1), labels)).mean()

    def _base(self, z_s: Tensor, z_t: Tensor, labels: Tensor) -> Tensor:
        """The loss of every row: logits (N, C), labels (N,) -> (N,)."""
        if self.base == "kd":
            return kd(z_s, z_t, self.temperature)
        if self.base == "nkd":
            return nkd(z_s, z_t, labels, self.temperature, self.gamma)
        return dkd(z_s, z_t, labels, self.temperature, self.alpha, self.beta)

    def _scales(self, *maps: tuple[int, ...]) -> tuple[int, ...]:
        smallest = min(side for shape in maps for side in shape[2:])
        return tuple(m for m in self.scales if m <= smallest)


def _cells(views: Views, scales: tuple[int, ...]) -> Tensor:
    """(map, logits, weight, bias) -> the logits of all cells, (B, cells, C)."""
    import torch
    from torch.nn import functional as F

    x, _, weight, bias = views
    pooled = [F.adaptive_avg_pool2d(x, m).flatten(2) for m in scales]
    return F.linear(torch.cat(pooled, dim=2).transpose(1, 2), weight, bias)
