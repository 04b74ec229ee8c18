"""What a distillation method is: its settings, its formula, and what it needs from the nodes.

A method is its own YAML entry under `distill.methods`. It holds no tensors: what it learns or
remembers (connectors, banks) is built once as a module and handed back to it on every call.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, NonNegativeInt

if TYPE_CHECKING:
    from torch import Tensor, nn

Views = tuple["Tensor", ...]
"""One tensor per tap, in the order of the method's taps."""
Shapes = tuple[tuple[int, ...], ...]
"""The shape of each view, batch included, found by a dry run."""
Batch = Mapping[str, "Tensor"]
"""What the loader yields: `input` (B, C, H, W), `target` (B, ...), `index` (B,)."""


class Method(BaseModel, ABC):
    """One distillation objective. Subclasses add `kind`, their settings and `loss`."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    summary: ClassVar[str]
    paper: ClassVar[str]
    needs: ClassVar[tuple[str, ...]] = ("logits",)
    """What it asks of a run: `logits`, `features`, `labels`, `index` ..."""

    kind: str
    weight: NonNegativeFloat = Field(1.0, description="factor of this term in the total loss")
    warmup_epochs: NonNegativeInt = Field(0, description="epochs over which the weight ramps up")
    taps: tuple[str, ...] = Field(("logits",), description="roles compared in both networks")

    def build(self, student: Shapes, teacher: Shapes) -> nn.Module | None:
        """Connectors and memories for views of these shapes; None when there are none."""
        return None

    @abstractmethod
    def loss(self, student: Views, teacher: Views, batch: Batch, state: Any) -> Tensor:
        """The term, a scalar in fp32. Pure: memories change in `update`, never here."""

    def update(self, student: Views, teacher: Views, batch: Batch, state: Any) -> None:
        """Refresh memories after the backward pass; by default there are none."""

    def scale(self, epoch: float) -> float:
        """The weight at `epoch` (fractional, from 0): a linear ramp over `warmup_epochs`."""
        if self.warmup_epochs == 0:
            return self.weight
        return self.weight * min(epoch / self.warmup_epochs, 1.0)
