"""Finds the taps of a network that kdpipe does not know; the zoo's families declare theirs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from kdpipe.stages.models.dry_run import Shape, dry_run


def roles(model: nn.Module, shape: Shape) -> dict[str, str]:
    """{"stage1": path, ..., "embedding": "path:in", "logits": path} of a network, by a dry run.

    A stage is the last block (a module of two or more convolutions) to finish at one resolution,
    up to where the resolution grows again. The embedding is what enters the last linear layer.
    Roles that the network has no candidate for are left out.
    """
    trace = _Trace()
    paths = [(path, module) for path, module in model.named_modules() if path]
    handles = [module.register_forward_hook(trace.hook(path, module)) for path, module in paths]
    try:
        dry_run(model, shape)
    finally:
        for handle in handles:
            handle.remove()
    found = {f"stage{number}": path for number, path in enumerate(trace.stages(), start=1)}
    if trace.linear:
        found |= {"embedding": f"{trace.linear}:in", "logits": trace.linear}
    return found


class _Trace:
    """What finished during a forward pass, in order: blocks with their (height, width)."""

    def __init__(self) -> None:
        self.linear = ""
        self._finished: list[tuple[str, tuple[int, int]]] = []

    def hook(self, path: str, module: nn.Module) -> Callable[[nn.Module, Any, Any], None]:
        """What to call after `module`, which is at `path`."""
        linear = isinstance(module, nn.Linear)
        block = sum(isinstance(inner, nn.Conv2d) for inner in module.modules()) >= 2

        def record(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if linear:
                self.linear = path
            if block and isinstance(output, Tensor) and output.ndim == 4:
                self._finished.append((path, (output.shape[2], output.shape[3])))

        return record

    def stages(self) -> list[str]:
        """The last block at each resolution; 1x1 is what gates inside blocks have, not stages."""
        last: dict[tuple[int, int], str] = {}
        smallest: tuple[int, int] | None = None
        for path, size in self._finished:
            if size == (1, 1):
                continue
            if smallest and size > smallest:
                break
            last[size] = path
            smallest = size
        return list(last.values())
