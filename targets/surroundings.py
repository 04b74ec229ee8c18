"""Where this machine runs and how it is set up: what stays while it is up, and disturbs.

Unlike `conditions.py`, which reads counters, everything here is a state. Each function takes the
root of the file system. What cannot be read is None, and never a guess.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

State = str | float | bool | None

_CPU = "sys/devices/system/cpu"
_MAKERS = ("QEMU", "KVM", "VMware", "VirtualBox", "Xen", "Bochs", "Parallels", "Hyper-V")
_CLOUDS = ("Amazon EC2", "Google Compute Engine", "OpenStack", "DigitalOcean", "Alibaba Cloud")
_CONTAINERS = {".dockerenv": "docker", "run/.containerenv": "podman"}
_GROUPS = {"docker": "docker", "kubepods": "kubernetes", "lxc": "lxc", "containerd": "containerd"}


def surroundings(root: Path = Path("/")) -> dict[str, State]:
    """{"governor", "turbo", "hypervisor", "container", "cpu_quota", "on_battery"}

    `cpu_quota`: cores' worth of CPU time that the control group may use.
    """
    return {
        "governor": read(root / _CPU / "cpu0/cpufreq/scaling_governor") or None,
        "turbo": turbo(root),
        "hypervisor": hypervisor(root),
        "container": container(root),
        "cpu_quota": cpu_quota(root),
        "on_battery": on_battery(root),
    }


def turbo(root: Path) -> bool | None:
    """Whether cores may run above their nominal clock, as long as heat and power allow."""
    off = read(root / _CPU / "intel_pstate/no_turbo")
    on = read(root / _CPU / "cpufreq/boost")
    if off in ("0", "1"):
        return off == "0"
    return on == "1" if on in ("0", "1") else None


def hypervisor(root: Path) -> str | None:
    """What a virtual machine runs on, by Xen's own file or the name of the product.

    None where neither names one: the flag that x86 processors then carry is `virtualised` in the
    fingerprint.
    """
    if kind := read(root / "sys/hypervisor/type"):
        return kind
    dmi = root / "sys/class/dmi/id"
    product = f"{read(dmi / 'sys_vendor')} {read(dmi / 'product_name')}".lower()
    if "metal" in product:  # a cloud's machine without its hypervisor
        return None
    if "microsoft corporation" in product and "virtual machine" in product:
        return "Hyper-V"
    return next((name for name in (*_MAKERS, *_CLOUDS) if name.lower() in product), None)


def container(root: Path) -> str | None:
    """The kind of container this process is in, as far as it shows."""
    for file, kind in _CONTAINERS.items():
        if (root / file).exists():
            return kind
    groups = read(root / "proc/self/cgroup")
    return next((kind for word, kind in _GROUPS.items() if word in groups), None)


def cpu_quota(root: Path) -> float | None:
    """How many cores' worth of CPU time the control groups allow; None without a limit."""
    quotas = [quota for group in control_groups(root) if (quota := _quota(group)) is not None]
    return min(quotas, default=None)


def _quota(group: Path) -> float | None:
    """Version 2: `cpu.max` says `150000 100000` or `max 100000`; version 1 has two files, or -1."""
    allowed, _, period = read(group / "cpu.max").partition(" ")
    if not period:
        allowed = read(group / "cpu.cfs_quota_us")
        period = read(group / "cpu.cfs_period_us")
    both = allowed.isdigit() and period.isdigit() and int(period) > 0
    return int(allowed) / int(period) if both else None


def control_groups(root: Path) -> Iterator[Path]:
    """Folders of the CPU control group of this process and of all above it.

    Inside a container the path may be that of the host, which does not lead anywhere; the folders
    that are there are the container's own.
    """
    mount = root / "sys/fs/cgroup"
    for line in read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        top = mount / controllers if controllers else mount
        below = top / path.lstrip("/")
        yield from (
            folder for folder in (below, *below.parents) if top in (folder, *folder.parents)
        )


def on_battery(root: Path) -> bool | None:
    """Whether a battery feeds the machine; None where it tells of no power supply."""
    supplies = list((root / "sys/class/power_supply").glob("*"))
    mains = [read(s / "online") for s in supplies if read(s / "type") in ("Mains", "USB")]
    if "1" in mains:
        return False
    states = [read(s / "status") for s in supplies if read(s / "type") == "Battery"]
    return "Discharging" in states if states else None


def read(file: Path) -> str:
    """The file's text, or nothing where the system has no such file.

    Without the blanks, and the zero that ends what a device tree says.
    """
    try:
        return file.read_text("utf-8", errors="replace").strip(" \t\r\n\0")
    except OSError:
        return ""
