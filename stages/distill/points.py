"""Points of a network at which a tensor can be read: what a tap stands for, once it has a path.

`taps.py` knows roles and asks for paths. A network whose modules run one by one is read by hooks on
them; one that is a single graph, such as a quantized one, brings `Points` of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, Protocol, runtime_checkable

from torch import Tensor, nn

Side = Literal["", "in", "pre"]
"""A module's output, its first input, or what enters the last activation in it."""
Record = Callable[[Any], None]
"""Called in every forward pass with what is at the point."""
Parameter = tuple[nn.Module, str]
"""The module that holds it, and the name of the attribute."""
_ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.SiLU, nn.GELU, nn.Hardswish, nn.LeakyReLU, nn.PReLU)


class NoPoint(LookupError):
    """There is no such point; the message says what there is in its place."""


class Handle(Protocol):
    """What takes a watch out of the network again."""

    def remove(self) -> None:
        """Stop watching."""


class Points(Protocol):
    """How the tensors of one network are reached, by the paths of the user's modules."""

    def paths(self) -> tuple[str, ...]:
        """The modules that have points, in order."""

    def watch(self, path: str, side: Side, record: Record) -> Handle:
        """Call `record` with the tensor at a point, in every forward pass until it is removed.

        Raises NoPoint where `pre` is asked of a module without an activation.
        """

    def parameter(self, path: str, name: Literal["weight", "bias"]) -> Parameter | None:
        """Where the layer at `path` keeps a parameter; None where it has none."""


@runtime_checkable
class Pointed(Protocol):
    """A network that knows its own points."""

    def tap_points(self) -> Points:
        """Where its tensors are."""


def points_of(network: nn.Module) -> Points:
    """The points of a network: its own, or its modules."""
    return network.tap_points() if isinstance(network, Pointed) else ModulePoints(network)


class ModulePoints:
    """Points of a network whose modules are called one by one: forward hooks."""

    def __init__(self, network: nn.Module) -> None:
        self._modules = dict(network.named_modules())

    def paths(self) -> tuple[str, ...]:
        """All modules below the network itself."""
        return tuple(path for path in self._modules if path)

    def watch(self, path: str, side: Side, record: Record) -> Handle:
        """A hook on the module, or on the activation in it."""
        module = self._modules[path]
        handle: Handle
        if side == "":
            handle = module.register_forward_hook(lambda _module, _inputs, output: record(output))
            return handle
        chosen = _last_activation(module) if side == "pre" else module

        def note(_module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
            record(next(iter((*inputs, *named.values())), None))

        handle = chosen.register_forward_pre_hook(note, with_kwargs=True)
        return handle

    def parameter(self, path: str, name: Literal["weight", "bias"]) -> Parameter | None:
        """An attribute of the module."""
        module = self._modules[path]
        return (module, name) if isinstance(getattr(module, name, None), Tensor) else None


def _last_activation(module: nn.Module) -> nn.Module:
    found = [inner for inner in module.modules() if isinstance(inner, _ACTIVATIONS)]
    if not found:
        names = ", ".join(name for name, _ in module.named_modules() if name)
        raise NoPoint(f"{type(module).__name__} with {names or 'nothing in it'}")
    return found[-1]
