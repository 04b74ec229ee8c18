"""What a measurement depends on besides the artifact: this machine, its state and its runtimes.

Read from files and package metadata, importing no runtime. What cannot be read is left out.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

from kdpipe.targets.surroundings import read, surroundings

Fact = str | float | bool | list[str] | list[int]

LASTING = ("machine", "cpu", "cores", "flags", "gpus", "gpu_driver")
"""Facts that stay while a machine stays what it is."""
PACKAGES = ("onnxruntime", "openvino", "tensorrt", "torch", "numpy")

# The instructions that decide which kernels a runtime picks, as Linux spells them on x86 and ARM.
_X86 = {"sse4_2", "avx", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "avx512_vnni"}
_X86 |= {"avx_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16"}
_ARM = {"asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2", "sme"}
_CPU_NAMES = ("model name", "Model", "Hardware")
_FREQUENCY = Path("/sys/devices/system/cpu/cpu0/cpufreq")


def fingerprint() -> dict[str, Fact]:
    """JSON-ready facts, e.g. {"cpu": "AMD EPYC", "cores": 2, "flags": ["avx2"], "numpy": "2.4.6"}.

    `load` is the 1-minute average, `governor` and the `_mhz` are those of the first core. What else
    makes latencies vary is there, too: see `surroundings`.
    """
    return _known(
        {
            "os": f"{platform.system()} {platform.release()}",
            "machine": platform.machine(),
            "distribution": _distribution(),
            "python": platform.python_version(),
            **_cpu(),
            **_state(),
            **surroundings(),
            **_gpu(),
            **{package: version(package) for package in PACKAGES},
        }
    )


def machine() -> dict[str, Fact]:
    """The part of the fingerprint that stays while a machine stays what it is: CPU and GPU."""
    facts = {"machine": platform.machine(), **_cpu(), **_gpu()}
    return _known({name: facts[name] for name in LASTING})


def _known(facts: Mapping[str, Fact | None]) -> dict[str, Fact]:
    return {name: value for name, value in facts.items() if value not in (None, "", [])}


def _cpu() -> dict[str, Fact | None]:
    lines = (line.partition(":") for line in read(Path("/proc/cpuinfo")).splitlines())
    info = {key.strip(): value.strip() for key, _, value in lines}
    flags = set((info.get("flags") or info.get("Features") or "").split())
    named = [info[name] for name in _CPU_NAMES if info.get(name)]
    return {
        "cpu": named[0] if named else platform.processor(),
        "cores": os.cpu_count(),
        "affinity": sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "flags": sorted(flags & (_X86 | _ARM)),
        "virtualised": "hypervisor" in flags if "flags" in info else None,
    }


def _state() -> dict[str, Fact | None]:
    return {
        "current_mhz": _mhz("scaling_cur_freq"),
        "maximum_mhz": _mhz("scaling_max_freq"),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    }


def _gpu() -> dict[str, Fact | None]:
    """What NVIDIA's kernel module tells; nothing without one."""
    lines = [
        line.partition(":")[2].strip()
        for file in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
        for line in read(file).splitlines()
        if line.startswith("Model:")
    ]
    driver = read(Path("/proc/driver/nvidia/version")).splitlines()[:1]
    return {"gpus": lines, "gpu_driver": "".join(driver).removeprefix("NVRM version:").strip()}


def _distribution() -> str | None:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME")
    except OSError:
        return None


def version(package: str) -> str | None:
    """Of an installed distribution; None where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _mhz(name: str) -> float | None:
    text = read(_FREQUENCY / name)
    return float(text) / 1000 if text.isdigit() else None
