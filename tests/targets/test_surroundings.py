"""Where a machine runs and how it is set up, read from recorded trees."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdpipe.targets.surroundings import container, hypervisor, on_battery, surroundings, turbo


def plant(root: Path, files: dict[str, str]) -> Path:
    """A tree of files with these texts."""
    for file, text in files.items():
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


DMI = "sys/class/dmi/id"
PLUGGED = {"AC/type": "Mains", "AC/online": "1"}
UNPLUGGED = {"AC/type": "Mains", "AC/online": "0"}


@pytest.mark.parametrize(
    ("files", "name"),
    [
        ({"sys/hypervisor/type": "xen"}, "xen"),
        ({f"{DMI}/sys_vendor": "QEMU", f"{DMI}/product_name": "Standard PC (Q35)"}, "QEMU"),
        ({f"{DMI}/sys_vendor": "Amazon EC2", f"{DMI}/product_name": "c7i.large"}, "Amazon EC2"),
        ({f"{DMI}/sys_vendor": "Amazon EC2", f"{DMI}/product_name": "c7i.metal-24xl"}, None),
        (
            {
                f"{DMI}/sys_vendor": "Microsoft Corporation",
                f"{DMI}/product_name": "Virtual Machine",
            },
            "Hyper-V",
        ),
        ({f"{DMI}/sys_vendor": "Microsoft Corporation", f"{DMI}/product_name": "Surface"}, None),
        ({f"{DMI}/sys_vendor": "LENOVO", f"{DMI}/product_name": "21CBCTO1WW"}, None),
        ({}, None),
    ],
)
def test_virtual_machines_are_named(
    tmp_path: Path, files: dict[str, str], name: str | None
) -> None:
    """By Xen's file or the product; a cloud's bare metal and a laptop are none."""
    assert hypervisor(plant(tmp_path, files)) == name


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({".dockerenv": ""}, "docker"),
        ({"run/.containerenv": 'engine="podman"'}, "podman"),
        ({"proc/self/cgroup": "0::/kubepods/besteffort/pod1234"}, "kubernetes"),
        ({"proc/self/cgroup": "0::/user.slice/user-1000.slice"}, None),
        ({}, None),
    ],
)
def test_containers_are_named(tmp_path: Path, files: dict[str, str], found: str | None) -> None:
    """By the file an engine leaves, or by the control group."""
    assert container(plant(tmp_path, files)) == found


@pytest.mark.parametrize(
    ("file", "text", "on"),
    [
        ("intel_pstate/no_turbo", "0", True),
        ("intel_pstate/no_turbo", "1", False),
        ("cpufreq/boost", "1", True),
        ("cpufreq/boost", "0", False),
        ("cpufreq/other", "0", None),
    ],
)
def test_turbo_is_told_by_either_driver(
    tmp_path: Path, file: str, text: str, on: bool | None
) -> None:
    """Intel's driver says that it is off, the general one that it is on."""
    assert turbo(plant(tmp_path, {f"sys/devices/system/cpu/{file}": text})) is on


@pytest.mark.parametrize(
    ("supplies", "battery"),
    [
        ({**UNPLUGGED, "BAT0/type": "Battery", "BAT0/status": "Discharging"}, True),
        ({**PLUGGED, "BAT0/type": "Battery", "BAT0/status": "Charging"}, False),
        ({**PLUGGED, "mouse/type": "Battery", "mouse/status": "Discharging"}, False),
        (PLUGGED, False),
        ({}, None),
    ],
)
def test_battery_is_told_by_the_supplies(
    tmp_path: Path, supplies: dict[str, str], battery: bool | None
) -> None:
    """A mouse with a battery of its own does not make a laptop."""
    files = {f"sys/class/power_supply/{name}": text for name, text in supplies.items()}

    assert on_battery(plant(tmp_path, files)) is battery


def test_an_empty_tree_tells_nothing(tmp_path: Path) -> None:
    """Every state is None where nothing can be read."""
    assert set(surroundings(tmp_path).values()) == {None}
