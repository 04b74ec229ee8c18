"""BYOT: classifiers on the shallow stages, taught by the deepest one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat

from kdpipe.stages.distill.method import Batch, Method, Need, Setup, Views
from kdpipe.stages.distill.own._stages import require_stages
from kdpipe.stages.distill.own.soft import divergence

if TYPE_CHECKING:
    from torch import Tensor, nn


class BYOT(Method):
    """`sum_i (1 - a) CE(z_i, y) + a T^2 KL(sg p || p_i) + b |f_i - sg f|^2` over shallow stages.

    Every stage but the last gets a bottleneck (1x1 convolution, depthwise 3x3 ones that halve the
    map down to the last stage's size, and a 1x1 to its channels), whose pooled output f_i (B, c)
    a linear layer turns into z_i (B, C). p are the student's own softened probabilities, f its
    pooled last stage; both teach and get no gradient (sg), or the deep network would learn
    from the shallow ones. CE and KL are means over the batch; the square is summed over c, mean
    over the batch. Its minimum: 0 for the last two parts where the stages agree, plus the CE.

    The student's own CE is the supervised loss. The classifiers are dropped afterwards. The paper
    gives no values; the defaults, T = 3, a = 0.3 and b = 0.03, are those of MMRazor's setup of
    ResNet-18 on CIFAR-100. There b multiplies the root of the whole batch's sum of squares, not
    the paper's square; the gradients are equal where |f_i - f| is half the root of the batch
    size, 5.7 at 128.
    """

    summary: ClassVar[str] = "shallow stages with classifiers learn from the deepest"
    paper: ClassVar[str] = "Zhang et al. 2019, arXiv:1905.08094"
    needs: ClassVar[tuple[Need, ...]] = ("logits", "vectors", "features", "labels", "connector")
    taught: ClassVar[bool] = False

    kind: Literal["byot"] = "byot"
    temperature: PositiveFloat = Field(3.0, description="softens all distributions")
    alpha: float = Field(
        0.3, ge=0, le=1, description="share of the logits, the labels have the rest"
    )
    feature_weight: NonNegativeFloat = Field(0.03, description="b, factor of the features' term")
    taps: tuple[str, ...] = Field(("stages",), description="where classifiers are; deepest last")

    def student_roles(self) -> tuple[str, ...]:
        """The stages, then the logits."""
        return (*self.taps, "logits")

    def build(self, setup: Setup) -> nn.Module:
        """A bottleneck and a classifier for each stage but the last."""
        from torch import nn

        *shallow, deepest = require_stages(self, setup)
        state = nn.Module()
        state.bottlenecks = nn.ModuleList(_bottleneck(shape, deepest) for shape in shallow)
        state.heads = nn.ModuleList(nn.Linear(deepest[1], setup.classes) for _ in shallow)
        return state

    def loss(self, student: Views, teacher: Views, batch: Batch, state: Any) -> Tensor:
        """The formula of the class docstring."""
        from torch.nn import functional as F

        *shallow, deepest, z = student
        f = deepest.mean((2, 3)).detach()
        total = z.new_zeros(())
        for f_map, bottleneck, head in zip(shallow, state.bottlenecks, state.heads, strict=True):
            f_i = bottleneck(f_map).mean((2, 3))
            z_i = head(f_i)
            labelled = F.cross_entropy(z_i, batch["target"])
            soft = divergence(z_i, z, self.temperature)
            hint = (f_i - f).square().sum(dim=1).mean()
            total = total + (1 - self.alpha) * labelled + self.alpha * soft
            total = total + self.feature_weight * hint
        return total


def _bottleneck(shallow: tuple[int, ...], deepest: tuple[int, ...]) -> nn.Sequential:
    """(B, c, h, w) -> the channels of the deepest stage, halved while it is smaller."""
    from torch import nn

    width, height = max(deepest[1] // 4, 1), shallow[2]
    layers = [_conv(shallow[1], width, 1)]
    while height >= 2 * deepest[2]:
        layers.append(_conv(width, width, 3, stride=2, groups=width))
        height = (height + 1) // 2
    return nn.Sequential(*layers, _conv(width, deepest[1], 1))


def _conv(c_in: int, c_out: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    from torch import nn

    layer = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(c_out), nn.ReLU())
