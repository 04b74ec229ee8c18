"""Energy of what runs while a meter is on: readings in a thread, and their integral.

What a sensor cannot say is `None` with a reason, never 0: a sensor that fell silent, a counter that
stood still, a gap that nothing is known of.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from kdpipe.targets.power.base import Sensor, SensorError

LONGEST_GAP_S = 1.0
"""Between readings of power; what happened in a longer one is not known."""
SHORTEST_S = 0.2
"""Of a measurement: sensors renew their values every 1 to 100 ms."""


@dataclass(frozen=True)
class Energy:
    """What was consumed: `joules` in `seconds`, from so many `readings` of a sensor."""

    joules: float
    seconds: float
    readings: int

    @property
    def watts(self) -> float:
        """Mean power."""
        return self.joules / self.seconds


def integrate(times_s: NDArray[np.float64], watts: NDArray[np.float64]) -> float:
    """Joules by the trapezoidal rule; raises SensorError for gaps longer than LONGEST_GAP_S."""
    steps = np.diff(times_s)
    if (steps <= 0).any():
        raise SensorError("readings are out of order")
    if steps.max(initial=0.0) > LONGEST_GAP_S:
        raise SensorError(f"nothing was read for {steps.max():.1f} s")
    return float(((watts[1:] + watts[:-1]) / 2 * steps).sum())


def counted(joules: NDArray[np.float64], ranges: Sequence[float]) -> float:
    """What counters (n, C) went up by from reading to reading, each wrapping at its range.

    Raises SensorError when a counter fell that does not wrap, and when none of them moved.
    """
    steps = np.diff(joules, axis=0)
    fell = steps < 0
    if fell.any() and not ranges:
        raise SensorError("a counter of energy fell")
    if ranges:
        steps = np.where(fell, steps + np.asarray(ranges), steps)
    total = float(steps.sum())
    if total <= 0:
        raise SensorError("the counter of energy stood still")
    return total


class Meter:
    """Reads a sensor while it is entered; `energy` afterwards. Use as a context manager."""

    def __init__(self, sensor: Sensor, clock: Callable[[], float] = time.monotonic) -> None:
        self._sensor = sensor
        self._clock = clock
        self._times: list[float] = []
        self._values: list[tuple[float, ...]] = []
        self._error: SensorError | None = None
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._read()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._done.set()
        self._thread.join()
        self._read()

    def energy(self) -> Energy:
        """What was consumed meanwhile; raises SensorError where the sensor cannot say."""
        if self._error:
            raise self._error
        times = np.array(self._times)
        values = np.array(self._values, dtype=np.float64)
        seconds = float(times[-1] - times[0])
        if not np.isfinite(values).all():
            raise SensorError("a reading was not a number")
        if seconds < SHORTEST_S:
            raise SensorError(f"{seconds:.2f} s are too short for a sensor")
        if self._sensor.cumulative:
            joules = counted(values, self._sensor.ranges())
        else:
            joules = integrate(times, values[:, 0])
        return Energy(joules, seconds, len(times))

    def _watch(self) -> None:
        while not self._done.wait(self._sensor.interval) and not self._error:
            self._read()

    def _read(self) -> None:
        try:
            value = self._sensor.read()
        except SensorError as error:
            self._error = self._error or error
            return
        self._times.append(self._clock())
        self._values.append(value)
