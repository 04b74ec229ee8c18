"""Energy of single calls, on counters that rise while they run."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from kdpipe.targets.device import timing
from kdpipe.targets.power import NoSensorError, sensor_for
from kdpipe.targets.power.ina import Ina
from kdpipe.targets.power.inference import energy_of
from kdpipe.targets.power.rapl import Rapl
from kdpipe.targets.power.tegrastats import Tegrastats


@pytest.fixture
def packages(burning: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The only sensor there is."""
    only = partial(sensor_for, kinds=(partial(Rapl, burning.root),))
    monkeypatch.setattr("kdpipe.targets.power.inference.sensor_for", only)
    return burning


def test_energy_of_calls_on_a_live_counter(packages: Any) -> None:
    """A counter that rises by 10 W while idle and 30 W while calls run: 20 W are the calls'."""

    def call(_: Any) -> None:
        packages.watts = 15.0
        time.sleep(0.01)

    found = energy_of("CPU", call, [None], seconds=0.6, idle_seconds=0.6)

    joules = found["energy_mj"] * found["calls"] / 1000
    gross = found["gross_mj"] * found["calls"] / 1000
    assert found["sensor"] == "rapl"
    assert found["idle_w"] == pytest.approx(10, rel=0.35)
    assert joules / gross == pytest.approx(20 / 30, rel=0.25)


def test_a_fast_model_is_called_until_the_time_is_up(
    packages: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More calls than one round of timing takes: else a sensor would find them too short."""
    monkeypatch.setattr(timing, "MOST", 10)

    found = energy_of("CPU", lambda _: time.sleep(0.001), [None], seconds=0.4, idle_seconds=0.4)

    assert "unavailable" not in found
    assert found["calls"] > 10


def test_without_a_sensor_there_is_a_reason_for_each() -> None:
    """Nothing covers the device: neither 0 nor a guess."""
    none = sensor_for("GPU", (lambda: Ina(Path("/none")), lambda: Tegrastats("none")))
    with pytest.raises(NoSensorError, match=r"ina: no INA3221.*tegrastats: no tegrastats"), none:
        pass
    found = energy_of("no such device", len, [()], 0.0, 0.0)
    assert set(found) == {"unavailable"}
