"""Running Average Power Limit: the energy counters of x86 packages, of Intel and of AMD.

Linux, Documentation/power/powercap/powercap.rst. Since CVE-2020-8694 only root may read them.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import ClassVar

from kdpipe.targets.base import Missing
from kdpipe.targets.power.base import ROOT, Sensor, number
from kdpipe.targets.surroundings import read

_ZONE = re.compile(r"intel-rapl:\d+$")
_MICRO = 1e-6


class Rapl(Sensor):
    """All packages together: cores, caches and, on client processors, the built-in GPU."""

    name: ClassVar[str] = "rapl"
    device: ClassVar[str] = "CPU"
    cumulative = True

    def __init__(self, root: Path = ROOT) -> None:
        folder = root / "sys/class/powercap"
        zones = sorted(folder.iterdir()) if folder.is_dir() else []
        # Zones below a package (cores, dram) are in it or beside it, and would count twice.
        self._zones = [
            zone
            for zone in zones
            if _ZONE.fullmatch(zone.name) and read(zone / "name").startswith("package")
        ]

    def missing(self) -> Missing | None:
        """Virtual machines have no counters, and users other than root may not read them."""
        if not self._zones:
            return Missing(
                "no energy counter of a processor package", "measure on the bare machine"
            )
        closed = [z / "energy_uj" for z in self._zones if not os.access(z / "energy_uj", os.R_OK)]
        if closed:
            return Missing(f"{closed[0]} may be read by root only", f"sudo chmod a+r {closed[0]}")
        return None

    @property
    def what(self) -> str:
        """The names of the packages."""
        return ", ".join(read(zone / "name") for zone in self._zones)

    def read(self) -> tuple[float, ...]:
        """Joules of each package."""
        return tuple(number(zone / "energy_uj") * _MICRO for zone in self._zones)

    def ranges(self) -> tuple[float, ...]:
        """Some minutes of full load, as a rule."""
        return tuple(number(zone / "max_energy_range_uj") * _MICRO for zone in self._zones)
