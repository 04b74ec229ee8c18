"""Models: the zoo's families, one file each, listed in FAMILIES. Importing this imports no torch.

A new family is one file and one line here; `source.py` builds whatever a config names.
"""

from __future__ import annotations

from kdpipe.stages.models.dscnn import DSCNN
from kdpipe.stages.models.family import Family as Family
from kdpipe.stages.models.family import did_you_mean
from kdpipe.stages.models.mobilenet import MobileNet
from kdpipe.stages.models.resnet import ResNet
from kdpipe.stages.models.unet import UNet
from kdpipe.stages.models.vit import ViT
from kdpipe.targets.errors import UsageError

FAMILIES: tuple[Family, ...] = (ResNet(), MobileNet(), DSCNN(), ViT(), UNet())


def names() -> tuple[str, ...]:
    """Every model name of the zoo."""
    return tuple(name for family in FAMILIES for name in family.names())


def family_of(name: str) -> Family:
    """The family that `name` belongs to; UsageError with the names there are."""
    for family in FAMILIES:
        if name in family.names():
            return family
    raise UsageError(
        f"unknown model '{name}'{did_you_mean(name, names())}",
        found=f"kdpipe's own are {', '.join(names())}",
        fix="use one of these, timm:NAME, path/to/module.py:function or path/to/teacher.onnx",
    )
