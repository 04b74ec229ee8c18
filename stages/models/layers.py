"""The blocks that the zoo's families are composed of; the families say how many and how wide.

Activations are modules, because quantization and taps look for modules, and none works in place,
because a tap may hold the tensor that an in-place one would overwrite.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn


class Residual(nn.Module):
    """activation(body(x) + shortcut(x)), He et al. 2016, eq. 1."""

    def __init__(self, body: nn.Module, shortcut: nn.Module, activation: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.shortcut = shortcut
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> what body and shortcut agree on."""
        out: Tensor = self.activation(self.body(x) + self.shortcut(x))
        return out


def conv(
    c_in: int,
    c_out: int,
    kernel: int = 3,
    *,
    stride: int = 1,
    groups: int = 1,
    activation: type[nn.Module] = nn.ReLU,
) -> nn.Sequential:
    """Convolution ("same" padding, no bias), BatchNorm and an activation; Identity for none."""
    parts: dict[str, nn.Module] = {
        "conv": nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=groups, bias=False),
        "norm": nn.BatchNorm2d(c_out),
    }
    if activation is not nn.Identity:
        parts["act"] = activation()
    return nn.Sequential(OrderedDict(parts))


def classifier(features: Mapping[str, nn.Module], width: int, classes: int) -> nn.Sequential:
    """`features` (N, width, h, w), then global average pool, flatten and a linear `head`.

    Its convolutions start from He et al. 2015 (fan-in, which is right for depthwise ones too:
    torch's fan-out ignores groups), its head from the same without the gain of a ReLU.
    """
    head = nn.Linear(width, classes)
    tail = {"pool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten(), "head": head}
    model = nn.Sequential(OrderedDict({**features, **tail}))
    _draw(model, head)
    return model


class Up(nn.Module):
    """One level of a `UShape` on the way up: enlarge, join the map of that size, two convolutions.

    The 1x1 convolution that halves the channels stands before the enlarging, where it costs a
    quarter; with nearest neighbours that changes nothing.
    """

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.narrow = conv(c_in, c_out, 1)
        self.enlarge = nn.Upsample(scale_factor=2, mode="nearest")
        self.body = nn.Sequential(conv(2 * c_out, c_out), conv(c_out, c_out))

    def forward(self, x: Tensor, beside: Tensor) -> Tensor:
        """(N, c_in, h, w) and (N, c_out, 2h, 2w) -> (N, c_out, 2h, 2w)."""
        out: Tensor = self.body(torch.cat([beside, self.enlarge(self.narrow(x))], dim=1))
        return out


class UShape(nn.Module):
    """Levels `down` joined by max-pooling, levels `up` back to full size, and a 1x1 `head`.

    `widths`: channels of each level, the bottom's last. Initialised as `classifier` is.
    """

    def __init__(self, in_channels: int, widths: Sequence[int], classes: int) -> None:
        super().__init__()
        inputs = (in_channels, *widths[:-1])
        pairs = list(zip(inputs, widths, strict=True))
        self.down = nn.ModuleList(nn.Sequential(conv(a, b), conv(b, b)) for a, b in pairs)
        self.pool = nn.MaxPool2d(2)
        self.up = nn.ModuleList(Up(b, a) for a, b in pairs[1:])
        self.head = nn.Conv2d(widths[0], classes, 1)
        _draw(self, self.head)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> logits (N, classes, H, W); sides divide by 2^levels."""
        passed: list[Tensor] = []
        for level in self.down:
            x = level(self.pool(passed[-1]) if passed else x)
            passed.append(x)
        for up, beside in zip(reversed(self.up), reversed(passed[:-1]), strict=True):
            x = up(x, beside)
        logits: Tensor = self.head(x)
        return logits


def _draw(model: nn.Module, head: nn.Linear | nn.Conv2d) -> None:
    """Fresh weights: He's for convolutions, without the gain of a ReLU for the head."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module is not head:
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
    nn.init.kaiming_normal_(head.weight, mode="fan_in", nonlinearity="linear")
    assert head.bias is not None
    nn.init.zeros_(head.bias)
