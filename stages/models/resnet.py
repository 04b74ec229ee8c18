"""ResNets for small images, 6n+2 layers (He et al. 2016, "Deep Residual Learning", section 4.2).

Unlike the ImageNet ResNets (`timm:resnet18`): a 3x3 stem of stride 1, three stages, no max-pool.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from kdpipe.stages.models.family import Argument, Arguments, Family, Group, Number, channels, kept

if TYPE_CHECKING:
    from torch import nn

_PRESETS = {f"resnet{6 * n + 2}": n for n in (1, 2, 3, 5, 7, 9, 18)}
_NAMES = {n: name for name, n in _PRESETS.items()}
_WIDTH = Number(1.0, 0.05, 16)
_BLOCKS = Number(3, 1, 200, whole=True)


class ResNet(Family):
    """`resnet8` ... `resnet110`, or `resnet` with any number of `blocks` per stage.

    Where a stage changes its shape the shortcut is a 1x1 convolution (option B of the paper): the
    zero-padded option A exports as slices and pads, which no runtime fuses into int8 kernels.
    """

    summary: ClassVar[str] = "ResNet for small images, 6n+2 layers (He et al. 2016)"
    taps: ClassVar[Mapping[str, str]] = {
        "stage1": "stage1",
        "stage2": "stage2",
        "stage3": "stage3",
        "embedding": "head:in",
        "logits": "head",
    }

    def names(self) -> tuple[str, ...]:
        """The depths of the paper and of the distillation literature, and the free form."""
        return (*_PRESETS, "resnet")

    def options(self, name: str) -> Mapping[str, Number]:
        """`width`; for plain `resnet` also `blocks` per stage (n; 6n+2 layers)."""
        return {"width": _WIDTH} if name in _PRESETS else {"blocks": _BLOCKS, "width": _WIDTH}

    def layout(self, name: str, arguments: Arguments) -> tuple[Group, ...]:
        """Three stages of n blocks with 16, 32 and 64 channels times `width`."""
        blocks = self._blocks(name, arguments)
        width = float(arguments["width"])
        return tuple(Group(blocks, channels(base, width)) for base in (16, 32, 64))

    def scaled(
        self, name: str, arguments: Arguments, depth: float, width: float
    ) -> tuple[str, dict[str, Argument]]:
        """Depth acts on the blocks of each stage; `resnet20` at 0.34 is `resnet8`."""
        blocks = kept(self._blocks(name, arguments), depth)
        wide: dict[str, Argument] = {"width": float(arguments["width"]) * width}
        if blocks in _NAMES:
            return _NAMES[blocks], wide
        return "resnet", {"blocks": blocks, **wide}

    def build(self, name: str, arguments: Arguments, in_channels: int, classes: int) -> nn.Module:
        """`stem`, `stage1`, `stage2`, `stage3`, `pool`, `flatten`, `head`."""
        from kdpipe.stages.models.layers import classifier, conv

        groups = self.layout(name, arguments)
        c_in = groups[0].channels
        features: dict[str, nn.Module] = {"stem": conv(in_channels, c_in)}
        for number, group in enumerate(groups, start=1):
            features[f"stage{number}"] = _stage(c_in, group, stride=1 if number == 1 else 2)
            c_in = group.channels
        return classifier(features, c_in, classes)

    def _blocks(self, name: str, arguments: Arguments) -> int:
        return _PRESETS[name] if name in _PRESETS else int(arguments["blocks"])


def _stage(c_in: int, group: Group, stride: int) -> nn.Sequential:
    """The first block changes resolution and channels, the others keep them."""
    from torch import nn

    first = _block(c_in, group.channels, stride)
    others = [_block(group.channels, group.channels, 1) for _ in range(group.blocks - 1)]
    return nn.Sequential(first, *others)


def _block(c_in: int, c_out: int, stride: int) -> nn.Module:
    """Two 3x3 convolutions and a shortcut."""
    from torch import nn

    from kdpipe.stages.models.layers import Residual, conv

    body = nn.Sequential(
        conv(c_in, c_out, stride=stride), conv(c_out, c_out, activation=nn.Identity)
    )
    if stride == 1 and c_in == c_out:
        return Residual(body, nn.Identity(), nn.ReLU())
    project = conv(c_in, c_out, 1, stride=stride, activation=nn.Identity)
    return Residual(body, project, nn.ReLU())
