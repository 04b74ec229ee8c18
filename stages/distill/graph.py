"""Who teaches whom: nodes (networks), edges (terms of the loss), and the scheme that runs them.

Offline distillation is one edge from a frozen node to a trained one; online, self, assistant and
multi-teacher schemes are other nodes and edges of the same three classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from kdpipe.stages.distill.method import Batch, Method, Shapes, Views
from kdpipe.stages.distill.taps import LOGITS, Tapped
from kdpipe.stages.tasks import Task


@dataclass(frozen=True)
class Node:
    """A network in the graph. `reads` is the key of the batch that it eats."""

    module: nn.Module
    taps: Mapping[str, str] = field(default_factory=dict)
    mode: Literal["train", "frozen"] = "train"
    reads: str = "input"


class Supervised(Method):
    """The task's own loss against the labels; the edge without a teacher."""

    summary = "the task's loss against the labels"
    paper = "-"
    needs = ("logits", "labels")

    kind: Literal["supervised"] = "supervised"
    task: Task
    label_smoothing: float = 0.0

    def loss(self, student: Views, teacher: Views, batch: Batch, state: Any) -> Tensor:
        """`task.loss` on the student's output."""
        return self.task.loss(student[0], batch["target"], self.label_smoothing)


@dataclass(frozen=True)
class Edge:
    """`to` learns by `method` from the nodes in `of`; an empty `of` means from the labels.

    With several teachers the term is the mean of the terms against each.
    """

    to: str
    method: Method
    of: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """How the term is called in logs, e.g. `student<-teacher:kd`."""
        return f"{self.to}<-{','.join(self.of) or 'labels'}:{self.method.kind}"


class Scheme(nn.Module):
    """All networks, connectors and terms of one training phase.

    Frozen nodes stay in eval mode, without gradients. Connectors are shaped by a dry run on
    `sample`, in eval mode so that no BatchNorm statistic moves.
    """

    def __init__(self, nodes: Mapping[str, Node], edges: Sequence[Edge], sample: Batch) -> None:
        super().__init__()
        self.nodes = dict(nodes)
        self.edges = tuple(edges)
        self.networks = nn.ModuleDict(
            {
                name: Tapped(node.module, node.taps, self._wanted(name))
                for name, node in nodes.items()
            }
        )
        for name in self._frozen():
            self.networks[name].requires_grad_(False)
        shapes = self._dry_run(sample)
        self.states = nn.ModuleList(self._build(edge, shapes) for edge in self.edges)
        self.train()

    def forward(self, batch: Batch, epoch: float) -> tuple[Tensor, dict[str, Tensor], Any]:
        """One step's (total loss, {term: weighted loss}, {node: {role: tensor}})."""
        seen = {name: self._see(name, batch) for name in self.nodes}
        terms: dict[str, Tensor] = {}
        for edge, state in zip(self.edges, self.states, strict=True):
            value = edge.method.scale(epoch) * self._term(edge, state, seen, batch)
            terms[edge.name] = terms[edge.name] + value if edge.name in terms else value
        return torch.stack(list(terms.values())).sum(), terms, seen

    @torch.no_grad()
    def update(self, batch: Batch, seen: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Let memories take in what this step saw; call after the backward pass."""
        for edge, state in zip(self.edges, self.states, strict=True):
            for student, teacher in self._pairs(edge, seen):
                edge.method.update(student, teacher, batch, _state(state))

    def train(self, mode: bool = True) -> Scheme:
        """Switch the trained nodes; frozen ones always evaluate."""
        super().train(mode)
        for name in self._frozen():
            self.networks[name].eval()
        return self

    def trained(self) -> Iterator[nn.Parameter]:
        """The parameters that the optimizer moves: trained nodes and connectors."""
        return (parameter for parameter in self.parameters() if parameter.requires_grad)

    def learned(self) -> dict[str, Tensor]:
        """The state of everything but the frozen networks, for checkpoints."""
        frozen = tuple(f"networks.{name}." for name in self._frozen())
        return {k: v for k, v in self.state_dict().items() if not k.startswith(frozen)}

    def restore(self, learned: Mapping[str, Tensor]) -> None:
        """Load what `learned` gave."""
        missing, unexpected = self.load_state_dict(dict(learned), strict=False)
        if unexpected or set(missing) & set(self.learned()):
            raise ValueError(f"not a checkpoint of this scheme: {missing or unexpected}")

    def _frozen(self) -> list[str]:
        return [name for name, node in self.nodes.items() if node.mode == "frozen"]

    def _wanted(self, node: str) -> list[str]:
        edges = [edge for edge in self.edges if node == edge.to or node in edge.of]
        return [role for edge in edges for role in edge.method.taps]

    def _see(self, name: str, batch: Batch) -> dict[str, Tensor]:
        node = self.nodes[name]
        learns = node.mode == "train" and torch.is_grad_enabled()
        with torch.set_grad_enabled(learns):
            seen: dict[str, Tensor] = self.networks[name](batch[node.reads])
        return seen

    def _pairs(
        self, edge: Edge, seen: Mapping[str, Mapping[str, Any]]
    ) -> Iterator[tuple[Any, Any]]:
        roles = edge.method.taps
        student = tuple(seen[edge.to][role] for role in roles)
        if not edge.of:
            yield student, ()
        for teacher in edge.of:
            yield student, tuple(seen[teacher][role] for role in roles)

    def _term(self, edge: Edge, state: nn.Module, seen: Any, batch: Batch) -> Tensor:
        losses = [
            edge.method.loss(student, tuple(t.detach() for t in teacher), batch, _state(state))
            for student, teacher in self._pairs(edge, seen)
        ]
        return torch.stack(losses).mean()

    @torch.no_grad()
    def _dry_run(self, sample: Batch) -> dict[str, dict[str, tuple[int, ...]]]:
        self.eval()
        seen = {name: self._see(name, sample) for name in self.nodes}
        return {
            name: {role: tuple(tensor.shape) for role, tensor in tensors.items()}
            for name, tensors in seen.items()
        }

    def _build(self, edge: Edge, shapes: Mapping[str, Mapping[str, Any]]) -> nn.Module:
        student, teacher = next(iter(self._pairs(edge, shapes)))
        views: tuple[Shapes, Shapes] = (student, teacher)
        return edge.method.build(*views) or nn.Identity()


def _state(module: nn.Module) -> nn.Module | None:
    """The method's state, or None where it built none (ModuleList cannot hold None)."""
    return None if isinstance(module, nn.Identity) else module


__all__ = ["LOGITS", "Edge", "Node", "Scheme", "Supervised"]
