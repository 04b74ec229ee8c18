"""Who teaches whom, as data: nodes (networks) and edges (terms of the loss).

Offline distillation is one edge from a frozen node to a trained one; online, self, assistant and
multi-teacher schemes are other nodes and edges of the same classes. `scheme.py` runs them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from kdpipe.stages.distill.method import Batch, Method, Need, Views
from kdpipe.stages.tasks import Task


@dataclass(frozen=True)
class Follow:
    """How a node follows another one of the same architecture, instead of being trained.

    With `decay` d its weights become d * own + (1 - d) * theirs after every step (Tarvainen &
    Valpola 2017, arXiv:1703.01780); with `epochs` they are a copy of what they were at the end of
    every so many epochs. Buffers, such as BatchNorm statistics, are copied. With `ramps` the decay
    of step n is at most n / (n + 1), so that the start is soon forgotten.
    """

    node: str
    decay: float = 0.0
    epochs: int = 0
    ramps: bool = False

    def decay_at(self, step: int) -> float:
        """The decay of step number `step`, from 1 on."""
        return min(self.decay, step / (step + 1)) if self.ramps else self.decay


@dataclass(frozen=True)
class Node:
    """A network in the graph. `reads` is the key of the batch that it eats.

    `classes`: of a specialist, the class number that each of its logits stands for; its students
    are compared on those logits only, and on samples of those classes. `told` is called before
    every step with the epochs that have passed, a fraction within one, for what changes then.
    """

    module: nn.Module
    taps: Mapping[str, str] = field(default_factory=dict)
    mode: Literal["train", "frozen"] = "train"
    reads: str = "input"
    classes: tuple[int, ...] | None = None
    follows: Follow | None = None
    told: Callable[[float], None] | None = None


@dataclass(frozen=True)
class Edge:
    """`to` learns by `method` from the nodes in `of`; an empty `of` means from labels or itself.

    With several teachers the term is the mean of the terms against each, with connectors of its
    own for each, unless the method is a `joint` one, which takes them all at once.
    """

    to: str
    method: Method
    of: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """How the term is called in logs, e.g. `student<-teacher:kd`; one for each teacher."""
        return f"{self.to}<-{','.join(self.of) or 'labels'}:{self.method.kind}"


class Supervised(Method):
    """The task's own loss against the labels; the edge without a teacher.

    With mixup the loss is `lam * loss(y) + (1 - lam) * loss(y2)` (Zhang et al. 2018,
    arXiv:1710.09412).
    """

    summary: ClassVar[str] = "the task's loss against the labels"
    paper: ClassVar[str] = "-"
    needs: ClassVar[tuple[Need, ...]] = ("logits", "labels")
    taught: ClassVar[bool] = False
    blends: ClassVar[bool] = True

    kind: Literal["supervised"] = "supervised"
    task: Task
    label_smoothing: float = 0.0
    class_weights: tuple[float, ...] | None = None

    def loss(self, student: Views, teacher: Views, batch: Batch, state: Any) -> Tensor:
        """`task.loss` on the student's output."""
        loss = self._against(student[0], batch["target"])
        if "mix" not in batch:
            return loss
        lam = batch["mix"]
        return lam * loss + (1 - lam) * self._against(student[0], batch["mixed_target"])

    def _against(self, outputs: Tensor, labels: Tensor) -> Tensor:
        weights = None if self.class_weights is None else outputs.new_tensor(self.class_weights)
        return self.task.loss(outputs, labels, self.label_smoothing, weights)
