"""The blocks of a vision transformer; `vit.py` says how many and how wide.

Between blocks, values are maps (N, C, h, w), so that taps and feature methods see what they see of
convolutional networks.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from kdpipe.stages.models.family import Group

HEADS = 4


class Attention(nn.Module):
    """Multi-head self-attention (Vaswani et al. 2017): (N, T, C) -> (N, T, C)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Every token attends to all."""
        queries, keys, values = (self._heads(part) for part in self.qkv(x).chunk(3, dim=-1))
        seen = F.scaled_dot_product_attention(queries, keys, values)
        out: Tensor = self.project(seen.transpose(1, 2).flatten(2))
        return out

    @staticmethod
    def _heads(x: Tensor) -> Tensor:
        """(N, T, C) -> (N, heads, T, C / heads)."""
        batch, tokens, width = x.shape
        return x.reshape(batch, tokens, HEADS, width // HEADS).transpose(1, 2)


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)), on the positions of a map."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            OrderedDict(
                expand=nn.Linear(width, 4 * width),
                act=nn.GELU(),
                reduce=nn.Linear(4 * width, width),
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) -> (N, C, h, w)."""
        tokens = x.flatten(2).transpose(1, 2)
        tokens = tokens + self.attention(self.norm1(tokens))
        tokens = tokens + self.mlp(self.norm2(tokens))
        out: Tensor = tokens.transpose(1, 2).reshape(x.shape)
        return out


class Position(nn.Module):
    """x + depthwise 3x3 convolution of x, whose zero padding tells where the border is."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1, groups=width)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) -> (N, C, h, w)."""
        out: Tensor = x + self.conv(x)
        return out


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of a map (N, C, h, w)."""

    def forward(self, x: Tensor) -> Tensor:
        """Each position by itself."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def transformer(
    in_channels: int, patch: int, groups: Sequence[Group], classes: int
) -> nn.Sequential:
    """Patches (N, C, H / patch, W / patch), stages of blocks, mean over positions, `head`."""
    width = groups[0].channels
    stages = {
        f"stage{number}": nn.Sequential(*(Block(width) for _ in range(group.blocks)))
        for number, group in enumerate(groups, start=1)
    }
    model = nn.Sequential(
        OrderedDict(
            patches=nn.Conv2d(in_channels, width, patch, stride=patch),
            position=Position(width),
            **stages,
            norm=ChannelNorm(width),
            pool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
            head=nn.Linear(width, classes),
        )
    )
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="linear")
            nn.init.zeros_(module.bias)
    return model
