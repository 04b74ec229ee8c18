"""The blocks that the zoo's families are composed of; the families say how many and how wide.

Activations are modules, because quantization and taps look for modules, and none works in place,
because a tap may hold the tensor that an in-place one would overwrite.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

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
    tail: dict[str, nn.Module] = {
        "pool": nn.AdaptiveAvgPool2d(1),
        "flatten": nn.Flatten(),
        "head": nn.Linear(width, classes),
    }
    model = nn.Sequential(OrderedDict({**features, **tail}))
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="linear")
            nn.init.zeros_(module.bias)
    return model
