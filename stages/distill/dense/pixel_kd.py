"""Pixel-wise KD: the softened class probabilities of every pixel that counts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, PositiveFloat

from kdpipe.stages.distill.dense.logits import Masked, Resize, require_same_classes
from kdpipe.stages.distill.feature.maps import require_maps
from kdpipe.stages.distill.method import Batch, Need, Setup, Views
from kdpipe.stages.distill.response.kd import kd

if TYPE_CHECKING:
    from torch import Tensor


class PixelKD(Masked):
    """`T^2 KL(softmax(z_t / T) || softmax(z_s / T))` of each pixel, mean over those that count.

    Logits are (B, C, H, W). Pixels labelled `ignore_index` (padding, borders) have no influence,
    unlike in the published codes, which distil whatever the teacher says about them. `normalise:
    reference` sums over the images of a batch instead (Liu et al.'s code, which has T = 1 and uses
    weight 10). Zero when both networks agree. Defaults, weight 1 and T = 1: CIRKD's recipes for
    the mean. The gradient of Liu et al.'s cross entropy is the same.
    """

    summary: ClassVar[str] = "match the class probabilities of every labelled pixel"
    paper: ClassVar[str] = "Liu et al. 2019, arXiv:1903.04197"
    needs: ClassVar[tuple[Need, ...]] = ("logits", "dense")
    resizes: ClassVar[bool] = True

    kind: Literal["pixel_kd"] = "pixel_kd"
    temperature: PositiveFloat = Field(1.0, description="softens both distributions")
    normalise: Literal["paper", "reference"] = Field(
        "paper", description="mean over all pixels, or its sum over the images of the batch"
    )
    resize: Resize = Field("student", description="to whose size the other's logits are brought")

    def build(self, setup: Setup) -> None:
        """Nothing to learn; only a check."""
        require_maps(self, setup, most=1)
        require_same_classes(self, setup)

    def loss(self, student: Views, teacher: Views, batch: Batch, state: Any) -> Tensor:
        """The formula of the class docstring."""
        from kdpipe.stages.distill.dense._maps import counted, masked_mean, matched

        z_s, z_t = matched(student[0], teacher[0], self.resize)
        each = kd(z_s, z_t, self.temperature)
        images = len(each) if self.normalise == "reference" else 1
        return images * masked_mean(each, counted(batch, each, self.ignore_index))
