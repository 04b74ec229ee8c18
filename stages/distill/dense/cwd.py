"""CWD: where in the image each channel is active, as a distribution over its pixels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat

from kdpipe.stages.distill.dense.logits import Resize
from kdpipe.stages.distill.feature.maps import matchers, require_maps
from kdpipe.stages.distill.method import Batch, Method, Need, Setup, Views

if TYPE_CHECKING:
    from torch import Tensor, nn


class CWD(Method):
    """`T^2 KL(p_t || p_s)` of each channel, p = softmax over its H W pixels of map / T.

    Mean over the channels and the batch, summed over taps; maps are (B, C, H, W). A student with
    another number of channels gets a 1x1 convolution. Zero when both maps agree. Defaults for
    logits: T = 4, weight 3; the authors' features have weight 50 (`taps: [last]`). Codes that
    divide by pixels instead of channels need other weights.
    """

    summary: ClassVar[str] = "match where each channel is active, over all pixels"
    paper: ClassVar[str] = "Shu et al. 2021, arXiv:2011.13256"
    needs: ClassVar[tuple[Need, ...]] = ("logits", "dense")
    resizes: ClassVar[bool] = True

    kind: Literal["cwd"] = "cwd"
    weight: NonNegativeFloat = Field(3.0, description="factor of this term in the total loss")
    temperature: PositiveFloat = Field(4.0, description="softens both distributions")
    resize: Resize = Field("student", description="to whose size the other's maps are brought")

    def build(self, setup: Setup) -> nn.Module:
        """A 1x1 convolution for each tap where the channels differ."""
        require_maps(self, setup)
        return matchers(setup)

    def loss(self, student: Views, teacher: Views, batch: Batch, state: Any) -> Tensor:
        """The sum over taps of the formula of the class docstring."""
        import torch

        pairs = zip(state, student, teacher, strict=True)
        return torch.stack([self._one(connect(s), t) for connect, s, t in pairs]).sum()

    def _one(self, student: Tensor, teacher: Tensor) -> Tensor:
        from torch.nn import functional as F

        from kdpipe.stages.distill.dense._maps import matched

        T = self.temperature
        maps = matched(student, teacher, self.resize)
        log_p_s, log_p_t = (F.log_softmax(m.flatten(2) / T, dim=2) for m in maps)
        kl = F.kl_div(log_p_s, log_p_t, reduction="none", log_target=True).sum(dim=2)
        return T * T * kl.mean()
