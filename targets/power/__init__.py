"""Energy and GPU memory, where the machine has a sensor; the best one for a device comes first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from kdpipe.targets.power.base import Sensor
from kdpipe.targets.power.ina import Ina
from kdpipe.targets.power.nvml import Nvml
from kdpipe.targets.power.rapl import Rapl
from kdpipe.targets.power.tegrastats import Tegrastats

SENSORS: tuple[type[Sensor], ...] = (Nvml, Rapl, Ina, Tegrastats)
BOARD = "board"


class NoSensorError(Exception):
    """No sensor covers a device here; says why for each that could."""


@contextmanager
def sensor_for(device: str, kinds: tuple[Callable[[], Sensor], ...] = SENSORS) -> Iterator[Sensor]:
    """The first sensor that covers `device` (`CPU`, `GPU`) or the whole board, open meanwhile.

    Raises NoSensorError when there is none.
    """
    reasons = []
    for kind in kinds:
        sensor = kind()
        try:
            if sensor.device not in (device, BOARD):
                continue
            if (why := sensor.missing()) is None:
                yield sensor
                return
            reasons.append(f"{sensor.name}: {why.reason}")
        finally:
            sensor.close()
    raise NoSensorError("; ".join(reasons))
