"""DSD: what a layer adds to the attention of the one before, and how classes share pixels."""

from __future__ import annotations

from itertools import combinations, pairwise
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat

from kdpipe.stages.distill.dense.logits import Resize, require_same_classes
from kdpipe.stages.distill.feature.maps import pooled, require_maps
from kdpipe.stages.distill.method import Batch, Method, Need, Setup, Views

if TYPE_CHECKING:
    from torch import Tensor


class DSD(Method):
    """`pixel * PSD + category * CSD`.

    PSD: `||n(A_m - A_l) - n(A'_m - A'_l)||^2`, mean over pairs of layers and the batch, where
    `A = n(mean_c F^2)` is a layer's attention over the pixels and n makes unit vectors; maps of
    different sizes are pooled to the smallest. CSD: `mean (G_s - G_t)^2` over batch and pairs of
    classes, where `G_ij` is the cosine between the probabilities of classes i and j over the
    pixels, p = softmax over classes of z / T. Zero when both networks agree. Channels may differ.

    Pairs are neighbours in the paper. `normalise: reference` is CIRKD's code: all pairs; for CSD
    logits are pooled 2 x 2, softmax runs over the pixels, and G holds inner products. These are of
    the order of 1 / HW, so that there its CSD hardly counts. It divides PSD by the pixels too: its
    factor of 1000 on maps of 64 x 128 is 0.12 here, where maps of every size count alike.
    Defaults: factors 0.1 and 10, T = 4.
    """

    summary: ClassVar[str] = "match what layers add to attention, and how classes share pixels"
    paper: ClassVar[str] = "Feng, Sun, Diao, Li, Gao 2021, arXiv:2107.08591"
    needs: ClassVar[tuple[Need, ...]] = ("features", "logits", "dense")
    resizes: ClassVar[bool] = True

    kind: Literal["dsd"] = "dsd"
    taps: tuple[str, ...] = Field(("stages",), description="two or more layers, early ones first")
    pixel: NonNegativeFloat = Field(0.1, description="factor of the attention term")
    category: NonNegativeFloat = Field(10.0, description="factor of the term on classes")
    temperature: PositiveFloat = Field(4.0, description="softens the class probabilities")
    normalise: Literal["paper", "reference"] = Field(
        "paper", description="the paper's pairs and correlations, or those of CIRKD's code"
    )
    resize: Resize = Field("student", description="to whose size the other's logits are brought")

    def student_roles(self) -> tuple[str, ...]:
        """The layers, then the logits."""
        return *self.taps, "logits"

    def teacher_roles(self) -> tuple[str, ...]:
        """The layers, then the logits."""
        return *(self.teacher_taps or self.taps), "logits"

    def build(self, setup: Setup) -> None:
        """Nothing to learn; only checks."""
        require_maps(self, setup)
        require_same_classes(self, setup)
        self.require(
            len(setup.student) > 2,
            "looks at what changes from layer to layer",
            found=f"{len(setup.student) - 1} layer besides the logits",
            fix="name two or more layers under `taps`",
        )

    def loss(self, student: Views, teacher: Views, batch: Batch, state: Any) -> Tensor:
        """The formula of the class docstring."""
        from torch.nn import functional as F

        from kdpipe.stages.distill.dense._maps import matched

        layers = (*student[:-1], *teacher[:-1])
        size = min(f.shape[2] for f in layers), min(f.shape[3] for f in layers)
        gaps = self._residuals(student[:-1], size) - self._residuals(teacher[:-1], size)
        pixel = gaps.square().sum(dim=2).mean()
        z_s, z_t = matched(student[-1], teacher[-1], self.resize)
        category = F.mse_loss(self._correlations(z_s), self._correlations(z_t))
        return self.pixel * pixel + self.category * category

    def _residuals(self, maps: Views, size: tuple[int, int]) -> Tensor:
        """(pairs, B, pixels): unit differences between the attention of two layers."""
        import torch
        from torch.nn import functional as F

        from kdpipe.stages.distill.dense._maps import unit

        energies = [pooled(f.square().mean(dim=1, keepdim=True), size) for f in maps]
        layers = [F.normalize(energy.flatten(1), dim=1) for energy in energies]
        pairs = pairwise(layers) if self.normalise == "paper" else combinations(layers, 2)
        return torch.stack([unit(late - early) for early, late in pairs])

    def _correlations(self, z: Tensor) -> Tensor:
        """(B, C, C)."""
        from torch.nn import functional as F

        from kdpipe.stages.distill.dense._maps import unit

        if self.normalise == "paper":
            p = unit(F.softmax(z / self.temperature, dim=1).flatten(2), dim=2)
        else:
            halved = F.avg_pool2d(z, 2, ceil_mode=True)
            p = F.softmax(halved.flatten(2) / self.temperature, dim=2)
        return p @ p.transpose(1, 2)
