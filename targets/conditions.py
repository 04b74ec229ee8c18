"""What happened on the machine while something was measured; `fingerprint.py` says what it is.

Two snapshots of the system's own counters, and what lies between them. Nothing is excluded for
what is found here: a disturbed measurement is marked, and kept. What cannot be read is left out.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from kdpipe.targets.surroundings import control_groups, on_battery, read

ROOT = Path("/")
_TICKS_A_SECOND = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
_CORE = re.compile(r"cpu(\d+)$")

SHORTEST_S = 0.2
"""CPU seconds below which shares of them are left out: the kernel counts in ticks of 10 ms."""


@dataclass(frozen=True)
class Cpu:
    """CPU seconds since the machine started, summed over some cores."""

    total: float
    busy: float
    stolen: float


@dataclass(frozen=True)
class Snapshot:
    """Counters of the system at one moment; those that cannot be read are None or empty.

    `cpu`: of the watched cores. `own`: CPU seconds of this process and of those it has waited for.
    `throttled`: how often and for how many seconds the control group ran into its quota. `heat`:
    how often each core was slowed down for its heat. `mhz`: clock of each core. `swapped`: pages
    since the start. `faults`: pages that this process had to wait for the disk for.
    """

    own: float
    cpu: Cpu | None = None
    throttled: tuple[int, float] | None = None
    heat: Mapping[int, int] = field(default_factory=dict)
    mhz: Mapping[int, float] = field(default_factory=dict)
    swapped: int | None = None
    faults: int | None = None
    battery: bool | None = None


def snapshot(cores: Collection[int] | None = None, root: Path = ROOT) -> Snapshot:
    """Read the counters now, for `cores` or all that this process may use."""
    if cores is None:
        cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else ()
    groups = [read(group / "cpu.stat") for group in control_groups(root)]
    return Snapshot(
        own=sum(os.times()[:4]),
        cpu=cpu_seconds(read(root / "proc/stat"), cores, _TICKS_A_SECOND),
        throttled=throttling(groups),
        heat=_of_cores(root, "thermal_throttle/*_throttle_count", cores),
        mhz={
            core: khz / 1000
            for core, khz in _of_cores(root, "cpufreq/scaling_cur_freq", cores).items()
        },
        swapped=swapped_pages(read(root / "proc/vmstat")),
        faults=_major_faults(),
        battery=on_battery(root),
    )


def between(before: Snapshot, after: Snapshot) -> dict[str, float]:
    """What two snapshots of the same cores differ by, as JSON-ready numbers.

    Shares of the CPU time of the watched cores, 0 to 1: `other_cpu` (processes that are neither
    this one nor were waited for by it) and `stolen` (what the hypervisor gave to other machines).
    Counts: `throttled` (times the quota was used up), `hot_cores`, `swapped_pages`,
    `major_faults`. `mhz_before` and `mhz_after`: clock of the fastest core. `on_battery`: 1 if so.
    """
    facts: dict[str, float] = _shares(before, after)
    if before.throttled and after.throttled:
        facts["throttled"] = after.throttled[0] - before.throttled[0]
        facts["throttled_s"] = after.throttled[1] - before.throttled[1]
    if after.heat:
        facts["hot_cores"] = sum(n > before.heat.get(core, n) for core, n in after.heat.items())
    if before.mhz and after.mhz:
        facts |= {"mhz_before": max(before.mhz.values()), "mhz_after": max(after.mhz.values())}
    if before.swapped is not None and after.swapped is not None:
        facts["swapped_pages"] = after.swapped - before.swapped
    if before.faults is not None and after.faults is not None:
        facts["major_faults"] = after.faults - before.faults
    if after.battery is not None:
        facts["on_battery"] = float(after.battery)
    return facts


def _shares(before: Snapshot, after: Snapshot) -> dict[str, float]:
    if before.cpu is None or after.cpu is None:
        return {}
    total = after.cpu.total - before.cpu.total
    if total < SHORTEST_S:
        return {}
    others = after.cpu.busy - before.cpu.busy - (after.own - before.own)
    stolen = after.cpu.stolen - before.cpu.stolen
    # own time is exact and that of the cores is counted in ticks: others may come out below 0
    return {
        "cpu_s": total,
        "other_cpu": min(max(others / total, 0.0), 1.0),
        "stolen": min(max(stolen / total, 0.0), 1.0),
    }


def cpu_seconds(stat: str, cores: Collection[int], ticks_a_second: int) -> Cpu | None:
    """CPU time of `cores`, all where none is named, from the text of /proc/stat (proc(5)).

    A line is `cpu0 user nice system idle iowait irq softirq steal guest guest_nice`, in ticks;
    guests are in user and nice already. None where the text has no such line.
    """
    rows = []
    for line in stat.splitlines():
        name, *columns = line.split() or [""]
        core = _CORE.match(name)
        if core and (not cores or int(core[1]) in cores):
            rows.append([int(column) for column in columns[:8]])
    if not rows:
        return None
    sums = [sum(column) / ticks_a_second for column in zip(*rows, strict=True)]
    idle, stolen = sum(sums[3:5]), sum(sums[7:8])
    return Cpu(total=sum(sums), busy=sum(sums) - idle - stolen, stolen=stolen)


def throttling(groups: Iterable[str]) -> tuple[int, float] | None:
    """(times, seconds) that the quota of a control group or of one above it was used up.

    From the texts of their cpu.stat; version 2 counts microseconds, version 1 nanoseconds. None
    where none of them counts.
    """
    found = [dict(line.split()[:2] for line in text.splitlines()) for text in groups if text]
    found = [counters for counters in found if "nr_throttled" in counters]
    if not found:
        return None
    seconds = sum(
        int(counters.get("throttled_usec", 0)) / 1e6 + int(counters.get("throttled_time", 0)) / 1e9
        for counters in found
    )
    return sum(int(counters["nr_throttled"]) for counters in found), seconds


def swapped_pages(vmstat: str) -> int | None:
    """Pages read from and written to swap since the start, from the text of /proc/vmstat."""
    counters = dict(line.split()[:2] for line in vmstat.splitlines())
    if "pswpin" not in counters:
        return None
    return int(counters["pswpin"]) + int(counters.get("pswpout", 0))


def _of_cores(root: Path, files: str, cores: Collection[int]) -> dict[int, int]:
    """The number in a file of each core's folder; the sum where there are several files."""
    found: dict[int, int] = {}
    for core in sorted(cores):
        folder = root / f"sys/devices/system/cpu/cpu{core}"
        numbers = [read(file) for file in folder.glob(files)]
        if numbers and all(number.isdigit() for number in numbers):
            found[core] = sum(map(int, numbers))
    return found


def _major_faults() -> int | None:
    try:
        import resource
    except ImportError:  # there is none on Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_majflt
