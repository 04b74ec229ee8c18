"""Taps: tensors inside a network, returned as outputs so that a step compiles as one graph."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from kdpipe.stages.distill.points import Handle, NoPoint, Parameter, Points, Side, points_of
from kdpipe.targets.errors import UsageError, listing

LOGITS = "logits"
"""The role that every network has: its output."""
_STAGES, _LAST, _HEAD = "stages", "last", "head"


@dataclass(frozen=True)
class Address:
    """`[view/]role[:side]` in its parts."""

    view: str
    tap: str

    @classmethod
    def parse(cls, text: str) -> Address:
        """`strong/stage2:pre` -> view `strong`, tap `stage2:pre`; the view is "" by default."""
        view, slash, tap = text.rpartition("/")
        return cls(view if slash else "", tap)


def expand(role: str, taps: Mapping[str, str], count: int) -> tuple[str, ...]:
    """`stages` -> the last `count` stages of a network, `last` -> its last one, else `role`.

    View and side are kept: `strong/stages:pre` -> `strong/stage1:pre`, ...
    """
    address = Address.parse(role)
    name, colon, side = address.tap.partition(":")
    stages = stages_of(taps)
    if name not in (_STAGES, _LAST):
        return (role,)
    if not stages:
        raise UsageError(
            f"tap '{role}' needs a network with known stages",
            found=f"roles {listing([LOGITS, *taps])}",
            fix="give module paths under `taps` (and `teacher_taps`)",
        )
    chosen = stages[-count:] if name == _STAGES else stages[-1:]
    prefix = f"{address.view}/" if address.view else ""
    return tuple(f"{prefix}{stage}{colon}{side}" for stage in chosen)


def stages_of(taps: Mapping[str, str]) -> list[str]:
    """The roles `stage1`, `stage2`, ... of a network, in order."""
    stages = [role for role in taps if role.startswith("stage") and role[5:].isdigit()]
    return sorted(stages, key=lambda role: int(role[5:]))


class Tapped(nn.Module):
    """A network that returns {tap: tensor}: its output as `logits`, and the wanted taps.

    A role stands for a module path (its output) or `"module.path:in"` (its first input). A tap is
    a role or a path, `:in` for the input, `:pre` for what enters its last activation, `:weight`
    (2-D) or `:bias` (zeros where it has none) for a parameter; `head` is the layer that makes the
    logits. Raises UsageError naming the tap and what exists when a role or a path is unknown, and
    on the first call when a tap gives no tensor.
    """

    def __init__(
        self, module: nn.Module, taps: Mapping[str, str], wanted: Iterable[str] = ()
    ) -> None:
        super().__init__()
        self.module = module
        self._seen: dict[str, Tensor] = {}
        self._recorded: list[str] = []
        self._versions: dict[str, int] | None = None
        self._overwritten: set[str] = set()
        self._handles: list[Handle] = []
        self._parameters_of: dict[str, tuple[Parameter, Parameter | None]] = {}
        points = points_of(module)
        for tap in dict.fromkeys(wanted):
            if tap != LOGITS:
                self._install(tap, taps, points)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """x (B, C, H, W) -> {tap: tensor}."""
        self._seen.clear()
        output = self.module(x)
        for tap in self._recorded:
            if not isinstance(self._seen.get(tap), Tensor):
                raise self._nothing(tap)
        if self._versions is not None:
            self._find_overwritten(self._versions)
        return {LOGITS: output, **self._seen, **self._read_parameters()}

    def probe(self, on: bool) -> None:
        """While on, forward passes find the taps that an in-place operation overwrites later.

        From then on these taps are copies, made at once.
        """
        self._versions = {} if on else None

    def close(self) -> None:
        """Take all taps out of the module and forget what they saw."""
        for handle in self._handles:
            handle.remove()
        self._seen.clear()

    def _find_overwritten(self, versions: Mapping[str, int]) -> None:
        changed = {tap for tap, was in versions.items() if self._seen[tap]._version != was}
        self._overwritten |= changed

    def _install(self, tap: str, taps: Mapping[str, str], points: Points) -> None:
        role, _, side = tap.partition(":")
        named = taps.get(role) or (taps.get(LOGITS, role) if role == _HEAD else role)
        path, _, declared = named.partition(":")
        side = side or declared
        if path not in ("", *points.paths()):
            raise self._unknown(tap, taps, points)
        weight = points.parameter(path, "weight") if side in ("weight", "bias") else None
        match side:
            case "" | "in" | "pre":
                self._watch(tap, path, side, points)
            case "weight" if weight:
                self._parameters_of[tap] = (weight, weight)
            case "bias" if weight:
                self._parameters_of[tap] = (weight, points.parameter(path, "bias"))
            case _:
                raise self._unknown(tap, taps, points)

    def _watch(self, tap: str, path: str, side: Side, points: Points) -> None:
        def record(found: Any) -> None:
            self._record(tap, found)

        try:
            self._handles.append(points.watch(path, side, record))
        except NoPoint as missing:
            raise UsageError(
                f"tap '{tap}': there is no activation module in it",
                found=str(missing),
                fix="give the path of the module before the activation",
            ) from None
        self._recorded.append(tap)

    def _read_parameters(self) -> dict[str, Tensor]:
        found = {}
        for tap, (weight, own) in self._parameters_of.items():
            if own is None:
                value: Tensor = getattr(*weight)
                found[tap] = value.new_zeros(len(value))
            else:
                value = getattr(*own)
                found[tap] = value.flatten(1) if own == weight else value
        return found

    def _unknown(self, tap: str, taps: Mapping[str, str], points: Points) -> UsageError:
        return UsageError(
            f"tap '{tap}' does not exist in {type(self.module).__name__}",
            found=f"roles {listing([LOGITS, *taps])}; modules {listing(points.paths(), 12)}",
            fix="use one of these roles or module paths under `taps`",
        )

    def _nothing(self, tap: str) -> UsageError:
        network, got = type(self.module).__name__, type(self._seen.get(tap)).__name__
        ran = f"it gives a {got}" if tap in self._seen else "its forward pass does not run it"
        return UsageError(
            f"tap '{tap}' gave no tensor",
            found=f"{network}: {ran}",
            fix="tap a module inside it, or one that the forward pass runs",
        )

    def _record(self, tap: str, found: Any) -> None:
        if tap in self._overwritten:
            found = found.clone()
        elif self._versions is not None and isinstance(found, Tensor):
            self._versions[tap] = found._version
        self._seen[tap] = found
