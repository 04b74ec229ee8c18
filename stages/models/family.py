"""What an architecture family of the zoo promises; `source.py` decides where a model comes from.

A family is described without torch, so that `kdpipe plan` can name it, check its arguments and
shrink it; torch is imported when it is built.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from math import floor, isfinite
from os.path import commonprefix
from typing import TYPE_CHECKING, ClassVar

from kdpipe.targets.errors import UsageError

if TYPE_CHECKING:
    from torch import nn

Argument = bool | int | float | str
Arguments = Mapping[str, Argument]


@dataclass(frozen=True)
class Number:
    """An argument of a family: a number from `low` to `high`, whole if `whole`."""

    default: float
    low: float
    high: float
    whole: bool = False

    def accepts(self, value: Argument) -> bool:
        """Whether `value` is a number of the right kind within the bounds."""
        kinds = (int,) if self.whole else (int, float)
        if isinstance(value, bool) or not isinstance(value, kinds):
            return False
        return isfinite(value) and self.low <= value <= self.high

    def __str__(self) -> str:
        kind = "a whole number" if self.whole else "a number"
        return f"{kind} from {self.low:g} to {self.high:g}"


@dataclass(frozen=True)
class Group:
    """One stage of a network: how many blocks, each with how many output channels."""

    blocks: int
    channels: int


class Family(ABC):
    """Networks of one kind. `taps` maps roles to module paths, `path:in` being a module's input."""

    summary: ClassVar[str]
    taps: ClassVar[Mapping[str, str]]
    dense: ClassVar[bool] = False
    """Whether it gives logits for every pixel, (N, classes, H, W), and not for the image."""

    @abstractmethod
    def names(self) -> tuple[str, ...]:
        """The names that a config may use."""

    @abstractmethod
    def options(self, name: str) -> Mapping[str, Number]:
        """The arguments that `name` takes."""

    @abstractmethod
    def layout(self, name: str, arguments: Arguments) -> tuple[Group, ...]:
        """The stages of the network, in order; `arguments` as `arguments()` returned them."""

    @abstractmethod
    def scaled(
        self, name: str, arguments: Arguments, depth: float, width: float
    ) -> tuple[str, dict[str, Argument]]:
        """Name and arguments of the network with these shares of its blocks and channels."""

    @abstractmethod
    def build(self, name: str, arguments: Arguments, in_channels: int, classes: int) -> nn.Module:
        """The network, (N, in_channels, H, W) -> logits (N, classes), for any H, W >= 8.

        A `dense` one gives (N, classes, H, W), for the H, W that pass `check_size`. Weights are
        drawn from torch's global generator: seed it first.
        """

    def taps_of(self, name: str, arguments: Arguments) -> Mapping[str, str]:
        """{role: module path} of this very network, where it depends on the arguments."""
        return self.taps

    def check_size(  # noqa: B027 (most take any size)
        self, name: str, arguments: Arguments, height: int, width: int
    ) -> None:
        """Raise UsageError when the network cannot take images of this size."""

    def arguments(self, name: str, given: Arguments) -> dict[str, Argument]:
        """`given` completed by the defaults; UsageError for an unknown or unfit argument."""
        allowed = self.options(name)
        for key, value in given.items():
            if key not in allowed:
                raise UsageError(
                    f"model '{name}' has no argument '{key}'{did_you_mean(key, tuple(allowed))}",
                    fix=f"use {', '.join(f'{k} ({v})' for k, v in allowed.items())}",
                )
            if not allowed[key].accepts(value):
                raise UsageError(
                    f"argument '{key}' of model '{name}' must be {allowed[key]}",
                    found=repr(value),
                    fix=f"{key}: {allowed[key].default:g}",
                )
        return {key: given.get(key, option.default) for key, option in allowed.items()}

    def shrink(
        self, name: str, given: Arguments, depth: float, width: float
    ) -> tuple[str, dict[str, Argument]]:
        """A smaller sibling: `depth` is the share of blocks kept, `width` that of channels.

        Both are in (0, 1]. Every stage keeps at least one block and every layer 8 channels;
        UsageError when nothing would become smaller.
        """
        for word, share in (("depth", depth), ("width", width)):
            if not 0 < share <= 1:
                raise UsageError(
                    f"shrink: {word} must be above 0 and at most 1",
                    found=str(share),
                    fix=f"{word}: 0.5 keeps half",
                )
        arguments = self.arguments(name, given)
        smaller = self.scaled(name, arguments, depth, width)
        before, after = self.layout(name, arguments), self.layout(*smaller)
        if before == after:
            raise UsageError(
                f"shrinking '{name}' by depth {depth:g} and width {width:g} changes nothing",
                found=" + ".join(f"{g.blocks} x {g.channels} channels" for g in before),
                fix="lower depth or width, or name a smaller student: model",
            )
        name, arguments = smaller
        return name, self.arguments(name, arguments)


def channels(base: int, width: float) -> int:
    """`base` channels times `width`, rounded half up to a multiple of 4, and never under 8.

    Multiples of 4 suit int8 kernels (dot products of 4 bytes) and are fine enough for a width of
    0.75 to differ from 1 on a stage of 16 channels, which multiples of 8 are not.
    """
    return max(8, 4 * floor(base * width / 4 + 0.5))


def kept(blocks: int, share: float) -> int:
    """How many of `blocks` remain: `share` of them, rounded half up, at least one."""
    return max(1, floor(blocks * share + 0.5))


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """`; did you mean 'resnet20'?` for the closest of the `known` words, or nothing.

    Of words that are equally close, the one that begins the same for longest.
    """

    def closeness(other: str) -> tuple[float, int]:
        start = commonprefix([word, other])  # noqa: RUF071 (of letters, not of paths)
        return SequenceMatcher(a=word, b=other).ratio(), len(start)

    best = max(known, key=closeness, default="")
    return f"; did you mean '{best}'?" if closeness(best)[0] >= 0.6 else ""
