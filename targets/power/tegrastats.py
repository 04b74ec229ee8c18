"""`tegrastats`, which every Jetson has: the rails where their files cannot be read."""

from __future__ import annotations

import re
import shutil
import subprocess
import threading
import time
from collections.abc import Mapping
from typing import ClassVar

from kdpipe.targets.base import Missing
from kdpipe.targets.power.base import Sensor, SensorError
from kdpipe.targets.power.ina import TOTALS

_RAIL = re.compile(r"\b([A-Z][A-Z0-9_]*) (\d+)(?:mW)?/(\d+)(?:mW)?(?=\s|$)")
_OLDEST_S = 1.0
_START_S = 5.0


def rails(line: str) -> dict[str, float]:
    """Watts of each rail in a line, now; its second number is an average since the start.

    Example: rails("RAM 9/16MB VDD_IN 4928mW/4900mW") -> {"VDD_IN": 4.928}; JetPack 4 leaves out the
    unit.
    """
    return {name: int(now) / 1000 for name, now, _ in _RAIL.findall(line)}


def total(found: Mapping[str, float]) -> float:
    """Watts of the module: of the rail that feeds it, or the sum of all."""
    for label in TOTALS:
        if label in found:
            return found[label]
    return sum(found.values())


class Tegrastats(Sensor):
    """A child process that prints a line ten times a second; the last line counts."""

    name: ClassVar[str] = "tegrastats"
    device: ClassVar[str] = "board"
    interval: ClassVar[float] = 0.1

    def __init__(self, command: str = "tegrastats") -> None:
        self._command = command
        self._child: subprocess.Popen[str] | None = None
        self._last: tuple[float, dict[str, float]] | None = None
        self._came = threading.Event()

    def missing(self) -> Missing | None:
        """Jetsons have it."""
        if shutil.which(self._command):
            return None
        return Missing("no tegrastats", "measure on a Jetson")

    @property
    def what(self) -> str:
        """The rails of the last line."""
        found = self._last[1] if self._last else {}
        return next((label for label in TOTALS if label in found), " + ".join(found))

    def read(self) -> tuple[float, ...]:
        """Watts of the module in the last line; raises SensorError when that is a second old."""
        if self._child is None:
            self._start()
        if not self._came.wait(_START_S) or self._last is None:
            raise SensorError("tegrastats printed no rail")
        when, found = self._last
        if time.monotonic() - when > _OLDEST_S:
            raise SensorError("tegrastats fell silent")
        return (total(found),)

    def close(self) -> None:
        """End the child."""
        if self._child:
            self._child.kill()
            self._child.communicate()
            self._child = None

    def _start(self) -> None:
        milliseconds = str(int(self.interval * 1000))
        self._child = subprocess.Popen(
            [self._command, "--interval", milliseconds],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            errors="replace",
        )
        threading.Thread(target=self._listen, args=(self._child,), daemon=True).start()

    def _listen(self, child: subprocess.Popen[str]) -> None:
        assert child.stdout
        for line in child.stdout:
            if found := rails(line):
                self._last = time.monotonic(), found
                self._came.set()
        self._came.set()  # whoever waits for a child that ended learns it at once
