"""Texas Instruments' power monitors on the rails of a board, such as a Jetson's.

They are found by driver and label, as their places differ from board to board. Units: Linux,
Documentation/hwmon/sysfs-interface.rst: mV, mA and uW. JetPack 4 shows the INA3221 as an iio device
instead, in mW.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from kdpipe.targets.base import Missing
from kdpipe.targets.power.base import ROOT, Sensor, number
from kdpipe.targets.surroundings import read

DRIVERS = ("ina3221", "ina238", "ina226", "ina219", "ina2xx")
TOTALS = ("VDD_IN", "POM_5V_IN", "VIN")
"""Rails that feed the whole module: Orin Nano and NX, Xavier NX and TX2; Nano; Thor. AGX Xavier and
AGX Orin have no such rail: there the module is the sum of all."""


@dataclass(frozen=True)
class Rail:
    """One rail: files whose product, or whose single value, times `scale` is its power in watts."""

    label: str
    files: tuple[Path, ...]
    scale: float

    def watts(self) -> float:
        """Its power now; raises SensorError."""
        power = self.scale
        for file in self.files:
            power *= number(file)
        return power


class Ina(Sensor):
    """The rail of the whole module, or the sum of all rails where there is none."""

    name: ClassVar[str] = "ina"
    device: ClassVar[str] = "board"

    def __init__(self, root: Path = ROOT) -> None:
        rails = list(rails_of(root))
        total = [rail for label in TOTALS for rail in rails if rail.label == label]
        self._rails: Sequence[Rail] = total[:1] or rails

    def missing(self) -> Missing | None:
        """Only boards with such a monitor have it."""
        if self._rails:
            return None
        return Missing("no INA3221 or INA238 power monitor", "measure on a board that has one")

    @property
    def what(self) -> str:
        """The labels of the rails that count."""
        return " + ".join(rail.label for rail in self._rails)

    def read(self) -> tuple[float, ...]:
        """Watts of all rails that count."""
        return (sum(rail.watts() for rail in self._rails),)


def rails_of(root: Path) -> Iterator[Rail]:
    """Every labelled rail of the board, in the order of the kernel's names."""
    for monitor in sorted((root / "sys/class/hwmon").glob("hwmon*")):
        if read(monitor / "name") in DRIVERS:
            yield from _hwmon(monitor)
    for monitor in sorted((root / "sys/bus/i2c/drivers/ina3221x").glob("*/iio*")):
        for named in sorted(monitor.glob("rail_name_*")):
            power = monitor / f"in_power{named.name.rpartition('_')[2]}_input"
            if power.exists():
                yield Rail(read(named), (power,), 1e-3)


def _hwmon(monitor: Path) -> Iterator[Rail]:
    """Channels with a voltage and a current of their own; a chip that multiplies itself has one."""
    if (monitor / "power1_input").exists():
        label = read(monitor / "label") or read(monitor / "device/of_node/label")
        yield Rail(label or monitor.name, (monitor / "power1_input",), 1e-6)
        return
    for labelled in sorted(monitor.glob("in*_label")):
        channel = re.sub(r"\D", "", labelled.name)
        files = (monitor / f"in{channel}_input", monitor / f"curr{channel}_input")
        # The sum of the shunt voltages has a label too, and no current.
        if all(file.exists() for file in files):
            yield Rail(read(labelled), files, 1e-6)
