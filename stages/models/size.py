"""How large a network is, counted and not measured; latency and memory are measured elsewhere."""

from __future__ import annotations

from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from kdpipe.stages.models.dry_run import Shape, dry_run


def parameters(model: nn.Module) -> int | None:
    """Number of weights, shared ones once; None for a black box, whose weights torch cannot see."""
    return sum(p.numel() for p in model.parameters()) or None


def macs(model: nn.Module, shape: Shape) -> int | None:
    """Multiply-accumulates of convolutions and matrix products for one input of `shape` (C, H, W).

    Half of torch's FLOP count, which counts a multiplication and an addition as two and leaves
    out element-wise work. None for a black box.
    """
    counter = FlopCounterMode(display=False)
    with counter:
        dry_run(model, shape, batch=1)
    return counter.get_total_flops() // 2 or None
