"""Sensors on recorded trees of /sys, on lines of tegrastats, and on a library with NVML's calls."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from kdpipe.targets.memory import peak_memory
from kdpipe.targets.power.base import SensorError
from kdpipe.targets.power.ina import Ina
from kdpipe.targets.power.nvml import Nvml, gpu_memory
from kdpipe.targets.power.rapl import Rapl
from kdpipe.targets.power.tegrastats import Tegrastats, rails, total
from kdpipe.targets.process import Job

ORIN_NANO = (
    "01-09-2026 10:11:12 RAM 2463/7620MB (lfb 4x4MB) SWAP 0/3810MB (cached 0MB) CPU "
    "[2%@729,0%@729,1%@729,0%@729,off,off] EMC_FREQ 0%@2133 GR3D_FREQ 0%@[305] cpu@46.5C "
    "soc2@45.3C VDD_IN 4928mW/4900mW VDD_CPU_GPU_CV 531mW/531mW VDD_SOC 1502mW/1500mW"
)
NANO_JETPACK4 = (
    "RAM 1903/3956MB (lfb 59x4MB) SWAP 0/1978MB IRAM 0/252kB(lfb 252kB) CPU [1%@102,0%@102] "
    "EMC_FREQ 0% GR3D_FREQ 0% PLL@26C POM_5V_IN 2532/2540 POM_5V_GPU 0/0 POM_5V_CPU 284/284"
)
AGX_ORIN = (
    "RAM 5059/30536MB CPU [0%@1190] GR3D_FREQ 0% VDD_GPU_SOC 3154mW/3154mW VDD_CPU_CV 788mW/788mW "
    "VIN_SYS_5V0 4131mW/4131mW"
)


def write(root: Path, files: Mapping[str, object]) -> Path:
    """A tree of files of one line each, below /sys."""
    for name, value in files.items():
        path = root / "sys" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{value}\n")
    return root


def test_rapl_counts_packages_once(rapl_tree: Path) -> None:
    """Neither what is inside a package nor another door to it counts again."""
    sensor = Rapl(rapl_tree)

    assert sensor.missing() is None
    assert sensor.what == "package-0, package-1"
    assert sensor.read() == (7.0, 7.0)
    assert sensor.ranges() == pytest.approx((262143.32885, 262143.32885))


def test_rapl_that_only_root_may_read(rapl_tree: Path) -> None:
    """It says which file, and what to type."""
    file = rapl_tree / "sys/class/powercap/intel-rapl:1/energy_uj"
    file.chmod(0)
    if os.access(file, os.R_OK):
        file.unlink()  # root reads everything; a file that is gone cannot be read either
    why = Rapl(rapl_tree).missing()

    assert why is not None
    assert "intel-rapl:1/energy_uj" in why.reason
    assert why.fix.startswith("sudo chmod a+r ")


def orin_nano(root: Path) -> Path:
    """JetPack 6: one INA3221 with three rails, and the sum of its shunt voltages, beside a fan."""
    monitor = "class/hwmon/hwmon1"
    labels = {1: "VDD_IN", 2: "VDD_CPU_GPU_CV", 3: "VDD_SOC", 7: "sum of shunt voltages"}
    write(root, {f"{monitor}/in{n}_label": label for n, label in labels.items()})
    write(root, {f"{monitor}/in{n}_input": 4960 for n in (1, 2, 3, 7)})
    write(root, {f"{monitor}/curr{n}_input": 1000 * n for n in (1, 2, 3)})
    write(root, {f"{monitor}/name": "ina3221", "class/hwmon/hwmon0/name": "pwmfan"})
    return root


def test_ina_takes_the_rail_of_the_module(tmp_path: Path) -> None:
    """VDD_IN feeds all others: 4.96 V times 1 A."""
    sensor = Ina(orin_nano(tmp_path))

    assert sensor.missing() is None
    assert sensor.what == "VDD_IN"
    assert sensor.read() == pytest.approx((4.96,))


def test_ina_adds_rails_where_none_feeds_the_module(tmp_path: Path) -> None:
    """AGX Orin: the module is the sum."""
    monitor = "class/hwmon/hwmon3"
    write(tmp_path, {f"{monitor}/name": "ina3221"})
    for n, (label, milliamperes) in enumerate([("VDD_GPU_SOC", 300), ("VDD_CPU_CV", 100)], 1):
        files = {"in{}_label": label, "in{}_input": 10_000, "curr{}_input": milliamperes}
        write(tmp_path, {f"{monitor}/{name.format(n)}": v for name, v in files.items()})

    assert Ina(tmp_path).what == "VDD_GPU_SOC + VDD_CPU_CV"
    assert Ina(tmp_path).read() == pytest.approx((4.0,))


def test_ina238_multiplies_itself(tmp_path: Path) -> None:
    """Thor: power in microwatts, and the label beside it."""
    for n, (label, power) in enumerate([("VDD_GPU", 3_000_000), ("VIN", 25_500_000)]):
        monitor = f"class/hwmon/hwmon{n}"
        write(tmp_path, {f"{monitor}/name": "ina238", f"{monitor}/label": label})
        write(tmp_path, {f"{monitor}/power1_input": power})

    assert Ina(tmp_path).what == "VIN"
    assert Ina(tmp_path).read() == pytest.approx((25.5,))


def test_ina_of_jetpack_4(tmp_path: Path) -> None:
    """The iio device of the Nano, in milliwatts."""
    device = "bus/i2c/drivers/ina3221x/6-0040/iio:device0"
    write(tmp_path, {f"{device}/rail_name_0": "POM_5V_IN", f"{device}/in_power0_input": 2532})
    write(tmp_path, {f"{device}/rail_name_1": "POM_5V_GPU", f"{device}/in_power1_input": 41})

    assert Ina(tmp_path).read() == pytest.approx((2.532,))


def test_a_rail_that_vanishes(tmp_path: Path) -> None:
    """The file is named."""
    sensor = Ina(orin_nano(tmp_path))
    (tmp_path / "sys/class/hwmon/hwmon1/curr1_input").unlink()

    with pytest.raises(SensorError, match="curr1_input"):
        sensor.read()


@pytest.mark.parametrize(
    ("line", "found", "module"),
    [
        (ORIN_NANO, {"VDD_IN": 4.928, "VDD_CPU_GPU_CV": 0.531, "VDD_SOC": 1.502}, 4.928),
        (NANO_JETPACK4, {"POM_5V_IN": 2.532, "POM_5V_GPU": 0.0, "POM_5V_CPU": 0.284}, 2.532),
        (AGX_ORIN, {"VDD_GPU_SOC": 3.154, "VDD_CPU_CV": 0.788, "VIN_SYS_5V0": 4.131}, 8.073),
        ("RAM 1/2MB SWAP 0/1MB CPU [1%@1]", {}, 0.0),
    ],
)
def test_lines_of_tegrastats(line: str, found: dict[str, float], module: float) -> None:
    """Rails and nothing else: neither memory nor frequencies."""
    assert rails(line) == pytest.approx(found)
    assert total(rails(line)) == pytest.approx(module)


def test_tegrastats_as_a_child(tmp_path: Path) -> None:
    """A program that prints such lines is read, told its interval, and ended."""
    program = tmp_path / "tegrastats"
    program.write_text(
        f"#!/bin/sh\necho $$ $* > {tmp_path}/started\n"
        f"while true; do echo '{ORIN_NANO}'; sleep 0.02; done\n"
    )
    program.chmod(0o755)
    sensor = Tegrastats(str(program))

    assert sensor.missing() is None
    assert sensor.read() == pytest.approx((4.928,))
    assert sensor.what == "VDD_IN"
    sensor.close()
    pid, *arguments = (tmp_path / "started").read_text().split()
    assert arguments == ["--interval", "100"]
    assert not Path(f"/proc/{pid}").exists()


def test_tegrastats_that_ends_or_says_nothing(tmp_path: Path) -> None:
    """No rail, no number."""
    program = tmp_path / "tegrastats"
    program.write_text("#!/bin/sh\necho no rails here\n")
    program.chmod(0o755)
    sensor = Tegrastats(str(program))

    with pytest.raises(SensorError, match="printed no rail"):
        sensor.read()
    sensor.close()
    assert Tegrastats(str(tmp_path / "none")).missing() is not None


NVML = r"""
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
typedef struct { unsigned pid; unsigned long long used; unsigned gpu, compute; } Process;
static unsigned long long energy = 1000;
int nvmlInit_v2(void) { return getenv("NVML_DEAD") ? 9 : 0; }
int nvmlShutdown(void) { return 0; }
const char *nvmlErrorString(int code) { return code == 3 ? "Not Supported" : "Driver Not Loaded"; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **handle)
{ *handle = (void *)(size_t)(index + 1); return 0; }
int nvmlDeviceGetHandleByUUID(const char *uuid, void **handle)
{ *handle = (void *)(size_t)(strcmp(uuid, "GPU-x") ? 0 : 7); return 0; }
int nvmlDeviceGetName(void *handle, char *name, unsigned length)
{ strncpy(name, (size_t)handle == 7 ? "seventh" : "first", length); return 0; }
int nvmlDeviceGetTotalEnergyConsumption(void *handle, unsigned long long *value)
{ if (getenv("NVML_OLD")) return 3; *value = energy += 500; return 0; }
int nvmlDeviceGetPowerUsage(void *handle, unsigned *value) { *value = 65250; return 0; }
int nvmlDeviceGetComputeRunningProcesses_v3(void *handle, unsigned *count, Process *found)
{ Process all[] = {{41, 100, 0, 0}, {42, 3000000000ULL, 0, 0}, {43, ~0ULL, 0, 0},
    {getpid(), 5000000, 0, 0}};
  if (*count < 4) return 7; memcpy(found, all, sizeof all); *count = 4; return 0; }
"""


@pytest.fixture(scope="module")
def nvml(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A library with the calls and structures of NVML's header."""
    compiler = shutil.which("cc")
    if not compiler:
        pytest.skip("no C compiler")
    folder = tmp_path_factory.mktemp("nvml")
    (folder / "nvml.c").write_text(NVML)
    library = folder / "libnvidia-ml.so.1"
    command = [compiler, "-shared", "-fPIC", "-o", str(library), str(folder / "nvml.c")]
    subprocess.run(command, check=True)
    return str(library)


def test_nvml_counts_energy(nvml: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Millijoules become joules, of the GPU that CUDA shows first."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-x,GPU-y")
    sensor = Nvml(nvml)
    first, second = sensor.read()[0], sensor.read()[0]

    assert sensor.missing() is None
    assert sensor.cumulative
    assert sensor.what == "seventh"
    assert second - first == pytest.approx(0.5)
    sensor.close()


def test_nvml_of_a_gpu_that_only_knows_its_power(
    nvml: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before Volta: watts."""
    monkeypatch.setenv("NVML_OLD", "1")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    sensor = Nvml(nvml)

    assert not sensor.cumulative
    assert sensor.read() == (65.25,)
    assert sensor.what == "first"


def test_nvml_without_a_driver(nvml: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A library that is not there, and one that cannot talk to the driver."""
    why = Nvml("libnone.so.1").missing()
    assert why is not None
    assert "libnone.so.1" in why.reason
    monkeypatch.setenv("NVML_DEAD", "1")
    dead = Nvml(nvml).missing()
    assert dead is not None
    assert "Driver Not Loaded" in dead.reason


@pytest.mark.parametrize(("pid", "size"), [(42, 3_000_000_000), (43, None), (99, None)])
def test_memory_on_the_gpu(nvml: str, pid: int, size: int | None) -> None:
    """Of one process; a driver that does not tell gives no number, and not 0."""
    assert gpu_memory(pid, nvml) == size
    assert gpu_memory(pid, "libnone.so.1") is None


ONBOARD = """
from functools import partial
from typing import ClassVar, Literal
from kdpipe.targets import orders
from kdpipe.targets.onnxruntime import OnnxRuntime
from kdpipe.targets.power.nvml import gpu_memory
class Onboard(OnnxRuntime):
    device: ClassVar[str] = "GPU"
    name: Literal["onboard"] = "onboard"
    library: str
    def open(self, artifact):
        orders.gpu_memory = partial(gpu_memory, library=self.library)
        return super().open(artifact)
"""


@pytest.mark.parametrize("there", [True, False])
def test_memory_on_the_gpu_of_fresh_processes(
    nvml: str, there: bool, fp32: Path, inputs: Path, plugin: Any
) -> None:
    """Each process asks for what it holds itself; without a driver there is none, and not 0."""
    library = nvml if there else "libnone.so.1"
    target = plugin("onboard", ONBOARD).model_validate({"library": library})

    memory = peak_memory(Job(target, fp32, inputs), processes=2)

    assert memory.peaks.shape == (2,)
    assert (memory.gpu is None) is not there
    assert memory.gpu is None or memory.gpu.tolist() == [5_000_000.0] * 2
