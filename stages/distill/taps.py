"""Taps: tensors inside a network, returned as outputs so that a step compiles as one graph."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from kdpipe.targets.errors import UsageError, listing

LOGITS = "logits"
"""The role that every network has: its output."""


class Tapped(nn.Module):
    """A network that returns {role: tensor}: its output as `logits`, and the wanted taps.

    A tap is `role -> "module.path"` (that module's output) or `"module.path:in"` (its first
    input). Raises UsageError naming the tap and what exists when a role or a path is unknown, and
    on the first call when a tap gives no tensor.
    """

    def __init__(
        self, module: nn.Module, taps: Mapping[str, str], wanted: Iterable[str] = ()
    ) -> None:
        super().__init__()
        self.module = module
        self._seen: dict[str, Tensor] = {}
        self._roles = tuple(role for role in dict.fromkeys(wanted) if role != LOGITS)
        for role in self._roles:
            self._install(role, taps)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """x (B, C, H, W) -> {role: tensor}."""
        self._seen.clear()
        output = self.module(x)
        for role in self._roles:
            if not isinstance(self._seen.get(role), Tensor):
                raise self._nothing(role)
        return {LOGITS: output, **self._seen}

    def _install(self, role: str, taps: Mapping[str, str]) -> None:
        modules = dict(self.module.named_modules())
        path, _, side = taps.get(role, role).partition(":")
        if path not in modules or side not in ("", "in"):
            paths = [name for name in modules if name]
            raise UsageError(
                f"tap '{role}' does not exist in {type(self.module).__name__}",
                found=f"roles {listing([LOGITS, *taps])}; modules {listing(paths, 12)}",
                fix="use one of these roles or module paths under `taps`",
            )
        modules[path].register_forward_hook(self._recorder(role, side == "in"))

    def _nothing(self, role: str) -> UsageError:
        network, got = type(self.module).__name__, type(self._seen.get(role)).__name__
        ran = f"it gives a {got}" if role in self._seen else "its forward pass does not run it"
        return UsageError(
            f"tap '{role}' gave no tensor",
            found=f"{network}: {ran}",
            fix="tap a module inside it, or one that the forward pass runs",
        )

    def _recorder(self, role: str, take_input: bool) -> Callable[..., None]:
        def record(_module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            self._seen[role] = inputs[0] if take_input else output

        return record
