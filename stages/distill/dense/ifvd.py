"""IFVD: how far each pixel's feature is from the centre of its class."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, NonNegativeFloat

from kdpipe.stages.distill.dense.logits import Masked
from kdpipe.stages.distill.feature.maps import pairs, require_maps
from kdpipe.stages.distill.method import Batch, Need, Setup, Views

if TYPE_CHECKING:
    from torch import Tensor, nn


class IFVD(Masked):
    """`mean (cos_s - cos_t)^2`, cos the cosine between a pixel's feature and its class's centre.

    Maps are (B, C, H, W), brought to the smaller size of the two; labels to the same size, each
    the nearest one. A centre is the mean feature of a class in one image. The mean is over the
    pixels that have a class: those labelled `ignore_index`, or with a number that is no class,
    neither count nor move a centre. Channels may differ. Zero when both maps agree. Default
    weight 20, as in CIRKD's recipes.
    """

    summary: ClassVar[str] = "match how far each pixel is from the centre of its class"
    paper: ClassVar[str] = "Wang, Zhou, Jiang, Bai, Xu 2020, ECCV"
    needs: ClassVar[tuple[Need, ...]] = ("features", "labels", "dense")

    kind: Literal["ifvd"] = "ifvd"
    weight: NonNegativeFloat = Field(20.0, description="factor of this term in the total loss")
    taps: tuple[str, ...] = Field(("last",), description="maps that are compared, one or more")

    def build(self, setup: Setup) -> nn.Module:
        """The class numbers."""
        import torch
        from torch import nn

        require_maps(self, setup)
        state = nn.Module()
        state.register_buffer("classes", torch.arange(setup.classes))
        return state

    def loss(self, student: Views, teacher: Views, batch: Batch, state: Any) -> Tensor:
        """The sum over taps of the formula of the class docstring."""
        import torch

        from kdpipe.stages.distill.dense._maps import masked_mean, members

        terms = []
        for f_s, f_t in pairs(student, teacher):
            owned = members(batch, f_s, state.classes, self.ignore_index)
            gap = _to_centre(f_s.flatten(2), owned) - _to_centre(f_t.flatten(2), owned)
            terms.append(masked_mean(gap.square(), owned.sum(dim=1)))
        return torch.stack(terms).sum()


def _to_centre(features: Tensor, owned: Tensor) -> Tensor:
    """The cosine of each feature (B, c, N) to its class's centre, (B, N); `owned` is (B, C, N)."""
    from kdpipe.stages.distill.dense._maps import unit

    sizes = owned.sum(dim=2).clamp(min=1)
    centres = features @ owned.transpose(1, 2) / sizes[:, None]
    return (unit(features) * unit(centres @ owned)).sum(dim=1)
