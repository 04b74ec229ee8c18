"""What the methods that look at labels share: class scores, each with one right answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from kdpipe.stages.distill.method import Method, Need, Setup
from kdpipe.stages.distill.response.logits import LogitMethod

if TYPE_CHECKING:
    from torch import Tensor, nn


class LabelledMethod(LogitMethod):
    """A method on one pair of class scores (B, C) and labels (B,), of `at_least` two classes."""

    needs: ClassVar[tuple[Need, ...]] = ("logits", "vectors", "labels")
    at_least: ClassVar[int] = 2

    def build(self, setup: Setup) -> nn.Module | None:
        """Nothing to build. Raises UsageError for dense outputs, and for too few classes."""
        require_class_scores(self, setup.student[0], self.at_least)
        return super().build(setup)


def require_class_scores(method: Method, shape: tuple[int, ...], at_least: int = 2) -> None:
    """Raise UsageError unless logits of this shape are (B, C) with enough classes."""
    method.require(
        len(shape) == 2,
        "compares one vector of class scores per image",
        f"outputs of shape {shape}",
        "use `kd`, which takes an output for every pixel",
    )
    method.require(
        shape[1] >= at_least,
        f"needs at least {at_least} classes",
        f"outputs of shape {shape}",
        "use `kd`" if shape[1] > 1 else "use a method on features, see `kdpipe methods`",
    )


def of_label(x: Tensor, labels: Tensor) -> Tensor:
    """Column y of each row: x (N, C), y (N,) -> (N,)."""
    return x.gather(1, labels[:, None])[:, 0]


def of_others(x: Tensor, labels: Tensor) -> Tensor:
    """All columns but y of each row, in order: x (N, C), y (N,) -> (N, C - 1)."""
    import torch

    columns = torch.arange(x.shape[1] - 1, device=x.device)
    return x.gather(1, columns + (columns >= labels[:, None]))
