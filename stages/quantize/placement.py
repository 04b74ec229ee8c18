"""Walks over a captured graph that a policy takes, and what they lead to: a `Placement`.

`policy.py` says what is rounded; here is how to get from one operator to the next that matters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import fx

from kdpipe.stages.quantize.aten import MOVES, argument, clip_bounds, is_activation, is_layer


@dataclass(frozen=True)
class Placement:
    """Node whose output is rounded -> name of its quantizer (nodes of one scale share a name);
    layer whose weight is rounded -> axis of its output channels."""

    activations: dict[fx.Node, str]
    weights: dict[fx.Node, int]


class Scales:
    """Which nodes are rounded, and which of them have one scale: a union-find."""

    def __init__(self) -> None:
        self._leader: dict[fx.Node, fx.Node] = {}

    def __contains__(self, node: fx.Node) -> bool:
        return node in self._leader

    def add(self, node: fx.Node) -> None:
        self._leader.setdefault(node, node)

    def join(self, a: fx.Node, b: fx.Node) -> None:
        """Give both one scale, named after the earlier node."""
        self.add(a)
        self.add(b)
        first, second = sorted((self.leader(a), self.leader(b)))
        self._leader[second] = first

    def leader(self, node: fx.Node) -> fx.Node:
        while self._leader[node] is not node:
            node = self._leader[node]
        return node

    def name(self, node: fx.Node) -> str:
        return f"quantize_{self.leader(node).name}"


def behind_clip(node: fx.Node) -> fx.Node:
    """The ReLU behind `node`, if that alone reads it: rounded once, after the ReLU."""
    users = list(node.users)
    return users[0] if len(users) == 1 and clip_bounds(users[0]) else node


def maker_of(node: fx.Node) -> fx.Node:
    """What computed the values that `node` moved or clipped."""
    while (node.target in MOVES or clip_bounds(node)) and is_activation(argument(node, 0)):
        node = argument(node, 0)
    return node


def readers_of(node: fx.Node) -> Iterator[fx.Node]:
    """What reads the values of `node`, moved and clipped or as they are."""
    for user in node.users:
        if user.target in MOVES or clip_bounds(user):
            yield from readers_of(user)
        else:
            yield user


def next_layers(
    node: fx.Node, ruled: frozenset[Any], step: Callable[[fx.Node], list[fx.Node]]
) -> Iterator[fx.Node]:
    """The first layers in one direction, past operators that have no rule of their own."""
    queue, seen = step(node), set[fx.Node]()
    while queue:
        near = queue.pop()
        if near in seen:
            continue
        seen.add(near)
        if is_layer(near):
            yield near
        elif near.target not in ruled:
            queue += step(near)


def inputs_of(node: fx.Node) -> list[fx.Node]:
    return node.all_input_nodes


def users_of(node: fx.Node) -> list[fx.Node]:
    return list(node.users)


def flat(arguments: Any) -> Iterator[Any]:
    for value in arguments:
        if isinstance(value, list | tuple):
            yield from flat(value)
        else:
            yield value
