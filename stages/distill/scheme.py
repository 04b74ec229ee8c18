"""The scheme: all networks, connectors and terms of one training phase, run as one module."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from kdpipe.stages.distill.graph import Edge, Node
from kdpipe.stages.distill.method import Batch, Setup
from kdpipe.stages.distill.requirements import require_batch, require_outputs
from kdpipe.stages.distill.resolve import Term, resolve, state_of
from kdpipe.stages.distill.taps import LOGITS, Address, Tapped
from kdpipe.stages.distill.value import full_precision, precise, value_of

Seen = Mapping[str, Mapping[str, Tensor]]
"""{node: {tap: tensor}} of one step."""


class Scheme(nn.Module):
    """Nodes and edges, ready to train.

    Frozen nodes stay in eval mode, without gradients. Connectors are shaped by a dry run on
    `sample`, in eval mode so that no BatchNorm statistic moves. `samples`, `epochs` and `steps`
    (per epoch) are the size of the training. Raises UsageError when a tap does not exist, or a
    method needs what the batches do not have.
    """

    followed: Tensor

    def __init__(
        self,
        nodes: Mapping[str, Node],
        edges: Sequence[Edge],
        sample: Batch,
        *,
        samples: int = 1,
        epochs: int = 1,
        steps: int = 1,
    ) -> None:
        super().__init__()
        self.nodes = dict(nodes)
        self.terms = tuple(resolve(edges, nodes))
        require_batch(self.terms, nodes, sample)
        self._views = {name: self._wanted(name) for name in nodes}
        self._tapped = {
            name: Tapped(node.module, node.taps, [address.tap for address in self._views[name]])
            for name, node in nodes.items()
        }
        self.networks = nn.ModuleDict(self._tapped)
        for name in self._untrained():
            self.networks[name].requires_grad_(False)
        if any(node.follows and node.follows.ramps for node in nodes.values()):
            self.register_buffer("followed", torch.zeros((), dtype=torch.int64))
        self._is_preparing = False
        shapes = self._dry_run(sample)
        self.states = nn.ModuleList(
            self._build(term, shapes, samples, epochs, steps) for term in self.terms
        )
        self._share_out()
        self.train()

    def forward(self, batch: Batch, epoch: float) -> tuple[Tensor, dict[str, Tensor], Any]:
        """One step's (total loss, {term: weighted loss}, {node: {tap: tensor}}).

        A term whose weight is 0 at this epoch is not computed: it may not even be finite yet.
        """
        for node in self.nodes.values():
            if node.told:
                node.told(epoch)
        seen = {name: self._see(name, batch) for name in self.nodes}
        terms = {
            term.name: self._weighted(term, state, seen, batch, epoch)
            for term, state in self._active(epoch)
        }
        return torch.stack(list(terms.values())).sum(), terms, seen

    def opponents_loss(self, batch: Batch, seen: Seen, epoch: float) -> Tensor:
        """What the opponents of adversarial methods minimise, on what this step saw."""
        losses = [batch["input"].new_zeros(())]
        for term, state in self._active(epoch):
            if not hasattr(state, "opponent") or term.method.scale(epoch) == 0:
                continue
            known = term.known(seen, batch)
            if known is None:
                continue
            student, (teacher, *_), rows = known
            with full_precision(student):
                views = precise(student, detach=True), precise(teacher, detach=True)
                losses.append(term.method.opponent_loss(*views, rows, state))
        return torch.stack(losses).sum()

    @torch.no_grad()
    def update(self, batch: Batch, seen: Seen) -> None:
        """Let memories take in what this step saw; call after the optimizer's step."""
        if self._is_preparing:
            return
        for term, state in zip(self.terms, self.states, strict=True):
            known = term.known(seen, batch)
            if known is not None:
                student, teachers, rows = known
                precisely = tuple(precise(teacher) for teacher in teachers)
                term.method.update(precise(student), precisely, rows, state_of(state))
        step = self._counted()
        for node, follower in self._followers():
            if node.follows and not node.follows.epochs:
                decay = node.follows.decay_at(step)
                _follow(follower, self.networks[node.follows.node], decay)

    @torch.no_grad()
    def end_epoch(self, done: int) -> None:
        """Refresh the snapshots that are due when `done` epochs have passed."""
        for node, follower in self._followers():
            if node.follows and node.follows.epochs and done % node.follows.epochs == 0:
                _follow(follower, self.networks[node.follows.node], 0.0)

    def train(self, mode: bool = True) -> Scheme:
        """Switch the trained nodes; what does not learn in this phase always evaluates."""
        super().train(mode)
        for name in self.nodes if self._is_preparing else self._untrained():
            self.networks[name].eval()
        for part in self._parts("prepared"):
            part.train(mode and self._is_preparing)
        return self

    @property
    def prepares(self) -> int:
        """Epochs of preparation before the training; 0 for most."""
        return max((term.method.prepares for term in self.terms), default=0)

    @contextmanager
    def preparing(self) -> Iterator[None]:
        """Within it, `forward` is the preparation's loss and `trained` its parameters."""
        self._is_preparing = True
        self._share_out()
        try:
            yield
        finally:
            self._is_preparing = False
            self._share_out()
            self.train()

    def trained(self) -> Iterator[nn.Parameter]:
        """The parameters that the optimizer moves: trained nodes and connectors."""
        if self._is_preparing:
            return iter(_parameters(self._parts("prepared")))
        theirs = {id(parameter) for parameter in self.opponents()}
        return (p for p in self.parameters() if p.requires_grad and id(p) not in theirs)

    def opponents(self) -> list[nn.Parameter]:
        """The parameters that learn by `opponents_loss`."""
        return [] if self._is_preparing else _parameters(self._parts("opponent"))

    def learned(self) -> dict[str, Tensor]:
        """The state of everything but the frozen networks, for checkpoints."""
        frozen = tuple(f"networks.{n}." for n in self._untrained() if not self.nodes[n].follows)
        return {k: v for k, v in self.state_dict().items() if not k.startswith(frozen)}

    def restore(self, learned: Mapping[str, Tensor]) -> None:
        """Load what `learned` gave."""
        missing, unexpected = self.load_state_dict(dict(learned), strict=False)
        if unexpected or set(missing) & set(self.learned()):
            raise ValueError(f"not a checkpoint of this scheme: {missing or unexpected}")

    def weights(self) -> dict[str, Tensor]:
        """The tensors of the trained networks, which are what ships; no copies."""
        trained = tuple(f"networks.{n}." for n in self.nodes if n not in self._untrained())
        return {k: v for k, v in self.state_dict().items() if k.startswith(trained)}

    @torch.no_grad()
    def install(self, weights: Mapping[str, Tensor]) -> None:
        """Give the trained networks these weights, by the names of `weights`."""
        own = self.weights()
        for name, tensor in weights.items():
            own[name].copy_(tensor)

    def close(self) -> None:
        """Take the taps out of the networks, which may then be copied, saved and exported."""
        for tapped in self._tapped.values():
            tapped.close()

    def _untrained(self) -> list[str]:
        return [name for name, node in self.nodes.items() if node.mode == "frozen" or node.follows]

    def _counted(self) -> int:
        """The number of this step, from 1 on, where some follower must know it."""
        if "followed" not in self._buffers:
            return 1
        self.followed += 1
        return int(self.followed)

    def _followers(self) -> Iterator[tuple[Node, nn.Module]]:
        return ((node, self.networks[name]) for name, node in self.nodes.items() if node.follows)

    def _parts(self, share: str) -> list[nn.Module]:
        return [getattr(state, share) for state in self.states if hasattr(state, share)]

    def _share_out(self) -> None:
        """What is prepared learns in the preparation only."""
        for part in self._parts("prepared"):
            part.requires_grad_(self._is_preparing)

    def _active(self, epoch: float) -> Iterator[tuple[Term, nn.Module]]:
        """All terms; in the preparation those that still have something to prepare."""
        pairs = zip(self.terms, self.states, strict=True)
        preparing = self._is_preparing
        return ((t, s) for t, s in pairs if not preparing or epoch < t.method.prepares)

    def _weighted(
        self, term: Term, state: nn.Module, seen: Seen, batch: Batch, epoch: float
    ) -> Tensor:
        scale = 1.0 if self._is_preparing else term.method.scale(epoch)
        known = term.known(seen, batch) if scale else None
        if known is None:
            return seen[term.to][LOGITS].new_zeros((), dtype=torch.float32)
        value = value_of(term.method, *known, state_of(state), preparing=self._is_preparing)
        return scale * term.share * value

    def _wanted(self, node: str) -> list[Address]:
        taps = [tap for term in self.terms for tap in term.taps_of(node)]
        return [Address.parse(tap) for tap in dict.fromkeys(taps)]

    def _see(self, name: str, batch: Batch) -> dict[str, Tensor]:
        """All taps of a node, on every view of the batch that some method asks for."""
        node = self.nodes[name]
        learns = name not in self._untrained() and not self._is_preparing
        seen: dict[str, Tensor] = {}
        with torch.set_grad_enabled(learns and torch.is_grad_enabled()):
            for view in dict.fromkeys(("", *(address.view for address in self._views[name]))):
                found = self.networks[name](batch[view or node.reads])
                prefix = f"{view}/" if view else ""
                seen |= {f"{prefix}{tap}": tensor for tap, tensor in found.items()}
        return seen

    @torch.no_grad()
    def _dry_run(self, sample: Batch) -> dict[str, dict[str, tuple[int, ...]]]:
        for tapped in self._tapped.values():
            tapped.eval().probe(True)
        seen = {name: self._see(name, sample) for name in self.nodes}
        for tapped in self._tapped.values():
            tapped.probe(False)
        return {
            name: {tap: tuple(tensor.shape) for tap, tensor in tensors.items()}
            for name, tensors in seen.items()
        }

    def _build(
        self,
        term: Term,
        shapes: Mapping[str, Mapping[str, Any]],
        samples: int,
        epochs: int,
        steps: int,
    ) -> nn.Module:
        require_outputs(term, shapes)
        student, teachers = term.views(shapes)
        node = self.nodes[term.to]
        classes = shapes[term.to][LOGITS][1]
        if term.classes is not None:
            classes = len(term.classes)
            logits = term.logits()
            student = tuple(
                (s[0], classes, *s[2:]) if n in logits else s for n, s in enumerate(student)
            )
        setup = Setup(student, teachers, classes, samples, epochs, node.module, node.taps, steps)
        return term.method.build(setup) or nn.Identity()


def _follow(follower: nn.Module, leader: nn.Module, decay: float) -> None:
    for parameter, theirs in zip(follower.parameters(), leader.parameters(), strict=True):
        parameter.lerp_(theirs, 1 - decay)
    for buffer, other in zip(follower.buffers(), leader.buffers(), strict=True):
        buffer.copy_(other)


def _parameters(parts: Sequence[nn.Module]) -> list[nn.Parameter]:
    return [parameter for part in parts for parameter in part.parameters()]
