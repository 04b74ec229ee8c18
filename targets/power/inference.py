"""Energy of single calls of a model, in the process that runs it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from kdpipe.targets.device.timing import time_calls
from kdpipe.targets.power import NoSensorError, sensor_for
from kdpipe.targets.power.base import Sensor, SensorError
from kdpipe.targets.power.meter import Meter


def energy_of(
    device: str,
    run: Callable[[Any], Any],
    feeds: Sequence[Any],
    seconds: float,
    idle_seconds: float,
) -> dict[str, Any]:
    """Millijoules of one call of `run`, above what the device consumes when nothing runs.

    First the device idles for `idle_seconds`, then `run` is called for `seconds`.
    {"energy_mj", "gross_mj" (idling included), "idle_w", "calls", "sensor", "what"}, or
    {"unavailable": why}. A model that takes no more than idling has an energy of around 0.
    """
    try:
        with sensor_for(device) as sensor:
            return _measured(sensor, run, feeds, seconds, idle_seconds)
    except (NoSensorError, SensorError) as error:
        return {"unavailable": str(error)}


def _measured(
    sensor: Sensor,
    run: Callable[[Any], Any],
    feeds: Sequence[Any],
    seconds: float,
    idle_seconds: float,
) -> dict[str, Any]:
    with Meter(sensor) as idle:
        time.sleep(idle_seconds)
    with Meter(sensor) as busy:
        calls = _calls(run, feeds, seconds)
    taken, rest = busy.energy(), idle.energy()
    net = taken.joules - rest.watts * taken.seconds
    return {
        "energy_mj": 1000 * net / calls,
        "gross_mj": 1000 * taken.joules / calls,
        "idle_w": rest.watts,
        "calls": calls,
        "sensor": sensor.name,
        "what": sensor.what,
    }


def _calls(run: Callable[[Any], Any], feeds: Sequence[Any], seconds: float) -> int:
    """Call `run` for `seconds`, however many calls that are, which `time_calls` limits."""
    end = time.monotonic() + seconds
    calls = len(time_calls(run, feeds, 1, seconds))
    while (left := end - time.monotonic()) > 0:
        calls += len(time_calls(run, feeds, 1, left, first=calls))
    return calls
