"""DS-CNN: a stem and depthwise separable blocks (Zhang et al. 2017, "Hello Edge").

Unlike `mobilenet.py` it has neither expansion nor shortcuts: the least a microcontroller needs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from kdpipe.stages.models.family import Argument, Arguments, Family, Group, Number, channels, kept

if TYPE_CHECKING:
    from torch import nn

_BASE = 64


class DSCNN(Family):
    """`dscnn` with `width` (of 64 channels) and `blocks` in each of its two stages.

    The paper's DS-CNN-S has four blocks of 64 channels behind a stem made for audio features
    (10x4); here the stem is 3x3 with stride 2, and the second stage halves the resolution.
    """

    summary: ClassVar[str] = "depthwise separable CNN for microcontrollers (Zhang et al. 2017)"
    taps: ClassVar[Mapping[str, str]] = {
        "stage1": "stage1",
        "stage2": "stage2",
        "embedding": "head:in",
        "logits": "head",
    }

    def names(self) -> tuple[str, ...]:
        """One name; the arguments give the size."""
        return ("dscnn",)

    def options(self, name: str) -> Mapping[str, Number]:
        """`blocks` per stage and the `width` multiplier."""
        return {"blocks": Number(2, 1, 100, whole=True), "width": Number(1.0, 0.05, 16)}

    def layout(self, name: str, arguments: Arguments) -> tuple[Group, ...]:
        """Two equal stages."""
        group = Group(int(arguments["blocks"]), channels(_BASE, float(arguments["width"])))
        return (group, group)

    def scaled(
        self, name: str, arguments: Arguments, depth: float, width: float
    ) -> tuple[str, dict[str, Argument]]:
        """Depth acts on the blocks of each stage."""
        blocks = kept(int(arguments["blocks"]), depth)
        return name, {"blocks": blocks, "width": float(arguments["width"]) * width}

    def build(self, name: str, arguments: Arguments, in_channels: int, classes: int) -> nn.Module:
        """`stem`, `stage1`, `stage2`, `pool`, `flatten`, `head`."""
        from kdpipe.stages.models.layers import classifier, conv

        groups = self.layout(name, arguments)
        c = groups[0].channels
        features: dict[str, nn.Module] = {"stem": conv(in_channels, c, stride=2)}
        for number, group in enumerate(groups, start=1):
            features[f"stage{number}"] = _stage(c, group.blocks, stride=number)
        return classifier(features, c, classes)


def _stage(c: int, blocks: int, stride: int) -> nn.Sequential:
    """Blocks of a depthwise 3x3 and a pointwise convolution; the first one has the stride."""
    from torch import nn

    from kdpipe.stages.models.layers import conv

    strides = [stride] + [1] * (blocks - 1)
    return nn.Sequential(
        *(nn.Sequential(conv(c, c, stride=step, groups=c), conv(c, c, 1)) for step in strides)
    )
