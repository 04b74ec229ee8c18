"""What a scheme is: which networks learn from which, and in which order; `graph.py` is one moment.

A scheme is its own YAML entry, `distill.scheme`. It casts nodes and edges into phases, which
`perform.py` trains one after another.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pydantic import BaseModel, ConfigDict

from kdpipe.stages.dataset import Dataset
from kdpipe.stages.distill.method import Method
from kdpipe.stages.distill.response.kd import KD
from kdpipe.stages.models.blueprint import Blueprint
from kdpipe.stages.network import require_outputs
from kdpipe.stages.recipe import Recipe
from kdpipe.stages.supervision import supervised
from kdpipe.targets.errors import UsageError

if TYPE_CHECKING:
    from kdpipe.stages.distill.graph import Edge, Follow, Node

STUDENT = "student"
"""The node that ships."""


@dataclass(frozen=True)
class Actor:
    """A network as a node, and the plan by which it can be built again."""

    node: Node
    blueprint: Blueprint


@dataclass(frozen=True)
class Phase:
    """One training of a graph by a recipe. The first of `nodes` was built by `blueprint`.

    `name` is part of the checkpoint's name: phases of one scheme are called differently.
    """

    name: str
    nodes: Mapping[str, Node]
    edges: Sequence[Edge]
    recipe: Recipe
    blueprint: Blueprint

    @property
    def learner(self) -> Actor:
        """The first node: who ships after the last phase, or teaches in the next one."""
        return Actor(next(iter(self.nodes.values())), self.blueprint)


@dataclass(frozen=True)
class Cast:
    """All that a scheme may put on stage for one student: networks, teachers, methods, labels.

    `hire` loads the teachers of the config, afresh on every call, for taps are never taken out of
    a network again. `weight` is that of the labels, which count from
    epoch `labels_from` on. Fresh weights depend on the recipe's seed and
    the network's name alone, so that a student is drawn like its control.
    """

    student: Blueprint
    recipe: Recipe
    data: Dataset
    methods: tuple[Method, ...]
    weight: float
    hire: Callable[[], Mapping[str, Actor]]
    labels_from: int = 0

    @property
    def is_taught(self) -> bool:
        """Whether some method learns from a teacher."""
        return any(method.taught for method in self.methods)

    def plain(self) -> Cast:
        """The same cast when labels alone teach, at full weight: the control's."""
        return replace(self, methods=(), weight=1.0, labels_from=0)

    def teachers(self) -> dict[str, Actor]:
        """The teachers of the config by name; none are loaded that no method asks for."""
        return dict(self.hire()) if self.is_taught else {}

    def learner(
        self, name: str, blueprint: Blueprint, teachers: Mapping[str, Actor] | None = None
    ) -> Actor:
        """A network with fresh weights, reshaped where a method of its teachers wants it."""
        import torch

        for teacher in list((teachers or {}).values())[:1]:
            for method in self.methods:
                blueprint = method.reshape(blueprint, teacher.blueprint)
        torch.manual_seed(_seed_of(name, self.recipe.seed))
        actor = _actor(blueprint, pretrained=True)
        require_outputs(actor.node.module, blueprint, self.data)
        return actor

    def copy(self, actor: Actor, follows: Follow | None = None) -> Actor:
        """A network with the weights of `actor`, which learns nothing, and may follow."""
        twin = _actor(actor.blueprint, pretrained=False)
        twin.node.module.load_state_dict(actor.node.module.state_dict())
        return replace(twin, node=replace(twin.node, mode="frozen", follows=follows))

    def edges(self, to: str, of: Sequence[str]) -> list[Edge]:
        """From the labels, and by every method, to one node; `of` are its teachers."""
        from kdpipe.stages.distill.graph import Edge

        teachers = tuple(of)
        labels = supervised(self.recipe, self.data, self.weight, self.labels_from)
        return [
            *([Edge(to, labels)] if self.weight else []),
            *(Edge(to, method, of=teachers if method.taught else ()) for method in self.methods),
        ]

    def phase(self, name: str, actors: Mapping[str, Actor], edges: Sequence[Edge]) -> Phase:
        """A phase by the student's recipe; the first actor is its learner."""
        first = next(iter(actors.values()))
        nodes = {name: actor.node for name, actor in actors.items()}
        return Phase(name, nodes, edges, self.recipe, first.blueprint)

    def lesson(self, name: str, blueprint: Blueprint, teachers: Mapping[str, Actor]) -> Phase:
        """One network learns from labels and trained teachers, or without any from labels alone."""
        if self.is_taught and not teachers:
            return self.plain().lesson(name, blueprint, {})
        _require_one_to_start_from(self.methods, teachers)
        actors = {name: self.learner(name, blueprint, teachers), **teachers}
        return self.phase(name, actors, self.edges(name, list(teachers)))

    def relay(
        self, stops: Iterable[tuple[str, Blueprint]], teachers: Mapping[str, Actor]
    ) -> Iterator[Phase]:
        """Lessons in a row up to the student's: whoever learned in one teaches in the next."""
        for name, blueprint in stops:
            phase = self.lesson(name, blueprint, teachers)
            yield phase
            teachers = {name: self.copy(phase.learner)}
        yield self.lesson(STUDENT, self.student, teachers)


class Arrangement(BaseModel, ABC):
    """A scheme's settings. Subclasses add `kind`, their settings and `phases`."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    summary: ClassVar[str]
    paper: ClassVar[str]
    usual: ClassVar[tuple[Method, ...]] = (KD(),)
    """The methods where the config names none."""
    along: ClassVar[bool] = False
    """Whether teachers learn along with the student, so that none is trained when it begins."""

    kind: str

    @property
    def calls_teachers(self) -> bool:
        """Whether the teachers of the config take part."""
        return False

    def files(self) -> Mapping[str, Path]:
        """The user's files behind its models, by the field that names them."""
        return {}

    def packages(self) -> tuple[str, ...]:
        """Distributions that its models need."""
        return ()

    def check(self, methods: Sequence[Method], recipe: Recipe, weight: float) -> None:
        """Raise UsageError where the scheme would do nothing for these methods."""
        taught = [method for method in methods if method.taught]
        self.require(
            bool(taught),
            "has no use: none of the methods learns from a teacher",
            found=f"methods: {', '.join(method.kind for method in methods) or 'none'}",
            fix="add one that does, such as `kd` (see `kdpipe methods`), or remove `scheme`",
        )
        if self.along:
            self._check_along(taught, weight)

    @abstractmethod
    def phases(self, cast: Cast) -> Iterator[Phase]:
        """The trainings in order; each one is over when the next is asked for."""

    def require(self, holds: bool, what: str, found: str, fix: str) -> None:
        """Raise UsageError about this scheme unless `holds`."""
        if not holds:
            raise UsageError(f"scheme '{self.kind}' {what}", found=found, fix=fix)

    def _check_along(self, taught: Sequence[Method], weight: float) -> None:
        early = [m.kind for m in taught if m.prepares or starts_from_teacher(m)]
        self.require(
            not early,
            "has no trained teacher when the training begins, which a method needs",
            found=f"methods: {', '.join(early)}",
            fix="use scheme `offline`, `assistant` or `generations`, or another method",
        )
        self.require(
            weight > 0 or self.calls_teachers,
            "has no teacher that knows more than the student, so somebody must see the labels",
            found="supervised: 0",
            fix="set `supervised: 1`",
        )


def starts_from_teacher(method: Method) -> bool:
    """Whether the method takes over a part of the teacher, or of its shape."""
    kind = type(method)
    return kind.begin is not Method.begin or kind.reshape is not Method.reshape


def _require_one_to_start_from(methods: Sequence[Method], teachers: Mapping[str, Actor]) -> None:
    heirs = [method.kind for method in methods if method.taught and starts_from_teacher(method)]
    specialists = [name for name, actor in teachers.items() if actor.node.classes is not None]
    if heirs and (len(teachers) > 1 or specialists):
        known = f"specialists: {', '.join(specialists) or 'none'}"
        raise UsageError(
            f"method '{heirs[0]}' takes over a part of its teacher, so it needs one that knows all",
            found=f"teachers: {', '.join(teachers)}; {known}",
            fix="name one teacher without `classes`, or use another method",
        )


def _actor(blueprint: Blueprint, *, pretrained: bool) -> Actor:
    from kdpipe.stages.distill.graph import Node

    network = blueprint.build(pretrained=pretrained)
    return Actor(Node(network, blueprint.taps_of(network)), blueprint)


def _seed_of(name: str, seed: int) -> int:
    """The student's own seed, or another one for every other network."""
    if name == STUDENT:
        return seed
    return int.from_bytes(hashlib.sha256(f"{name} {seed}".encode()).digest()[:6], "big")
