"""U-Net: logits for every pixel (Ronneberger, Fischer, Brox 2015, arXiv:1505.04597).

Unlike the other families it is dense. A light student is the same network with a smaller `width`
or `depth`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from kdpipe.stages.models.family import Argument, Arguments, Family, Group, Number, channels, kept
from kdpipe.targets.errors import UsageError

if TYPE_CHECKING:
    from torch import nn

_BASE = 64
_DEPTH = Number(4, 1, 6, whole=True)


class UNet(Family):
    """`unet` with `width` (of the paper's 64, 128, ... channels) and `depth`, its poolings.

    As in the paper each level is two 3x3 convolutions; on the way up the map is enlarged, halves
    its channels, and is joined to the map of that size from the way down. Unlike there, the
    convolutions are padded and normalised, so that logits come out at the size of the input, and
    maps are enlarged by nearest neighbours and a 1x1 convolution, which leaves no checkerboard
    and is exact in int8.

    Stages are the levels on the way down, the last one being the bottom, as in any encoder:
    methods that compare pixels with pixels find maps of a bearable size there. `up1` (full
    resolution), `up2`, ... are the levels on the way up.
    """

    summary: ClassVar[str] = "U-Net for segmentation (Ronneberger et al. 2015)"
    dense: ClassVar[bool] = True
    taps: ClassVar[Mapping[str, str]] = {"logits": "head"}

    def names(self) -> tuple[str, ...]:
        """One name; the arguments give the size."""
        return ("unet",)

    def options(self, name: str) -> Mapping[str, Number]:
        """`width` multiplier and `depth`; the defaults are half the paper's channels."""
        return {"width": Number(0.5, 0.05, 4), "depth": _DEPTH}

    def taps_of(self, name: str, arguments: Arguments) -> Mapping[str, str]:
        """A stage for each level down, `up` for each level up."""
        depth = int(arguments["depth"])
        stages = {f"stage{level + 1}": f"down.{level}" for level in range(depth + 1)}
        ups = {f"up{level + 1}": f"up.{level}" for level in range(depth)}
        return {**stages, **ups, **self.taps}

    def layout(self, name: str, arguments: Arguments) -> tuple[Group, ...]:
        """One block for each level, whose channels double with each pooling."""
        width = float(arguments["width"])
        levels = range(int(arguments["depth"]) + 1)
        return tuple(Group(1, channels(_BASE * 2**level, width)) for level in levels)

    def scaled(
        self, name: str, arguments: Arguments, depth: float, width: float
    ) -> tuple[str, dict[str, Argument]]:
        """Depth acts on the number of poolings."""
        levels = kept(int(arguments["depth"]), depth)
        return name, {"width": float(arguments["width"]) * width, "depth": levels}

    def check_size(self, name: str, arguments: Arguments, height: int, width: int) -> None:
        """Raise UsageError unless both sides can be halved `depth` times."""
        depth = int(arguments["depth"])
        step = 2**depth
        if height % step == 0 and width % step == 0:
            return
        fits = [side - side % step or step for side in (height, width)]
        halvings = min(_halvings(height), _halvings(width))
        lower = f", or `arguments: {{depth: {halvings}}}`" if halvings else ""
        raise UsageError(
            f"a unet of depth {depth} needs images whose sides are multiples of {step}",
            found=f"images of {height}x{width}",
            fix=f"data.image_size: [{fits[0]}, {fits[1]}]{lower}",
        )

    def build(self, name: str, arguments: Arguments, in_channels: int, classes: int) -> nn.Module:
        """`down.0` ... (with the bottom), `up.0` ... (full resolution first), `head`."""
        from kdpipe.stages.models.layers import UShape

        widths = [group.channels for group in self.layout(name, arguments)]
        return UShape(in_channels, widths, classes)


def _halvings(side: int) -> int:
    """How often `side` can be halved, up to the largest depth."""
    depths = range(1, int(_DEPTH.high) + 1)
    return max((depth for depth in depths if side % 2**depth == 0), default=0)
