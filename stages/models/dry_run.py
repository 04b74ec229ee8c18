"""One forward pass on zeros that leaves no trace in the model: shapes and costs come from it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

Shape = tuple[int, int, int]
"""C, H, W of one input."""


def dry_run(model: nn.Module, shape: Shape, batch: int = 2) -> Any:
    """The model's output on zeros (batch, C, H, W), in eval mode and without gradients.

    BatchNorm's statistics do not move, and every submodule keeps its own mode.
    """
    parameter = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    x = torch.zeros(batch, *shape, device=parameter.device, dtype=parameter.dtype)
    with _evaluating(model), torch.no_grad():
        return model(x)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode inside; afterwards each submodule's own mode, which need not be the root's."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
