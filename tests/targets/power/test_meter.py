"""The integral of power and the difference of counters, and when there is no honest number."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import pairwise
from typing import ClassVar

import numpy as np
import pytest

from kdpipe.targets.base import Missing
from kdpipe.targets.power.base import Sensor, SensorError
from kdpipe.targets.power.meter import Meter, counted, integrate

# VDD_IN of a module under a burst of work: seconds, watts; as tegrastats prints them.
TRACE = (
    (0.000, 4.928), (0.101, 4.928), (0.203, 5.007), (0.302, 9.842), (0.404, 11.351),
    (0.507, 11.429), (0.605, 11.311), (0.709, 10.960), (0.811, 6.147), (0.913, 4.967),
)  # fmt: skip


class Played(Sensor):
    """Gives prepared readings one after the other, and then the last for ever."""

    name: ClassVar[str] = "played"
    device: ClassVar[str] = "CPU"
    interval: ClassVar[float] = 0.01

    def __init__(self, values: list[float | str], cumulative: bool, wrap: float = 0.0) -> None:
        self._values = iter(values)
        self._last: float | str = 0.0
        self._wrap = wrap
        self.cumulative = cumulative

    def missing(self) -> Missing | None:
        return None

    @property
    def what(self) -> str:
        return "a trace"

    def read(self) -> tuple[float, ...]:
        self._last = next(self._values, self._last)
        if isinstance(self._last, str):
            raise SensorError(self._last)
        return (self._last,)

    def ranges(self) -> tuple[float, ...]:
        return (self._wrap,) if self._wrap else ()


def by_hand() -> float:
    """The area under the trace: rectangles and triangles, one by one."""
    area = 0.0
    for (t0, w0), (t1, w1) in pairwise(TRACE):
        area += min(w0, w1) * (t1 - t0) + abs(w1 - w0) * (t1 - t0) / 2
    return area


def test_the_integral_of_a_recorded_trace() -> None:
    """Uneven steps count by their length."""
    times, watts = np.array(TRACE).T

    assert integrate(times, watts) == pytest.approx(by_hand(), rel=1e-12)


def test_a_gap_is_no_number() -> None:
    """Nobody knows what was consumed while nothing was read; nor when time ran backwards."""
    with pytest.raises(SensorError, match=r"nothing was read for 1\.5 s"):
        integrate(np.array([0.0, 0.1, 1.6]), np.ones(3))
    with pytest.raises(SensorError, match="out of order"):
        integrate(np.array([0.0, 0.1, 0.1]), np.ones(3))


def test_counters_wrap_each_at_its_own_range() -> None:
    """Two packages, of which one starts again from 0 in between."""
    joules = np.array([[9.0, 1.0], [9.5, 2.0], [0.5, 4.0]])

    assert counted(joules, (10.0, 100.0)) == pytest.approx(1.5 + 3.0)


def test_counters_that_cannot_be_right() -> None:
    """One that falls without a range, and one that stands still, which would pass for 0 joules."""
    with pytest.raises(SensorError, match="fell"):
        counted(np.array([[2.0], [1.0]]), ())
    with pytest.raises(SensorError, match="stood still"):
        counted(np.array([[2.0], [2.0], [2.0]]), (10.0,))


def test_a_meter_on_constant_power() -> None:
    """Five watts are five joules a second, over the meter's own seconds."""
    with Meter(Played([5.0], cumulative=False)) as meter:
        time.sleep(0.25)
    energy = meter.energy()

    assert energy.joules == pytest.approx(5 * energy.seconds)
    assert energy.watts == pytest.approx(5)
    assert energy.readings >= 3


def test_a_meter_on_a_counter_that_wraps() -> None:
    """From 98 of 100 joules by one for each reading."""
    rising: list[float | str] = [float(value % 100) for value in range(98, 2000)]
    with Meter(Played(rising, cumulative=True, wrap=100.0)) as meter:
        time.sleep(0.25)
    energy = meter.energy()

    assert energy.joules == pytest.approx(energy.readings - 1)


@pytest.mark.parametrize(
    ("values", "seconds", "why"),
    [
        ([5.0, 5.0, "it was unplugged"], 0.25, "unplugged"),
        (["permission denied"], 0.25, "denied"),
        ([5.0, float("nan"), 5.0], 0.25, "not a number"),
        ([5.0], 0.0, "too short"),
    ],
)
def test_a_sensor_that_fails_gives_a_reason_and_no_number(
    values: list[float | str], seconds: float, why: str
) -> None:
    """One failed reading is enough: what was consumed meanwhile is not known."""
    with Meter(Played(values, cumulative=False)) as meter:
        time.sleep(seconds)

    with pytest.raises(SensorError, match=why):
        meter.energy()


@pytest.fixture(autouse=True)
def _ends() -> Iterator[None]:
    """Every meter's thread has ended."""
    import threading

    before = threading.active_count()
    yield
    assert threading.active_count() == before
