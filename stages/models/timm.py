"""Networks of the timm library, `timm:NAME`; needs the extra `kdpipe[timm]`, unlike the zoo."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

from kdpipe.stages.models.family import Arguments, did_you_mean
from kdpipe.targets.errors import UsageError

if TYPE_CHECKING:
    from torch import nn

_LIBRARIES: list[Any] = []
"""Operators that were declared; torch forgets them when these objects are collected."""


def build(name: str, arguments: Arguments, in_channels: int, classes: int) -> nn.Module:
    """timm.create_model(name, num_classes=..., in_chans=..., pretrained=False, **arguments).

    Raises UsageError when timm is not installed, has no such model, or refuses the arguments.
    """
    timm = _timm()
    if not timm.is_model(name):
        raise UsageError(
            f"timm has no model '{name}'{did_you_mean(name, timm.list_models())}",
            fix=f"list its models: python -c \"import timm; print(timm.list_models('{name}*'))\"",
        )
    given = {
        "num_classes": classes,
        "in_chans": in_channels,
        "pretrained": False,
        **arguments,
    }
    try:
        model: nn.Module = timm.create_model(name, **given)
    except Exception as error:  # each of timm's thousand models raises what it likes
        raise UsageError(
            f"timm cannot make '{name}' with these arguments",
            found=f"{given}: {type(error).__name__}: {error}",
            fix="correct `arguments`",
        ) from error
    return model


@cache
def _timm() -> Any:
    _mend_torchvision()
    try:
        import timm
    except ModuleNotFoundError as error:
        raise UsageError(
            f"models called timm:NAME need the Python package '{error.name}'",
            found="it is not installed",
            fix="pip install 'kdpipe[timm]'",
        ) from error
    return timm


def _mend_torchvision() -> None:
    """Let torchvision's PyPI wheel import beside a CPU-only torch, which timm needs.

    That wheel's compiled operators need CUDA libraries; without them `import torchvision` stops
    at the first operator that it describes to torch.export. Declaring the two by name is enough:
    no classification network calls them.
    """
    try:
        import_module("torchvision")
    except ModuleNotFoundError:
        return
    except RuntimeError as error:
        if "torchvision::nms does not exist" not in str(error):
            raise
        import torch

        library: Any = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _LIBRARIES.append(library)
