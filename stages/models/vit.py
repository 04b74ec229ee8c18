"""Small vision transformers (Dosovitskiy et al. 2021) with maps as stages.

Unlike the convolutional families every token sees all others. What the paper learns as one position
per patch is a depthwise convolution here (Chu et al. 2021, arXiv:2102.10882): it fits every number
of patches, and the mean over tokens replaces the class token.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import gcd
from typing import TYPE_CHECKING, ClassVar

from kdpipe.stages.models.family import Argument, Arguments, Family, Group, Number, channels, kept
from kdpipe.targets.errors import UsageError

if TYPE_CHECKING:
    from torch import nn

_BASE = 64
_STAGES = 2


class ViT(Family):
    """`vit` with `blocks` in each of its two stages, `width` (of 64 channels) and `patch` pixels.

    Four heads, an MLP of four times the width, norms before attention and MLP (pre-norm).
    """

    summary: ClassVar[str] = "small vision transformers (Dosovitskiy et al. 2021)"
    taps: ClassVar[Mapping[str, str]] = {
        "stage1": "stage1",
        "stage2": "stage2",
        "embedding": "head:in",
        "logits": "head",
    }

    def names(self) -> tuple[str, ...]:
        """One name; the arguments give the size."""
        return ("vit",)

    def options(self, name: str) -> Mapping[str, Number]:
        """`blocks` per stage, the `width` multiplier and the `patch` size."""
        return {
            "blocks": Number(2, 1, 100, whole=True),
            "width": Number(1.0, 0.05, 16),
            "patch": Number(4, 1, 32, whole=True),
        }

    def layout(self, name: str, arguments: Arguments) -> tuple[Group, ...]:
        """Two equal stages."""
        group = Group(int(arguments["blocks"]), channels(_BASE, float(arguments["width"])))
        return (group,) * _STAGES

    def scaled(
        self, name: str, arguments: Arguments, depth: float, width: float
    ) -> tuple[str, dict[str, Argument]]:
        """Depth acts on the blocks of each stage; the patch stays."""
        return name, {
            "blocks": kept(int(arguments["blocks"]), depth),
            "width": float(arguments["width"]) * width,
            "patch": arguments["patch"],
        }

    def check_size(self, name: str, arguments: Arguments, height: int, width: int) -> None:
        """Raise UsageError unless patches cover the image: what is left over would not be seen."""
        patch = int(arguments["patch"])
        if height % patch == 0 and width % patch == 0:
            return
        fits = [side - side % patch or patch for side in (height, width)]
        fitting = next(p for p in range(patch, 0, -1) if gcd(height, width) % p == 0)
        raise UsageError(
            f"a vit of patch {patch} needs images whose sides are multiples of {patch}",
            found=f"images of {height}x{width}",
            fix=f"data.image_size: [{fits[0]}, {fits[1]}], or `arguments: {{patch: {fitting}}}`",
        )

    def build(self, name: str, arguments: Arguments, in_channels: int, classes: int) -> nn.Module:
        """`patches`, `position`, `stage1`, `stage2`, `norm`, `pool`, `flatten`, `head`."""
        from kdpipe.stages.models.attention import transformer

        groups = self.layout(name, arguments)
        return transformer(in_channels, int(arguments["patch"]), groups, classes)
