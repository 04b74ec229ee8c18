"""When the terms of a loss count: from epoch to epoch, checked before any training."""

from __future__ import annotations

from collections.abc import Sequence

from kdpipe.stages.distill.method import Method
from kdpipe.targets.errors import UsageError


def require_terms(stage: str, methods: Sequence[Method], epochs: int, labels_from: int) -> None:
    """Raise UsageError unless every method counts in some epoch, and every epoch has a term.

    `labels_from`: the first epoch in which labels count, `epochs` where they never do.
    """
    late = [f"{m.kind}: start {m.start}" for m in methods if m.start >= epochs]
    if late:
        raise UsageError(
            f"{stage}.methods: a method starts after the last epoch",
            found=f"{late[0]}, epochs: {epochs}",
            fix="lower `start`, or raise `epochs`",
        )
    windows = [(m.start, m.stop or epochs) for m in methods if m.weight]
    for epoch in range(min(labels_from, epochs)):
        if not any(start <= epoch < stop for start, stop in windows):
            raise UsageError(
                f"{stage}: there is nothing to learn from in epoch {epoch}",
                found="no method counts then, nor do the labels",
                fix="change `start` and `stop` of a method, or when labels count",
            )
