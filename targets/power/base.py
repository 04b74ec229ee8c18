"""What a power sensor promises: readings of energy or power, or the reason why there are none."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar

from kdpipe.targets.base import Missing

ROOT = Path("/")


class SensorError(Exception):
    """A sensor gave no reading; says which and why, in a few words."""


class Sensor(ABC):
    """A place where the machine tells what it consumes. Opening it takes no reading yet.

    A `cumulative` sensor gives joules since some start, one number for each counter; any other one
    the watts of this moment. `interval`: seconds between readings that are worth taking.
    """

    name: ClassVar[str]
    device: ClassVar[str]
    """What it covers: `CPU` packages, a `GPU`, or the whole `board`."""
    cumulative: bool = False
    interval: ClassVar[float] = 0.05

    @abstractmethod
    def missing(self) -> Missing | None:
        """Why it cannot be read here and what to type, or None when it can."""

    @property
    @abstractmethod
    def what(self) -> str:
        """What is in its numbers, in words. Example: package-0, package-1"""

    @abstractmethod
    def read(self) -> tuple[float, ...]:
        """Joules of each counter, or one value in watts; raises SensorError."""

    def ranges(self) -> tuple[float, ...]:
        """Joules at which each counter starts again from 0; empty where none does."""
        return ()

    def close(self) -> None:  # noqa: B027 (most have nothing to close)
        """Let go of what reading took."""


def number(file: Path) -> float:
    """The number in a file of the kernel; raises SensorError."""
    try:
        return float(file.read_text("ascii"))
    except (OSError, ValueError) as error:
        raise SensorError(f"{file}: {error}") from error
