"""MobileNetV2 for small images: inverted residuals with ReLU6 (Sandler et al. 2018, table 2).

Unlike `dscnn.py` it expands before each depthwise convolution and adds shortcuts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from kdpipe.stages.models.family import Argument, Arguments, Family, Group, Number, channels, kept

if TYPE_CHECKING:
    from torch import nn

# (stage, expansion, channels, blocks, stride). The strides of the stem and of the 24-channel
# group are 1, where the paper has 2, so that 32x32 images reach the head as 4x4, not 1x1.
_TABLE = (
    (1, 1, 16, 1, 1),
    (1, 6, 24, 2, 1),
    (2, 6, 32, 3, 2),
    (3, 6, 64, 4, 2),
    (3, 6, 96, 3, 1),
    (4, 6, 160, 3, 2),
    (4, 6, 320, 1, 1),
)
_STEM, _NECK = 32, 1280


class MobileNet(Family):
    """`mobilenet` with `width` (all channels, the last 1280 too) and `depth` (all repeats)."""

    summary: ClassVar[str] = "MobileNetV2 for small images (Sandler et al. 2018)"
    taps: ClassVar[Mapping[str, str]] = {
        "stage1": "stage1",
        "stage2": "stage2",
        "stage3": "stage3",
        "stage4": "stage4",
        "embedding": "head:in",
        "logits": "head",
    }

    def names(self) -> tuple[str, ...]:
        """One name; the arguments give the size."""
        return ("mobilenet",)

    def options(self, name: str) -> Mapping[str, Number]:
        """`width` and `depth` multipliers."""
        return {"width": Number(1.0, 0.05, 4), "depth": Number(1.0, 0.05, 4)}

    def layout(self, name: str, arguments: Arguments) -> tuple[Group, ...]:
        """One group for each row of the paper's table."""
        width, depth = float(arguments["width"]), float(arguments["depth"])
        return tuple(Group(kept(n, depth), channels(c, width)) for _, _, c, n, _ in _TABLE)

    def scaled(
        self, name: str, arguments: Arguments, depth: float, width: float
    ) -> tuple[str, dict[str, Argument]]:
        """Both multipliers multiply."""
        given = {"width": width, "depth": depth}
        return name, {key: float(arguments[key]) * share for key, share in given.items()}

    def build(self, name: str, arguments: Arguments, in_channels: int, classes: int) -> nn.Module:
        """`stem`, `stage1` ... `stage4`, `neck`, `pool`, `flatten`, `head`."""
        from torch import nn

        from kdpipe.stages.models.layers import classifier, conv

        width = float(arguments["width"])
        c_in = channels(_STEM, width)
        features: dict[str, nn.Sequential] = {"stem": conv(in_channels, c_in, activation=nn.ReLU6)}
        for row, group in zip(_TABLE, self.layout(name, arguments), strict=True):
            stage, expansion, _, _, stride = row
            blocks = features.setdefault(f"stage{stage}", nn.Sequential())
            for index in range(group.blocks):
                step = stride if index == 0 else 1
                blocks.append(_inverted_residual(c_in, group.channels, expansion, step))
                c_in = group.channels
        neck = channels(_NECK, width)
        features["neck"] = conv(c_in, neck, 1, activation=nn.ReLU6)
        return classifier(features, neck, classes)


def _inverted_residual(c_in: int, c_out: int, expansion: int, stride: int) -> nn.Module:
    """Expand (1x1), depthwise (3x3), project (1x1, linear); shortcut where shapes allow."""
    from torch import nn

    from kdpipe.stages.models.layers import Residual, conv

    hidden = c_in * expansion
    body = nn.Sequential()
    if expansion != 1:
        body.append(conv(c_in, hidden, 1, activation=nn.ReLU6))
    body.append(conv(hidden, hidden, stride=stride, groups=hidden, activation=nn.ReLU6))
    body.append(conv(hidden, c_out, 1, activation=nn.Identity))
    if stride == 1 and c_in == c_out:
        return Residual(body, nn.Identity(), nn.Identity())
    return body
